"""Threads that finish what has begun before they begin anything else."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_LESS = 4  # times: what may be done in the middle of something larger

_Task = tuple[Future[Any], Callable[[], Any]]


class CoreExecutor(Executor):
    """``n_threads`` threads.

    ``submit`` goes on with an item that has begun: the next free thread takes it. ``begin`` begins an item: a thread
    takes it once there is nothing to go on with, and while less than ``most_ahead`` of begun items' work is done by
    others who need the same cores (``ahead``). Both are first in, first out. So what began first ends first, where
    there are too few cores for all. One item alone holds back no other, and others' work of which nothing ends for
    ``stuck_s`` holds back none: it may hang. A task may give way to those that begin far smaller items, so that a few
    large ones do not hold up everybody.
    """

    def __init__(self, n_threads: int, name: str, most_ahead: float = math.inf, stuck_s: float = 3.0) -> None:
        self._most_ahead = most_ahead
        self._stuck_s = stuck_s
        self._ahead = 0.0
        self._ended_s = 0.0  # when some of it ended last, or began while there was none
        self._going_on: deque[_Task] = deque()  # bounded by the items at work
        self._beginning: deque[tuple[Future[Any], Callable[[], Any], int]] = deque()  # with the items' sizes
        self._changed = threading.Condition()
        self._is_shut = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True) for number in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the next step of an item that has begun."""
        future: Future[T] = Future()
        with self._changed:
            self._check_open()
            self._going_on.append((future, partial(fn, *args, **kwargs)))
            self._changed.notify()
        return future

    def begin(self, fn: Callable[[], T], size: int = 0) -> Future[T]:
        """Run the first step of an item of so large a size."""
        future: Future[T] = Future()
        with self._changed:
            self._check_open()
            self._beginning.append((future, fn, size))
            self._changed.notify()
        return future

    def give_way(self, size: int) -> bool:
        """Within a task of an item of that size: begin the first that waits and is far smaller, and come back. Whether
        there was one."""
        task = self._smaller(size) if self._beginning else None
        if task is not None:
            _run(*task)
        return task is not None

    def _smaller(self, size: int) -> _Task | None:
        with self._changed:
            if self._held_s():
                return None
            for place, (future, function, its_size) in enumerate(self._beginning):
                if its_size * _LESS <= size:
                    del self._beginning[place]
                    return future, function
        return None

    @contextmanager
    def ahead(self, amount: int) -> Iterator[None]:
        """Around work of a begun item in other threads."""
        counted = min(amount, self._most_ahead / 2)
        with self._changed:
            if not self._ahead:
                self._ended_s = time.monotonic()
            self._ahead += counted
        try:
            yield
        finally:
            with self._changed:
                self._ahead -= counted
                self._ended_s = time.monotonic()
                self._changed.notify_all()

    @property
    def n_ahead(self) -> float:
        """How much of begun items' work others do now, as it counts."""
        return self._ahead

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once all is done, or with ``cancel_futures`` once what runs is done."""
        with self._changed:
            self._is_shut = True
            if cancel_futures:
                for future, *_ in self._going_on:
                    future.cancel()
                for future, *_ in self._beginning:
                    future.cancel()
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()

    def _check_open(self) -> None:
        if self._is_shut:
            raise RuntimeError("the executor is shut down")

    def _work(self) -> None:
        while (task := self._next()) is not None:
            _run(*task)
            del task  # no thread holds an image until its next task

    def _next(self) -> _Task | None:
        """The next task; None once there will be none."""
        with self._changed:
            while True:
                if self._going_on:
                    return self._going_on.popleft()
                held_s = self._held_s() if self._beginning else None
                if held_s == 0 or (self._beginning and self._is_shut):
                    future, function, _ = self._beginning.popleft()
                    return future, function
                if self._is_shut:
                    return None
                self._changed.wait(held_s)

    def _held_s(self) -> float:
        """How long no item may begin, at most."""
        if self._ahead < self._most_ahead:
            return 0.0
        return max(0.0, self._ended_s + self._stuck_s - time.monotonic())


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 (not passed on: whoever waits for the future raises it)
        future.set_exception(error)
        del future, function  # or the error would hold itself, by this frame
    else:
        future.set_result(result)
