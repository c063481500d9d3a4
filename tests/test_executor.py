"""Threads that finish what has begun before they begin anything else."""

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, wait
from functools import partial
from typing import Any

import pytest
from facenet_server.serving.executor import CoreExecutor


def test_a_function_gives_its_result_or_its_error() -> None:
    executor = CoreExecutor(2, "test")
    assert executor.submit(divmod, 7, 2).result(10) == (3, 1)
    assert executor.begin(lambda: 5).result(10) == 5
    with pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0).result(10)
    executor.shutdown()


def test_each_thread_takes_a_task() -> None:
    executor, all_there = CoreExecutor(3, "test"), threading.Barrier(3)
    names = {future.result(10) for future in [executor.begin(lambda: there(all_there)) for _ in range(3)]}
    assert names == {"test_0", "test_1", "test_2"}
    executor.shutdown()


def there(all_there: threading.Barrier) -> str:
    all_there.wait(10)
    return threading.current_thread().name


def test_what_goes_on_is_taken_before_what_begins_and_each_in_its_order() -> None:
    executor, gate, order = CoreExecutor(1, "test"), threading.Event(), list[str]()
    first: Future[Any] = executor.begin(gate.wait)
    futures: list[Future[Any]] = [executor.begin(partial(order.append, name)) for name in ("begin 1", "begin 2")]
    futures += [executor.submit(order.append, name) for name in ("go on 1", "go on 2")]
    gate.set()
    wait([first, *futures], 10)
    assert order == ["go on 1", "go on 2", "begin 1", "begin 2"]
    executor.shutdown()


def test_while_others_do_enough_for_what_has_begun_nothing_begins_and_all_else_goes_on() -> None:
    executor = CoreExecutor(2, "test", most_ahead=2)
    with executor.ahead(1):
        assert executor.begin(lambda: 1).result(10) == 1
        with executor.ahead(1):
            waiting = executor.begin(lambda: 2)
            assert executor.submit(lambda: 3).result(10) == 3
            assert not waiting.done()
        assert waiting.result(10) == 2
    executor.shutdown()


def test_one_item_alone_holds_back_no_other() -> None:
    executor = CoreExecutor(1, "test", most_ahead=2)
    with executor.ahead(300):
        assert executor.begin(lambda: 1).result(10) == 1
    executor.shutdown()


def test_work_of_which_nothing_ends_holds_back_nobody_for_long() -> None:
    executor = CoreExecutor(1, "test", most_ahead=2, stuck_s=0.05)
    with executor.ahead(1), executor.ahead(1):
        assert [executor.begin(lambda: 1).result(10) for _ in range(2)] == [1, 1]
    executor.shutdown()


@pytest.mark.parametrize(("size", "begins"), [(25, True), (26, False), (100, False)])
def test_a_large_task_gives_way_to_those_that_begin_far_smaller_items(size: int, begins: bool) -> None:
    executor, order, there, ready = CoreExecutor(1, "test"), list[str](), threading.Event(), threading.Event()

    def large() -> None:
        there.set()
        ready.wait(10)
        executor.give_way(100)
        order.append("large")

    first = executor.begin(large, 100)
    there.wait(10)
    other = executor.begin(partial(order.append, "as large"), 100)
    second = executor.begin(partial(order.append, "smaller"), size)
    ready.set()
    wait([first, other, second], 10)
    assert order == (["smaller", "large", "as large"] if begins else ["large", "as large", "smaller"])
    executor.shutdown()


def test_what_is_cancelled_before_it_is_taken_does_not_run() -> None:
    executor, gate, ran = CoreExecutor(1, "test"), threading.Event(), list[int]()
    first: Future[Any] = executor.begin(gate.wait)
    cancelled, other = executor.submit(ran.append, 1), executor.submit(ran.append, 2)
    assert cancelled.cancel()
    gate.set()
    for future in (first, other):
        future.result(10)
    assert ran == [2]
    executor.shutdown()


@pytest.mark.parametrize("cancelled", [False, True], ids=["all of it", "what runs"])
def test_a_shutdown_waits_for(cancelled: bool) -> None:
    executor, gate = CoreExecutor(1, "test", most_ahead=1), threading.Event()
    with executor.ahead(1), executor.ahead(1):
        running = executor.submit(gate.wait)
        while not running.running():
            time.sleep(0.001)
        waiting = executor.begin(lambda: 1)
        threading.Timer(0.05, gate.set).start()
        executor.shutdown(cancel_futures=cancelled)
    assert running.result(0)
    if cancelled:
        with pytest.raises(CancelledError):
            waiting.result(0)
    else:
        assert waiting.result(0) == 1
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(sum, [1])


def test_a_thread_that_waits_holds_nothing_of_its_last_task() -> None:
    class Image:
        pass

    executor, image = CoreExecutor(1, "test"), Image()
    seen = weakref.ref(image)
    executor.submit(lambda each: None, image).result(10)
    del image
    executor.submit(sum, [1]).result(10)  # its thread has taken another since
    gc.collect()
    assert seen() is None
    executor.shutdown()
