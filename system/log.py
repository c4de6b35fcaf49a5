"""The log: one line a message on stderr, time and level first; the same message not more than once a minute.

A thread of its own writes it, so nothing waits for a full disk or for a program that does not read.
"""

import logging
import os
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from contextlib import suppress

from system.text import one_line

OUR_LOGGER = "iconik_listener"
REPEAT_SECONDS = 60
MAX_TOPICS = 20  # of one kind that are logged per minute, such as the senders of refused webhooks
MAX_LINE = 1000
MAX_WAITING = 1000  # lines that wait to be written
RETRY_SECONDS = 5.0  # after which a line that could not be written is tried again
STUCK_SECONDS = 5.0  # after which a line that is still not written means that the log is stuck
DRAIN_SECONDS = 2.0
GATHER_SECONDS = 0.05  # between two writes: to wake the thread for each line costs more than to write it
DROPPED = "%d lines of the log were dropped, because nothing could be written to it"
# How journald, syslog and `journalctl -p err` call the levels.
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class LogFormatter(logging.Formatter):
    """One line a message, whatever is in it. Times are UTC, as in items.db. An exception is given as kind and place."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, *, with_priority: bool) -> None:
        """`with_priority`: begin each line like `<3>`, from which journald takes its priority."""
        super().__init__()
        self._with_priority = with_priority

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname} {record.getMessage()}"
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)
            line += f": {type(error).__name__}" + "".join(
                f" at {frame.filename}:{frame.lineno}" for frame in frames[-1:]
            )
        line = one_line(line, MAX_LINE)
        return f"<{PRIORITIES.get(record.levelno, 6)}>{line}" if self._with_priority else line


class OnceAMinute(logging.Filter):
    """Lets a record pass once a minute for each `topic`, a tuple (kind, what is special) given as `extra`.

    A record of ours without a topic always passes. A library's topic is its message, whatever is put into that:
    waitress would write two lines for each connection beyond the limit.

    :ivar passed: when each topic passed last, in monotonic time, by kind
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)

    def filter(self, record: logging.LogRecord) -> bool:
        of_library = None if record.name == OUR_LOGGER else (record.name, str(record.msg))
        topic: tuple[str, ...] | None = getattr(record, "topic", of_library)
        if topic is None:
            return True
        now = time.monotonic()
        recent = {other: at for other, at in self.passed[topic[0]].items() if now - at < REPEAT_SECONDS}
        passes = topic not in recent and len(recent) < MAX_TOPICS
        if passes:
            recent[topic] = now
        self.passed[topic[0]] = recent
        return passes


class LogWriter(logging.Handler):
    """Writes to a file descriptor from a thread of its own.

    When too many lines wait, the newest is dropped, or an older one below WARNING in place of a warning. How many were
    dropped is logged once something can be written again.

    :ivar dropped: how many lines so far
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, bytes]] = deque()  # level, line
        self._started_at: float | None = None  # monotonic: since when a line is being written
        self._dropped_before = 0  # of those dropped, how many were logged
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if len(self._waiting) < MAX_WAITING or self._make_room(record.levelno):
                self._waiting.append((record.levelno, line))
                self._changed.notify_all()  # costs nothing while nobody waits

    def _make_room(self, level: int) -> bool:
        self.dropped += 1
        if level >= logging.WARNING:
            for index, (other, _) in enumerate(self._waiting):
                if other < logging.WARNING:
                    del self._waiting[index]
                    return True
        return False

    def flush(self) -> None:
        """Wait until all is written, but no longer than two seconds. logging calls it at the end of the process."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._started_at is None, DRAIN_SECONDS)

    def stuck_seconds(self) -> float:
        """For how long a line has not been written; 0 unless that is longer than it should be."""
        started_at = self._started_at
        seconds = 0.0 if started_at is None else time.monotonic() - started_at
        return seconds if seconds > STUCK_SECONDS else 0.0

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines = b"".join(line for _, line in self._waiting)
                self._waiting.clear()
                self._started_at = time.monotonic()
            self._write(lines)
            with self._changed:
                self._started_at = None
                if dropped := self.dropped - self._dropped_before:
                    self._dropped_before = self.dropped
                    self._waiting.appendleft((logging.WARNING, self._note(dropped)))
                self._changed.notify_all()
            threading.Event().wait(GATHER_SECONDS)  # the tests' faketime makes time.sleep fail

    def _write(self, lines: bytes) -> None:
        while lines:
            try:
                lines = lines[os.write(self._descriptor, lines) :]
            except OSError:  # a full disk may be cleared
                time.sleep(RETRY_SECONDS)

    def _note(self, dropped: int) -> bytes:
        values = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": DROPPED, "args": (dropped,)}
        return f"{self.format(logging.makeLogRecord(values))}\n".encode()


def set_up_logging() -> None:
    """Send every log line of this process to stderr."""
    logging.raiseExceptions = False  # a mistake in a message is no reason for a traceback
    # What no line shows need not be found out: the thread, the process, the calling function.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = LogWriter(_stderr())
    handler.setFormatter(LogFormatter(with_priority=stderr_is_the_journal()))
    handler.addFilter(OnceAMinute())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)  # Python's own would be written to stderr by whoever causes them
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns at each request that waits
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def log_writer() -> LogWriter | None:
    """What writes this process's log, if `set_up_logging` was called."""
    return next((handler for handler in logging.root.handlers if isinstance(handler, LogWriter)), None)


def flush_log() -> None:
    """Wait until what was logged is written, but no longer than two seconds."""
    if writer := log_writer():
        writer.flush()


def write_critical(message: str) -> None:
    """Write a line without the thread: the process ends before there is one, perhaps because none can be started."""
    record = logging.makeLogRecord({"levelno": logging.CRITICAL, "levelname": "CRITICAL", "msg": message})
    line = LogFormatter(with_priority=stderr_is_the_journal()).format(record)
    with suppress(OSError):
        os.write(_stderr(), f"{line}\n".encode(errors="backslashreplace"))


def _stderr() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # it was closed, or is not a file
        return 2


def stderr_is_the_journal() -> bool:
    """As systemd.exec(5) says: JOURNAL_STREAM holds the device and inode of the stream that leads to the journal."""
    try:
        stream = os.fstat(_stderr())
    except OSError:  # it was closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
