"""Threads on a clock of ours: one runs at a time, until it waits, and the clock jumps to when the next one goes on."""

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from system.runtime import Runtime

LATENCY = 0.1
HTML = b"<html>Sorry"


@dataclass(frozen=True)
class Reply:
    """What iconik answers instead of doing what it is asked to. `status` None: nothing."""

    status: int | None
    body: bytes = b'{"message": "Out of order"}'
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = LATENCY
    after_work: bool = False  # it does it all the same


REFUSED_CONNECTION = Reply(None, seconds=0.01)
HANGING = Reply(None, seconds=30)
OUTAGES = {
    "401": Reply(401, b'{"errors": ["Token is invalid"]}'),
    "403": Reply(403, b'{"errors": ["Forbidden"]}'),
    "a gateway's 404": Reply(404, HTML),
    "408": Reply(408),
    "429": Reply(429, b'{"errors": ["Too many requests"]}'),
    "429 with Retry-After": Reply(429, headers={"Retry-After": "20"}),
    "500": Reply(500, b'{"errors": ["Internal error"]}'),
    "503": Reply(503, HTML),
    "503 with Retry-After": Reply(503, headers={"Retry-After": "60"}),
    "a redirect": Reply(302, headers={"Location": "https://status.example.com"}),
    "a maintenance page": Reply(200, HTML),
    "no connection": REFUSED_CONNECTION,
    "no answer": HANGING,
}


class Ended(BaseException):
    """The process that a thread belongs to has been killed."""


class Task:
    """One simulated thread. It is a real one that holds still unless it is its turn."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run
        self.turn = threading.Semaphore(0)
        self.waits = 0  # how often it has gone on: what was to wake it from an earlier wait is void
        self.is_over = False
        self.is_killed = False


class Simulation:
    """Tasks, and the clock that they live by: call it for the wall clock, which a test may set to be wrong.

    :ivar ahead: by how many seconds the wall clock is ahead of the time that passes
    """

    def __init__(self, now: float = 1_795_000_000.0) -> None:
        self.now = now
        self.ahead = 0.0
        self.current: Task | None = None
        self._tasks: list[Task] = []
        self._due: list[tuple[float, int, Task, int]] = []
        self._number = itertools.count()
        self._pause = threading.Semaphore(0)
        self._error: BaseException | None = None

    def __call__(self) -> float:
        return self.now + self.ahead

    def spawn(self, run: Callable[[], object]) -> Task:
        """Start a task. It begins to run in the next `run_until`."""
        task = Task(run)
        self._tasks = [task for task in self._tasks if not task.is_over] + [task]
        threading.Thread(target=self._live, args=(task,), daemon=True).start()
        self.schedule(task, 0)
        return task

    def schedule(self, task: Task, seconds: float) -> None:
        """Let a task that waits, or is about to, go on after that time."""
        heapq.heappush(self._due, (self.now + seconds, next(self._number), task, task.waits))

    def wait(self) -> None:
        """Let the others run until somebody lets this task go on."""
        task = self.current
        assert task, "this would wait for ever"
        self._pause.release()
        task.turn.acquire()
        if task.is_killed:
            raise Ended

    def sleep(self, seconds: float) -> None:
        """Let time pass for this task."""
        assert self.current
        self.schedule(self.current, seconds)
        self.wait()

    def run_until(self, end: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let the tasks live until then, or until `stop` holds. What one of them raises is raised here."""
        while self._due and self._due[0][0] <= end:
            at, _, task, waits = heapq.heappop(self._due)
            if not task.is_over and task.waits == waits:
                self.now = max(self.now, at)
                self._resume(task)
                if stop():
                    return
        self.now = max(self.now, end)

    def run_for(self, seconds: float) -> None:
        self.run_until(self.now + seconds)

    def kill(self) -> None:
        """End every task where it is."""
        for task in self._tasks:
            task.is_killed = True
            if not task.is_over:
                self._resume(task)
        self._tasks.clear()
        self._due.clear()

    def _resume(self, task: Task) -> None:
        task.waits += 1
        self.current = task
        task.turn.release()
        self._pause.acquire()
        self.current = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _live(self, task: Task) -> None:
        task.turn.acquire()
        try:
            if not task.is_killed:
                task.run()
        except Ended:
            pass
        except BaseException as error:
            self._error = error
        task.is_over = True
        self._pause.release()


class SimulatedCondition(threading.Condition):
    """A condition for tasks. Nobody else runs meanwhile, so it needs no lock."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation
        self._waiting: list[Task] = []

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        task = self._simulation.current
        assert task, "this would wait"
        self._waiting.append(task)
        if timeout is not None:
            self._simulation.schedule(task, timeout)
        self._simulation.wait()
        is_notified = task not in self._waiting
        if not is_notified:
            self._waiting.remove(task)
        return is_notified

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        end = None if timeout is None else self._simulation.now + timeout
        while not (result := predicate()):
            remaining = None if end is None else end - self._simulation.now
            if remaining is not None and remaining <= 0:
                break
            self.wait(remaining)
        return result

    def notify(self, n: int = 1) -> None:
        for task in self._waiting[:n]:
            self._waiting.remove(task)
            self._simulation.schedule(task, 0)

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class SimulatedEvent(threading.Event):
    """An event that nobody sets while a task waits for it."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._simulation.sleep(timeout)
        return self.is_set()


class SimulatedThread(threading.Thread):
    """A thread that is a task once it has been started."""

    def __init__(self, simulation: Simulation, run: Callable[[], object]) -> None:
        super().__init__(target=run)
        self._simulation = simulation

    def start(self) -> None:
        self._simulation.spawn(self.run)


class SimulatedRuntime(Runtime):
    """What the service uses to tell the time, to wait and to run: in a simulation. Its chance is the same each time."""

    def __init__(self, simulation: Simulation, seed: int = 8) -> None:
        self._simulation = simulation
        self._random = random.Random(seed)

    def time(self) -> float:
        return self._simulation()

    def monotonic(self) -> float:
        return self._simulation.now

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def condition(self) -> threading.Condition:
        return SimulatedCondition(self._simulation)

    def event(self) -> threading.Event:
        return SimulatedEvent(self._simulation)

    def thread(self, run: Callable[[], object]) -> threading.Thread:
        return SimulatedThread(self._simulation, run)
