"""The log: one line a message on stderr, time and level first; the same message not more than once a minute."""

import logging
import os
import sys
import time
import traceback
from collections import defaultdict

from system.text import one_line

OUR_LOGGER = "iconik_listener"
REPEAT_SECONDS = 60
MAX_TOPICS = 20  # of one kind that are logged per minute, such as the senders of refused webhooks
MAX_LINE = 1000
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
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)

    def filter(self, record: logging.LogRecord) -> bool:
        of_library = None if record.name == OUR_LOGGER else (record.name, str(record.msg))
        topic: tuple[str, ...] | None = getattr(record, "topic", of_library)
        if topic is None:
            return True
        now = time.monotonic()
        recent = {other: at for other, at in self._passed[topic[0]].items() if now - at < REPEAT_SECONDS}
        passes = topic not in recent and len(recent) < MAX_TOPICS
        if passes:
            recent[topic] = now
        self._passed[topic[0]] = recent
        return passes


def set_up_logging() -> None:
    """Send every log line of this process to stderr."""
    logging.raiseExceptions = False  # a full disk under stderr is no reason for tracebacks
    # What no line shows need not be found out: the thread, the process, the calling function.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(with_priority=stderr_is_the_journal()))
    handler.addFilter(OnceAMinute())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns at each request that waits
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def stderr_is_the_journal() -> bool:
    """As systemd.exec(5) says: JOURNAL_STREAM holds the device and inode of the stream that leads to the journal."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
