"""The base of every error that is the operator's to fix."""


class ListenerError(Exception):
    """An error whose `str()` is one line for the operator. `main` prints that line and exits with `exit_code`."""

    exit_code = 1
