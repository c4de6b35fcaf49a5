"""Time, waiting and threads: the real ones. Tests hand in a simulation of them instead."""

import random
import threading
import time
from collections.abc import Callable


class Runtime:
    """What the parts of the service use to tell the time, to wait and to run."""

    def time(self) -> float:
        """The wall clock: seconds since 1970. It may be wrong, and it may step."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment: never backwards, and no jumps."""
        return time.monotonic()

    def uniform(self, low: float, high: float) -> float:
        """A number by chance."""
        return random.uniform(low, high)  # noqa: S311 it spreads delays

    def condition(self) -> threading.Condition:
        """A condition with a lock of its own."""
        return threading.Condition()

    def event(self) -> threading.Event:
        """An event that is not set."""
        return threading.Event()

    def thread(self, run: Callable[[], object]) -> threading.Thread:
        """A thread that is not started yet, and does not keep the process alive."""
        return threading.Thread(target=run, daemon=True)
