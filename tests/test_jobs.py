"""The one table of jobs, and how far a job is, by what an asset and its versions say."""

import ast
from pathlib import Path
from typing import Any

import pytest

from jobs import ANALYZE, FACES, JOBS, TRANSCRIBE, newest_version, status_of, version_for

NEW, OLD = "new", "old"
ROOT = Path(__file__).parent.parent


def asset(analyze: Any = "N/A", **versions: Any) -> dict[str, Any]:
    numbers = {OLD: 1, NEW: 2}
    shown = [
        {"id": one, "status": "ACTIVE", "version_number": numbers[one], "analyze_status": status}
        for one, status in versions.items()
    ]
    return {"id": "a", "analyze_status": analyze, "versions": shown}


@pytest.mark.parametrize(
    ("found", "version", "expected"),
    [
        (asset("N/A", old="N/A"), OLD, "N/A"),
        (asset("DONE", old="N/A"), OLD, "DONE"),
        (asset("N/A", old="DONE"), OLD, "DONE"),
        (asset("N/A", old="DONE", new="N/A"), None, "N/A"),
        (asset("N/A", old="DONE", new="REQUESTED"), None, "REQUESTED"),
        (asset("FAILED", old="IN_PROGRESS"), OLD, "IN_PROGRESS"),
        (asset("FAILED", old="N/A"), OLD, "FAILED"),
        (asset("ODD", old="N/A"), OLD, "ODD"),
        (asset("", old=None), OLD, None),
        ({"id": "a"}, None, None),
        ({"id": "a", "analyze_status": 0, "versions": "x"}, None, None),
    ],
)
def test_the_status_that_says_more_counts(found: dict[str, Any], version: str | None, expected: str | None) -> None:
    assert status_of(ANALYZE, found, [version]) == expected


@pytest.mark.parametrize(
    ("found", "version", "expected"),
    [
        (asset("N/A", old="DONE", new="N/A"), None, "DONE"),
        (asset("N/A", old="N/A", new="REQUESTED"), OLD, "REQUESTED"),
        ({"versions": asset(old="DONE")["versions"]}, NEW, "DONE"),
        (asset("N/A", old="DONE", new="FAILED"), None, "FAILED"),
        (asset("N/A", old="FAILED", new="N/A"), None, "N/A"),
        (asset("N/A", old="ODD", new="N/A"), None, "N/A"),
    ],
)
def test_a_job_that_was_tried_may_be_on_another_version(
    found: dict[str, Any], version: str | None, expected: str | None
) -> None:
    assert status_of(ANALYZE, found, [version], was_tried=True) == expected


def test_a_transcript_is_known_by_the_version_only() -> None:
    shown = {"versions": [{"id": OLD, "version_number": 1, "transcribe_status": "DONE"}]}
    assert status_of(TRANSCRIBE, shown, [None]) == "DONE"
    assert status_of(FACES, shown, [None]) is None


def test_the_newest_active_version_counts() -> None:
    found = asset(old="N/A", new="N/A")
    assert newest_version(found) == NEW
    found["versions"][1]["status"] = "DELETED"
    assert newest_version(found) == OLD
    assert newest_version({}) is None


def test_the_wanted_version_counts_while_it_is_active() -> None:
    found = asset(old="N/A", new="N/A")
    assert version_for(found, None) == NEW
    assert version_for(found, OLD) == OLD
    assert version_for(found, "not shown") == "not shown"  # which does not say that it is gone
    assert version_for({}, None) is None
    found["versions"][0]["status"] = "DELETED"
    assert version_for(found, OLD) == NEW


def test_nothing_else_in_the_code_knows_a_job_by_name() -> None:
    """But for the migrations: what older versions did was to analyze."""
    names = {name for job in JOBS.values() for name in (job.name, job.status_field, job.iconik_type, job.role)}
    names |= {job.automation_action for job in JOBS.values()}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for folder in (ROOT, *(ROOT / name for name in ("commands", "reconciliation", "sandbox", "system")))
        for path in sorted(folder.glob("*.py"))
        if path.name not in ("jobs.py", "migrations.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert found == []


def test_each_job_has_its_own_role_path_field_and_type() -> None:
    for names in zip(*((job.role, job.path, job.status_field, job.iconik_type) for job in JOBS.values())):
        assert len(set(names)) == len(JOBS)
