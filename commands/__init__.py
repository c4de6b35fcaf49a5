"""The operator's commands, one module each: `python app.py [--config FILE] COMMAND`."""

from commands.catch_up import catch_up
from commands.check import check
from commands.demo import demo
from commands.help import help_, version
from commands.limit import allow, pause, resume
from commands.register import register
from commands.report import report
from commands.retry import retry
from commands.show import show
from commands.skip import skip
from commands.status import status

ALL = (demo, check, register, status, show, retry, skip, catch_up, report, allow, pause, resume, help_, version)
for _command in ALL:
    _command.context_settings["help_option_names"] = ["-h", "--help"]
