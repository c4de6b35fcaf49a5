"""The version of the program: shown by `--version`, in the log's first line, at /health and in the User-Agent."""

__version__ = "2.0.0"
