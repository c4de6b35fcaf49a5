"""The packages are those that were tested together."""

import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PINNED = re.findall(r"^([\w.-]+)==([^;\s]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("package", "version"), PINNED)
def test_a_package_has_its_constrained_version(package: str, version: str) -> None:
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    assert installed == version


def test_the_six_direct_packages_have_ranges_and_all_are_constrained() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    direct = re.findall(r"^([\w-]+)[<>=]", text, re.MULTILINE)
    assert sorted(direct) == ["Flask", "Flask-RESTful", "click", "requests", "urllib3", "waitress"]
    assert set(direct) <= {package for package, _ in PINNED}
    assert "-c constraints.txt" in text
