import io
import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from support import full_pipe, wait_until
from system import log
from system.log import MAX_TOPICS, MAX_WAITING, LogFormatter, LogWriter, OnceAMinute, set_up_logging


def record(topic: tuple[str, ...] | None) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "iconik_listener", **({"topic": topic} if topic else {})})


def test_a_line_of_the_log_is_one_line_with_time_and_level_first() -> None:
    line = logging.makeLogRecord({"msg": "a\nb\x1b[2J", "levelname": "INFO", "created": 1.5, "msecs": 500.0})
    assert LogFormatter(with_priority=False).format(line) == "1970-01-01T00:00:01.500Z INFO a b [2J"


@pytest.mark.parametrize(("level", "priority"), [("CRITICAL", 2), ("ERROR", 3), ("WARNING", 4), ("INFO", 6)])
def test_for_the_journal_a_line_begins_with_its_priority(level: str, priority: int) -> None:
    line = logging.makeLogRecord({"msg": "a", "levelname": level, "levelno": getattr(logging, level)})
    assert LogFormatter(with_priority=True).format(line).startswith(f"<{priority}>")


@pytest.mark.parametrize("is_the_journal", [True, False])
def test_the_priority_is_written_only_if_stderr_leads_to_the_journal(
    is_the_journal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as journal, os.fdopen(write_end, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(logging.root, "handlers", [])
        stream = os.fstat(stderr.fileno())
        patch.setenv("JOURNAL_STREAM", f"{stream.st_dev}:{stream.st_ino if is_the_journal else 1}")
        set_up_logging()
        logging.getLogger("iconik_listener").error("x")
        assert journal.readline().startswith("<3>") == is_the_journal


def test_a_stderr_without_a_file_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", io.StringIO())
        patch.setattr(logging.root, "handlers", [])
        patch.setenv("JOURNAL_STREAM", "1:1")
        set_up_logging()


def test_a_topic_passes_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("system.log.time.monotonic", lambda: now)
    passes = OnceAMinute().filter
    refused, claim, none = record(("refused", "a")), record(("claim", "x")), record(None)
    assert [passes(one) for one in (refused, claim, none, refused, claim, none)] == [1, 1, 1, 0, 0, 1]
    now += 59
    assert not passes(refused)
    now += 1
    assert passes(refused)


def test_another_reason_is_told_at_once() -> None:
    passes = OnceAMinute().filter
    assert [passes(record(("claim", reason))) for reason in ("locked", "full", "locked")] == [1, 1, 0]


def test_a_library_says_the_same_once_a_minute_whatever_is_put_into_it() -> None:
    once = OnceAMinute()
    told: list[bool] = []
    for message, name in [("full", "waitress"), ("free again", "waitress"), ("full", "waitress"), ("full", "other")]:
        told.append(once.filter(logging.makeLogRecord({"name": name, "msg": f"{message} %s", "args": (len(told),)})))
    assert told == [True, True, False, True]


def test_however_many_senders_are_refused_the_log_and_its_memory_stay_small() -> None:
    once = OnceAMinute()
    assert sum(once.filter(record(("refused", str(sender)))) for sender in range(10_000)) == MAX_TOPICS
    assert len(once.passed["refused"]) == MAX_TOPICS
    assert once.filter(record(("claim", "locked")))


# When stderr cannot be written


class Pipe:
    """A pipe that is full, and a LogWriter that writes to it. The text before the first line is ours."""

    def __init__(self) -> None:
        self.read_end, self.write_end = full_pipe()
        self.writer = LogWriter(self.write_end)

    def log(self, level: int, message: str) -> None:
        self.writer.handle(logging.makeLogRecord({"levelno": level, "msg": message}))

    def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Log a line, and wait until it is being written."""
        monkeypatch.setattr(log, "STUCK_SECONDS", 0.0)
        self.log(logging.INFO, "first")
        wait_until(lambda: self.writer.stuck_seconds() > 0)

    def lines(self, last: str) -> list[str]:
        """What is read until this line."""
        text = b""
        while not text.endswith(b"\n") or last not in text.decode().splitlines()[-1]:
            assert select.select([self.read_end], [], [], 20)[0], f"{last!r} does not come"
            text += os.read(self.read_end, 65536)
        return text.decode().lstrip(".").splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    with suppress(OSError):
        os.close(pipe.read_end)


def test_who_logs_does_not_wait_for_a_reader_and_what_is_dropped_is_counted_and_told(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.begin(monkeypatch)
    for number in range(MAX_WAITING + 30):
        pipe.log(logging.INFO, f"line {number}")
    assert pipe.writer.dropped == 30
    kept = [f"line {number}" for number in range(MAX_WAITING)]
    note = "30 lines of the log were dropped, because nothing could be written to it"
    assert pipe.lines(kept[-1]) == ["first", note, *kept]
    pipe.log(logging.INFO, "the next one")
    assert pipe.lines("the next one") == ["the next one"]


def test_warnings_are_dropped_last(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.begin(monkeypatch)
    for number in range(MAX_WAITING):
        pipe.log(logging.INFO, f"info {number}")
    for number in range(MAX_WAITING + 1):
        pipe.log(logging.WARNING if number % 2 else logging.CRITICAL, f"warning {number}")
    pipe.log(logging.INFO, "info, too late")
    assert pipe.writer.dropped == MAX_WAITING + 2
    kept = [f"warning {number}" for number in range(MAX_WAITING)]
    assert pipe.lines(kept[-1])[2:] == kept


def test_what_waits_is_written_before_the_end_if_it_can_be_and_does_not_hold_it_up(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "DRAIN_SECONDS", 0.05)
    pipe.log(logging.INFO, "the last line")
    pipe.writer.flush()
    os.read(pipe.read_end, 1_000_000)
    pipe.writer.flush()
    assert os.read(pipe.read_end, 65536) == b"the last line\n"


def test_a_log_that_takes_no_line_is_stuck_until_it_does(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "STUCK_SECONDS", 0.05)
    assert pipe.writer.stuck_seconds() == 0
    pipe.log(logging.INFO, "a")
    wait_until(lambda: pipe.writer.stuck_seconds() > 0.05)
    pipe.lines("a")
    wait_until(lambda: pipe.writer.stuck_seconds() == 0)


def test_what_cannot_be_written_now_is_tried_again(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full for a while: here the pipe gives an error in place of blocking."""
    monkeypatch.setattr(log, "RETRY_SECONDS", 0.01)
    os.set_blocking(pipe.write_end, False)
    pipe.log(logging.INFO, "x" * 5000)
    pipe.log(logging.INFO, "b")
    assert pipe.lines("b") == ["x" * 5000, "b"]


def test_a_reader_that_has_died_ends_nothing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "STUCK_SECONDS", 0.01)
    monkeypatch.setattr(log, "RETRY_SECONDS", 0.001)
    os.close(pipe.read_end)
    pipe.log(logging.INFO, "a")
    wait_until(lambda: pipe.writer.stuck_seconds() > 0)


def test_a_mistake_in_a_message_stops_nothing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    pipe.writer.handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
    pipe.log(logging.INFO, "\ud800")
    assert pipe.lines("ud800") == [r"\ud800"]
