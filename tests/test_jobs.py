"""How far a job is, by what iconik says of an asset and of its versions."""

from typing import Any

import pytest

from jobs import ANALYZE, FACES, JOBS, TRANSCRIBE, Job, newest_version, status_of
from support import ASSET


def version(version_id: str, number: object = 1, **fields: object) -> dict[str, object]:
    return {"id": version_id, "version_number": number, "status": "ACTIVE", **fields}


def asset(*versions: object, **fields: object) -> dict[str, Any]:
    return {"id": ASSET, "versions": list(versions), **fields}


@pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
@pytest.mark.parametrize("status", ["N/A", "REQUESTED", "IN_PROGRESS", "FAILED", "DONE", "A_NEW_WORD"])
def test_a_status_is_read_at_the_asset_and_at_its_version(job: Job, status: str) -> None:
    assert status_of(job, asset(version("v"), **{job.status_field: status}), "v") == status
    assert status_of(job, asset(version("v", **{job.status_field: status})), "v") == status


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("N/A", "REQUESTED", "REQUESTED"),
        ("FAILED", "IN_PROGRESS", "IN_PROGRESS"),
        ("N/A", "DONE", "DONE"),
        ("FAILED", "DONE", "DONE"),
        ("DONE", "REQUESTED", "REQUESTED"),
        ("N/A", "FAILED", "FAILED"),
        ("N/A", "A_NEW_WORD", "A_NEW_WORD"),
        ("FAILED", "A_NEW_WORD", "A_NEW_WORD"),
        ("DONE", "A_NEW_WORD", "DONE"),
        (None, "DONE", "DONE"),
        ("", "DONE", "DONE"),
        (5, "DONE", "DONE"),
    ],
)
def test_of_two_statuses_the_one_that_says_more_counts(one: object, other: object, expected: str) -> None:
    for first, second in ((one, other), (other, one)):
        found = asset(version("v", analyze_status=second), analyze_status=first)
        assert status_of(ANALYZE, found, "v") == expected


def test_each_job_has_a_status_of_its_own() -> None:
    found = asset(analyze_status="DONE", face_recognition_status="N/A")
    assert [status_of(job, found, None) for job in (ANALYZE, TRANSCRIBE, FACES)] == ["DONE", None, "N/A"]


def test_only_the_version_in_question_counts() -> None:
    found = asset(version("old", 1, analyze_status="DONE"), version("new", 2, analyze_status="N/A"))
    assert status_of(ANALYZE, found, "old") == "DONE"
    assert status_of(ANALYZE, found, "new") == "N/A"
    assert status_of(ANALYZE, found, None) == "N/A"  # the newest


@pytest.mark.parametrize("versions", [None, [], {}, "x", [None, 5, "x"], [{}], [{"id": "v", "analyze_status": None}]])
def test_a_status_that_is_nowhere_is_not_known(versions: object) -> None:
    assert status_of(ANALYZE, {"id": ASSET, "versions": versions}, "v") is None
    assert status_of(ANALYZE, {"id": ASSET}, None) is None


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([version("a", 1), version("b", 10), version("c", 9)], "b"),
        ([version("a", 1), version("b", 2, status="DELETED")], "a"),
        ([{"id": "a", "version_number": 1}], "a"),  # no status: not known to be anything but ACTIVE
        ([version("a", None), version("b", "7"), version("c", 0)], "c"),
        ([version("a", 1, status="DELETED")], None),
        ([{"version_number": 1}], None),
        ([], None),
        (None, None),
        (["x", 1, None], None),
    ],
)
def test_the_newest_version_that_is_active_is_found(versions: object, expected: str | None) -> None:
    assert newest_version({"id": ASSET, "versions": versions}) == expected


def test_a_job_serves_the_media_types_of_its_profiles() -> None:
    for job in JOBS.values():
        assert set(job.media_types) == set(job.profile_types)
        assert [job.serves(media_type) for media_type in job.media_types] == [True] * len(job.media_types)
        assert not job.serves("unknown")
    assert [job.needs_version for job in (ANALYZE, TRANSCRIBE, FACES)] == [False, False, True]
