"""What all benchmarks are given."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bench:
    """
    :ivar checkouts: the versions of the listener to be measured, by name; the first is the one that matters
    :ivar folder: for what is written meanwhile
    :ivar long: take more time than a few minutes
    """

    checkouts: dict[str, Path]
    folder: Path
    long: bool
