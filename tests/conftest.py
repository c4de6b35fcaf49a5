import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from circuit_breaker import CircuitBreaker
from config import Config
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from store import Rules, Store
from submitter import Submitter
from support import Clock, Listener, ListenerHere, make_config
from world import World

# The same examples every time, so that a run tells about a change. --hypothesis-profile=explore has others.
settings.register_profile("default", database=None, derandomize=True, print_blob=True)
settings.register_profile("explore", database=None, derandomize=False)
settings.load_profile("default")

MEMORY = Path("/dev/shm")
MIN_FREE = 4 * 2**30


def pytest_configure() -> None:
    """Give every run the same start.

    1. A shell's background job ignores Ctrl-C, and so would the processes that it starts.
    2. Every commit waits for the disk, and half of the suite's time is that: use a file system in memory, if any.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MIN_FREE:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture
def sandbox() -> Iterator[FaultyIconik]:
    sandbox = FaultyIconik()
    with sandbox:
        yield sandbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's clock is that of Berlin: CET, and in summer CEST."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An items.db without items, to be copied: to make one takes ten times as long."""
    path = tmp_path_factory.mktemp("empty") / "items.db"
    Store(path, listener=True).close()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", listener=True)
    yield store
    store.close()


@pytest.fixture
def configs(tmp_path: Path, sandbox: FaultyIconik) -> Callable[..., Config]:
    """Makes Configs for the sandbox, with short delays, of `section__key=value`."""
    return lambda **values: make_config(tmp_path, sandbox, **values)


@pytest.fixture
def client(configs: Callable[..., Config]) -> IconikClient:
    return IconikClient(configs().iconik)


@pytest.fixture
def submitters(
    store: Store, client: IconikClient, configs: Callable[..., Config]
) -> Iterator[Callable[..., Submitter]]:
    """Makes Submitters, with circuit breakers of their own, that are not started yet, and stops them in the end."""
    made: list[Submitter] = []
    breakers: list[CircuitBreaker] = []

    def make(**values: Any) -> Submitter:
        config = configs(**{"submitter__workers": 2, **values})
        store.rules = Rules.of(config)
        breaker = CircuitBreaker(config.submitter)
        breakers.append(breaker)
        made.append(Submitter(store, client, breaker, config))
        return made[-1]

    yield make
    for breaker in breakers:
        breaker.stop()
    for submitter in made:
        submitter.stop()


@pytest.fixture
def listeners(tmp_path: Path, sandbox: FaultyIconik) -> Iterator[Callable[..., Listener]]:
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


@pytest.fixture
def listeners_here(tmp_path: Path, sandbox: FaultyIconik) -> Iterator[Callable[..., ListenerHere]]:
    """The same in this process: Listeners that are quicker to start."""
    made = []

    def make(**values: object) -> ListenerHere:
        made.append(ListenerHere(tmp_path, sandbox, **values))
        return made[-1]

    yield make
    for listener in made:
        listener.end()


@pytest.fixture
def listener_here(listeners_here: Callable[..., ListenerHere]) -> ListenerHere:
    """A running listener in this process."""
    return listeners_here().start()


@pytest.fixture
def worlds(tmp_path: Path, sandbox: FaultyIconik, clock: Clock) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**values: Any) -> World:
        made.append(World(tmp_path, sandbox, clock, **values))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


@pytest.fixture
def world(worlds: Callable[..., World]) -> World:
    return worlds()
