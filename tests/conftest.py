from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from config import SubmitterConfig
from iconik_client import IconikClient
from sandbox import Sandbox
from store import Store
from submitter import Pauses, Submitter
from support import Clock, Listener

settings.register_profile("default", database=None)  # it would be written beside the code
settings.load_profile("default")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", listener=True)
    yield store
    store.close()


@pytest.fixture
def client(sandbox: Sandbox) -> IconikClient:
    return IconikClient(sandbox.url, sandbox.app_id, sandbox.auth_token, timeout=10)


@pytest.fixture
def submitters(store: Store, client: IconikClient) -> Iterator[Callable[..., Submitter]]:
    """Makes Submitters that are not started yet, and stops them in the end."""
    made = []

    def make(**values: Any) -> Submitter:
        config = SubmitterConfig(**{"workers": 2, "timeout": 10, "retry_delay": 0.02, "max_retry_delay": 0.1, **values})
        made.append(Submitter(store, client, Pauses(config), config))
        return made[-1]

    yield make
    for submitter in made:
        submitter.stop()


@pytest.fixture
def listeners(tmp_path: Path, sandbox: Sandbox) -> Iterator[Callable[..., Listener]]:
    """Makes Listeners that are not started yet, and ends them in the end."""
    made = []

    def make(**values: object) -> Listener:
        made.append(Listener(tmp_path, sandbox, **values))
        return made[-1]

    yield make
    for listener in made:
        listener.end()


@pytest.fixture
def listener(listeners: Callable[..., Listener]) -> Listener:
    """A running listener."""
    return listeners().start()
