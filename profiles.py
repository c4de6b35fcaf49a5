"""Which analysis profile a job gets for an asset. Names are looked up at iconik, and again every hour."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from iconik_client import IconikClient, IconikError
from jobs import Job
from system.errors import ListenerError
from system.runtime import Runtime
from system.text import UUID, one_line

MAX_AGE = 3600.0  # seconds for which a list of profiles is cached
MIN_AGE = 60.0  # seconds before the list is asked for again because a name is not in it
DEFAULT = "default"


class ProfileMissing(ListenerError):
    """iconik has no such profile. It may have it later."""


class ProfileNotForMediaType(ListenerError):
    """None of the configured profiles serves the asset's media type."""


@dataclass(frozen=True)
class Profile:
    """One of iconik's analysis profiles.

    :ivar id: its UUID, or `default`; empty for the call without a profile
    :ivar media_type: what it serves: image, video, transcription, face_image or face_video; None if that is not known
    """

    id: str
    name: str
    media_type: str | None = None
    enabled: bool = True
    is_default: bool = False


class Profiles:
    """iconik's analysis profiles. Any thread may use it."""

    def __init__(self, client: IconikClient, runtime: Runtime | None = None) -> None:
        self._client = client
        self._runtime = runtime or Runtime()
        self._lock = threading.Lock()
        self._found: list[Profile] = []
        self._found_at: float | None = None

    def choose(self, job: Job, names: Sequence[str], media_type: str | None) -> Profile:
        """The profile for an asset of that media type (None: not known).

        1. Without names, iconik chooses.
        2. A single UUID, or `default`, is taken as it is.
        3. A single name is looked up, and is enough if only one profile has it.
        4. Of several, the one that serves the media type is taken; `default` is for what no other one serves.

        :raises ProfileMissing: iconik has none of that name
        :raises ProfileNotForMediaType: none of several serves the media type
        :raises IconikError: they cannot be looked up
        """
        if not names:
            return Profile("", "")
        if len(names) == 1 and (names[0] == DEFAULT or UUID.fullmatch(names[0])):
            return Profile(names[0], names[0])
        found = self.named(names)
        if len(names) == 1 and len(found) == 1:
            return found[0]
        if len(names) == 1 and media_type is None:  # another one of that name came a moment ago
            raise ProfileMissing(f'iconik has {len(found)} analysis profiles "{one_line(names[0])}"')
        wanted = job.profile_types.get(media_type or "")
        for profile in found:
            if wanted and profile.media_type == wanted:
                return profile
        if DEFAULT in names and wanted:
            return Profile(DEFAULT, DEFAULT)
        raise ProfileNotForMediaType(f"no profile in [{job.name}] is for {one_line(media_type or 'this media type')}")

    def are_several(self, names: Sequence[str]) -> bool:
        """Whether `choose` needs the asset's media type. Several profiles may have the same name.

        :raises IconikError: they cannot be looked up
        """
        if len(names) != 1 or names[0] == DEFAULT or UUID.fullmatch(names[0]):
            return len(names) > 1
        try:
            return len(self.named(names)) > 1
        except ProfileMissing:  # which `choose` tells
            return False

    def media_type_of(self, profile: Profile) -> str | None:
        """What a profile serves, from the latest list. None if that is not known."""
        if profile.media_type:
            return profile.media_type
        with self._lock:
            return next((one.media_type for one in self._found if one.id == profile.id), None)

    def named(self, names: Sequence[str]) -> list[Profile]:
        """The profiles that have one of those names or UUIDs, `default` left out, in that order.

        While the list is asked for again, the other threads take what is known.

        :raises ProfileMissing: iconik has none of that name
        :raises IconikError: they cannot be looked up
        """
        wanted = [name for name in names if name != DEFAULT]
        with self._lock:
            age = self._age()
            is_missing = not all(self._matching(name) for name in wanted)
            if is_missing and age > MIN_AGE:
                self._note(list_profiles(self._client))
            is_old = not is_missing and age > MAX_AGE
            if is_old:
                self._found_at = self._runtime.monotonic() - MAX_AGE + MIN_AGE  # a call that fails is repeated then
        if is_old:
            with suppress(IconikError):
                self._note(list_profiles(self._client))
        matching = {name: self._matching(name) for name in wanted}  # once, as another thread may note a new list
        for name, found in matching.items():
            if not found:
                raise ProfileMissing(f'iconik has no analysis profile "{one_line(name)}"')
        return [profile for name in wanted for profile in matching[name]]

    def _note(self, found: list[Profile]) -> None:
        self._found, self._found_at = found, self._runtime.monotonic()

    def _age(self) -> float:
        return float("inf") if self._found_at is None else self._runtime.monotonic() - self._found_at

    def _matching(self, name: str) -> list[Profile]:
        """Those that are enabled first."""
        found = [one for one in self._found if one.id == name or one.name.casefold() == name.casefold()]
        return sorted(found, key=lambda one: not one.enabled)


def list_profiles(client: IconikClient) -> list[Profile]:
    """All analysis profiles that iconik has."""
    return [
        Profile(
            id=one_line(str(fields.get("id"))).lower(),
            name=" ".join(str(fields.get("name") or "").split()),
            media_type=one_line(str(fields["media_type"])) if fields.get("media_type") else None,
            enabled=fields.get("enabled") is not False,
            is_default=fields.get("is_default") is True,
        )
        for fields in client.profiles()
    ]
