import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from events import title_of
from support import ASSET
from system.text import UUID, command, format_local, format_utc, one_line, parse_time

NOON = 1_795_434_420.0  # 2026-11-23T11:47:00Z


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts this machine into a time zone, until the end of the test."""

    def put(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield put
    monkeypatch.undo()
    time.tzset()


# Lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("a.mov", "a.mov"),
        (" a.mov ", "a.mov"),
        ("a  b", "a b"),
        ("a\r\nb\t\x00\x1b[2J\u2028c\ud800 d", "a b [2J c d"),
        ("\u202egpj.exe", "gpj.exe"),  # would be shown from right to left
        ("a\u00a0b\u3000c", "a b c"),
        ("Zoë, 東京 🎬", "Zoë, 東京 🎬"),
        ("\n\x07", ""),
    ],
)
def test_text_from_outside_becomes_one_line_without_control_characters(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_long_line_is_cut_and_says_so() -> None:
    assert one_line("x" * 200) == "x" * 200
    assert one_line("x" * 201) == "x" * 199 + "…"
    assert one_line("x\n" * 5_000_000, 20) == "x x x x x x x x x x…"
    assert one_line("abc", 2) == "a…"


@pytest.mark.parametrize(
    ("asset", "title"),
    [
        ({"title": "a\nb"}, "a b"),
        ({"title": "x" * 300}, "x" * 254 + "…"),
        ({"title": ""}, ""),
        ({"title": None}, None),
        ({"title": ["a"]}, None),
        ({}, None),
    ],
)
def test_a_title_is_one_line_of_text_or_none(asset: dict[str, object], title: str | None) -> None:
    assert title_of(asset) == title


@pytest.mark.parametrize("text", [ASSET, ASSET.upper()])
def test_a_uuid_is_known_in_small_and_capital_letters(text: str) -> None:
    assert UUID.fullmatch(text)


@pytest.mark.parametrize(
    "text", ["", ASSET[:-1], f"{ASSET}0", ASSET.replace("-", ""), f"{{{ASSET}}}", f"{ASSET}\n", f"٢{ASSET[1:]}"]
)
def test_what_only_resembles_a_uuid_is_none(text: str) -> None:
    assert not UUID.fullmatch(text)


# Times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (NOON, "2026-11-23T11:47:00.000Z"),
        (NOON + 0.123, "2026-11-23T11:47:00.123Z"),
        (NOON + 0.9999, "2026-11-23T11:47:00.999Z"),  # never later than it was
    ],
)
def test_a_time_is_written_as_utc_with_milliseconds(seconds: float, text: str) -> None:
    assert format_utc(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-23T11:47:00.123Z", NOON + 0.123),
        ("2026-11-23T11:47:00z", NOON),
        ("2026-11-23T11:47:00+00:00", NOON),
        ("2026-11-23T12:47:00+01:00", NOON),
        ("2026-11-23T06:17:00.5-05:30", NOON + 0.5),
        ("2026-11-23T11:47:00.1Z", NOON + 0.1),
        ("2026-11-23T11:47:00.12345Z", NOON + 0.12345),
        ("2026-11-23T11:47:00.123456Z", NOON + 0.123456),
        ("2026-11-23T11:47:00.123456789Z", NOON + 0.123456),
        ("2026-11-23T11:47:00.123456789+01:00", NOON - 3600 + 0.123456),
        ("2026-11-23T11:47:00", NOON),
        ("2026-11-23 11:47", NOON),
        ("2026-11-23", NOON - 11 * 3600 - 47 * 60),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ],
)
def test_an_iso_time_is_read_whatever_its_fraction_and_offset(
    in_zone: Callable[[str], None], text: str, seconds: float
) -> None:
    in_zone("Asia/Tokyo")  # a time without an offset is UTC all the same
    assert parse_time(text) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        None, "", "soon", "Z", "now", "2026-13-01", "2026-11-23T25:00:00Z", "11:47", 5, 1.5, True, [], {},
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "10000-01-01T00:00:00Z", "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_time_is_none(text: object) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize("year", ["0001", "1969", "2026", "9999"])
def test_every_time_that_can_be_read_can_be_written(year: str) -> None:
    seconds = parse_time(f"{year}-12-31T23:59:59.000Z")
    assert seconds is not None
    assert format_utc(seconds) == f"{year}-12-31T23:59:59.000Z"


def test_a_time_of_this_machines_clock_is_read_by_it(in_zone: Callable[[str], None]) -> None:
    in_zone("Asia/Tokyo")
    assert parse_time("2026-11-23T20:47", local=True) == NOON
    assert parse_time("2026-11-23T11:47:00Z", local=True) == NOON
    assert parse_time("2026-11-23T12:47:00+01:00", local=True) == NOON
    in_zone("Europe/Berlin")
    assert parse_time("2026-11-23T12:47", local=True) == NOON
    assert parse_time("0001-01-01", local=True) is None
    assert parse_time("soon", local=True) is None


def test_a_time_is_shown_by_this_machines_clock_and_says_by_which(in_zone: Callable[[str], None]) -> None:
    in_zone("Europe/Berlin")
    assert format_local("2026-11-23T11:47:00.123Z") == "2026-11-23 12:47:00 CET"
    assert format_local("2026-07-23T11:47:00.123Z") == "2026-07-23 13:47:00 CEST"
    in_zone("UTC")
    assert format_local("2026-11-23T12:47:00+01:00") == "2026-11-23 11:47:00 UTC"


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("text", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "so\non", None])
def test_a_time_that_a_person_wrote_is_shown_whatever_it_is(
    in_zone: Callable[[str], None], zone: str, text: object
) -> None:
    in_zone(zone)
    shown = format_local(text)
    assert shown in ("9999-12-31 18:59:59 EST", str(text).replace("\n", " "))


# Commands


def test_a_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ICONIK_LISTENER_COMMAND", raising=False)
    assert command("retry", "--all") == "python app.py retry --all"
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")
    assert command("register", "https://a.example.com/?x=1&y=$HOME it's") == (
        """iconik-listener register 'https://a.example.com/?x=1&y=$HOME it'"'"'s'"""
    )
    echoed = subprocess.run(
        f"set -- {command('skip', '; rm x')}; printf '%s|' \"$@\"", shell=True, capture_output=True, text=True
    )
    assert echoed.stdout == "iconik-listener|skip|; rm x|"
