"""Which profile an asset gets, by iconik's list of them."""

import threading
from pathlib import Path

import pytest

from faulty_iconik import Fault, FaultyIconik
from iconik_client import IconikClient
from jobs import ANALYZE
from profiles import MAX_AGE, MIN_AGE, Profile, ProfileMissing, ProfileNotForMediaType, Profiles
from sandbox import profile
from support import Clock, ManualRuntime, make_config

LIST = "GET /API/files/v1/analysis/profiles"
UUID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def profiles(tmp_path: Path, sandbox: FaultyIconik, clock: Clock) -> Profiles:
    sandbox.profiles = [profile("Clips", "video"), profile("Standard", "video"), profile("Standard", "image")]
    runtime = ManualRuntime(clock)
    return Profiles(IconikClient(make_config(tmp_path, sandbox).iconik, runtime=runtime), runtime)


def asked(sandbox: FaultyIconik) -> int:
    """How often the list was asked for: its first page."""
    return sum(LIST in request and "last_id" not in request for request in sandbox.requests)


@pytest.mark.parametrize(
    ("names", "media_type", "expected"),
    [
        (("Clips",), None, "video"),
        (("clips",), "image", "video"),
        (("Standard",), "image", "image"),
        (("Standard",), "video", "video"),
        (("Clips", "Standard"), "image", "image"),
    ],
)
def test_it_is_the_one_of_that_name_and_of_several_the_one_for_the_media_type(
    profiles: Profiles, names: tuple[str, ...], media_type: str | None, expected: str
) -> None:
    assert profiles.choose(ANALYZE, names, media_type).media_type == expected


def test_the_one_that_is_enabled_goes_first(profiles: Profiles, sandbox: FaultyIconik) -> None:
    sandbox.profiles = [{**profile("Clips", "video"), "enabled": False}, profile("Clips", "video")]
    assert profiles.choose(ANALYZE, ("Clips",), "video").id == sandbox.profiles[1]["id"]


def test_without_a_media_type_two_of_a_name_are_no_reason_to_skip(profiles: Profiles) -> None:
    with pytest.raises(ProfileMissing, match='iconik has 2 analysis profiles "Standard"'):
        profiles.choose(ANALYZE, ("Standard",), None)


def test_two_of_a_name_of_which_none_is_for_the_media_type_are_not_for_it(profiles: Profiles) -> None:
    with pytest.raises(ProfileNotForMediaType):
        profiles.choose(ANALYZE, ("Standard",), "audio")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), False),
        (("default",), False),
        ((UUID,), False),
        (("Clips",), False),
        (("Standard",), True),
        (("Clips", "Stills"), True),
        (("none",), False),
    ],
)
def test_the_media_type_is_needed_where_there_are_several(
    profiles: Profiles, names: tuple[str, ...], expected: bool
) -> None:
    assert profiles.are_several(names) == expected


def test_one_that_is_missing_is_asked_for_again_after_a_minute(
    profiles: Profiles, sandbox: FaultyIconik, clock: Clock
) -> None:
    for _ in range(2):
        with pytest.raises(ProfileMissing, match='"Stills"'):
            profiles.choose(ANALYZE, ("Stills",), None)
    assert asked(sandbox) == 1
    sandbox.profiles.append(profile("Stills", "image"))
    clock.advance(MIN_AGE + 1)
    assert profiles.choose(ANALYZE, ("Stills",), None).name == "Stills"


def test_an_old_list_that_cannot_be_asked_for_is_still_good_and_asked_for_once_a_minute(
    profiles: Profiles, sandbox: FaultyIconik, clock: Clock
) -> None:
    profiles.choose(ANALYZE, ("Clips",), None)
    sandbox.faults.append(Fault(LIST, status=503, times=2))
    clock.advance(MAX_AGE + 1)
    for _ in range(3):
        assert profiles.choose(ANALYZE, ("Clips",), None).name == "Clips"
    assert asked(sandbox) == 2
    clock.advance(MIN_AGE + 1)
    profiles.choose(ANALYZE, ("Clips",), None)
    assert asked(sandbox) == 3


def test_while_it_is_asked_for_again_the_others_take_what_is_known(
    profiles: Profiles, sandbox: FaultyIconik, clock: Clock
) -> None:
    """iconik may hang, and each of the workers needs the list for each of its assets."""
    profiles.choose(ANALYZE, ("Clips",), None)
    clock.advance(MAX_AGE + 1)
    found: list[Profile] = []
    waiting = threading.Thread(target=lambda: found.append(profiles.choose(ANALYZE, ("Clips",), None)))
    is_asked, go_on = threading.Event(), threading.Event()

    def wait() -> float:
        is_asked.set()
        go_on.wait(20)
        return 0

    sandbox.slow[LIST] = wait
    waiting.start()
    assert is_asked.wait(20)
    for _ in range(3):
        assert profiles.choose(ANALYZE, ("Clips",), None).name == "Clips"
    assert found == []
    go_on.set()
    waiting.join()
    assert [one.name for one in found] == ["Clips"]
