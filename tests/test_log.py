import io
import logging
import os
import sys

import pytest

from system.log import MAX_TOPICS, LogFormatter, OnceAMinute, set_up_logging


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
    assert len(once._passed["refused"]) == MAX_TOPICS
    assert once.filter(record(("claim", "locked")))
