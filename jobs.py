"""The kinds of jobs that iconik can do for an asset. What the service knows about each is in one table here.

Where each fact is from is in docs/iconik.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One kind of job.

    :ivar name: its section in config.ini, and the column `job` of items.db
    :ivar label: what the log calls it
    :ivar feature: what it is, as iconik says that it is not enabled
    :ivar plural: what several of them are called
    :ivar role: the role that iconik wants for starting it
    :ivar path: where it is started, under /API/; `{asset}` and `{version}` are ids, `{profile}` a part of the path
    :ivar status_field: the field of an asset's versions that says how far it is
    :ivar is_on_asset: whether the asset itself has that field, too
    :ivar iconik_type: the type of iconik's jobs
    :ivar profile_types: the media type of the profile that serves it, by the media types of the assets that it serves
    :ivar meters: which of iconik's meters it is billed by, by the media type of the asset
    :ivar automation_action: what iconik's automations call it
    :ivar keys: those of its section in config.ini
    :ivar takes_query: whether its options travel in the query of the URL; in the body otherwise
    :ivar is_answered_without_id: whether iconik accepts it with a 202 that does not name the job
    """

    name: str
    label: str
    feature: str
    plural: str
    role: str
    path: str
    status_field: str
    iconik_type: str
    profile_types: dict[str, str]
    automation_action: str
    keys: tuple[str, ...]
    meters: dict[str, str] = field(default_factory=dict)
    is_on_asset: bool = True
    takes_query: bool = False
    is_answered_without_id: bool = False

    @property
    def needs_version(self) -> bool:
        """Whether it is started for a version of the asset rather than for the asset."""
        return "{version}" in self.path

    @property
    def has_profile(self) -> bool:
        """Whether config.ini may name its profile."""
        return "profile" in self.keys

    def serves(self, media_type: str) -> bool:
        """Whether iconik can do it for assets of that media type."""
        return media_type in self.profile_types


ANALYZE = Job(
    name="analyze",
    label="Analyze",
    feature="analysis",
    plural="analyses",
    role="can_analyze_content",
    path="transcode/v1/analyze/assets/{asset}/{profile}",
    status_field="analyze_status",
    iconik_type="ANALYZE",
    profile_types={"image": "image", "video": "video"},
    automation_action="ANALYZE",
    keys=("profile", "only", "skip_types"),
    meters={"image": "images_analyzed", "video": "video_analyzed_hours"},
)
TRANSCRIBE = Job(
    name="transcribe",
    label="Transcribe",
    feature="transcription",
    plural="transcripts",
    role="can_transcribe_content",
    path="transcode/v1/transcribe/assets/{asset}/profiles/default/",
    status_field="transcribe_status",
    is_on_asset=False,
    iconik_type="TRANSCRIPTION",
    profile_types={"video": "transcription", "audio": "transcription"},
    automation_action="TRANSCRIBE",
    keys=("profile", "only", "language"),
    meters={"video": "transcription_hours", "audio": "transcription_hours"},
)
FACES = Job(
    name="faces",
    label="Faces",
    feature="face recognition",
    plural="face recognitions",
    role="can_trigger_face_recognition",
    path="ml/v1/face_recognition/extract/assets/{asset}/versions/{version}/",
    status_field="face_recognition_status",
    iconik_type="FACE_RECOGNITION",
    profile_types={"image": "face_image", "video": "face_video"},
    automation_action="EXTRACT_FACES",
    keys=("only",),
    takes_query=True,
    is_answered_without_id=True,
)
JOBS = {job.name: job for job in (ANALYZE, TRANSCRIBE, FACES)}
DEFAULT_JOB = ANALYZE  # what each asset gets if config.ini does not say, and the only one that version 1 knew
NOT_STARTED = ("N/A", "FAILED")
UNDER_WAY = ("REQUESTED", "IN_PROGRESS")
FINISHED = "DONE"


def newest_version(asset: Json) -> str | None:
    """The id of an asset's newest version that is ACTIVE; None if iconik shows none."""
    versions = [version for version in _versions(asset) if version.get("status", "ACTIVE") == "ACTIVE"]
    newest = max(versions, key=lambda version: _number(version.get("version_number")), default=None)
    return str(newest["id"]) if newest and newest.get("id") else None


def version_for(asset: Json, wanted: str | None) -> str | None:
    """The version to do a job for: the one that is wanted, or else the asset's newest that is ACTIVE.

    :param wanted: an id; one that iconik shows as no longer ACTIVE does not count. None for the newest
    :returns: None if iconik shows none
    """
    shown = next((version for version in _versions(asset) if version.get("id") == wanted), {})
    is_usable = wanted and shown.get("status", "ACTIVE") == "ACTIVE"
    return wanted if is_usable else newest_version(asset)


def status_of(job: Job, asset: Json, version_ids: Iterable[str | None], *, was_tried: bool = False) -> str | None:
    """How far a job is, by the asset and by some of its versions: the one that says most counts.

    :param version_ids: the versions; None for the asset's newest
    :param was_tried: whether the job was tried before. That may have been for a version that was the newest then, so
        any version on which it is under way or done counts if those say that nothing was started.
    :returns: N/A, REQUESTED, IN_PROGRESS, FAILED or DONE, or a word that iconik's document does not have.
        None if neither has the field, which does not mean that nothing was started.
    """
    wanted = {version_id or newest_version(asset) for version_id in version_ids}
    holders = [asset, *(version for version in _versions(asset) if version.get("id") in wanted)]
    status = _status_that_says_most(job, holders)
    if was_tried and status in (None, "N/A"):
        elsewhere = _status_that_says_most(job, _versions(asset))
        status = elsewhere if elsewhere in (*UNDER_WAY, FINISHED) else status
    return status


def _status_that_says_most(job: Job, holders: list[Json]) -> str | None:
    """The first that any of them has of: under way, finished, an unknown word, failed, not started. None if none."""
    found = [status for holder in holders if isinstance(status := holder.get(job.status_field), str) and status]
    for status in (*UNDER_WAY, FINISHED):
        if status in found:
            return status
    unknown = [status for status in found if status not in NOT_STARTED]
    return next(iter(unknown), "FAILED" if "FAILED" in found else "N/A" if found else None)


def _versions(asset: Json) -> list[Json]:
    versions = asset.get("versions")
    return [version for version in versions if isinstance(version, dict)] if isinstance(versions, list) else []


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else -1.0
