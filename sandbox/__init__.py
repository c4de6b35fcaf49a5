"""A stand-in for iconik over real HTTP on this machine, for the demo, the tests and rehearsals by hand.

It answers the calls that the listener makes, delivers to the webhooks that are defined at it, and keeps count:
each job that it takes is one more on iconik's bill. `python -m sandbox [PORT]` runs it by itself.
"""

import sys

try:
    import requests  # noqa: F401
except ImportError:
    remedy = "use the virtual environment's Python: .venv/bin/python -m sandbox"
    sys.exit(f"Error: requests is not installed for {sys.executable}: {remedy}")

from sandbox.state import Fault, Refusal, Sandbox, profile

__all__ = ["Fault", "Refusal", "Sandbox", "profile"]
