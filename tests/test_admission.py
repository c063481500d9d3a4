import asyncio
from contextlib import ExitStack

import pytest
from doors import Clock, accept, door, door_with, waiting
from facenet_server.admission.controller import Visit
from facenet_server.errors import Refused
from facenet_server.rpc.auth import host


def test_a_stream_beyond_the_limit_is_refused_and_room_comes_back() -> None:
    admission = door(streams=1)
    with admission.enter("a"), pytest.raises(Refused):
        admission.enter("b")
    with admission.enter("b"):
        pass
    assert (admission.counts.streams, admission.counts.refused_streams) == (0, 1)


def test_a_caller_has_no_more_streams_than_leave_as_many_to_a_newcomer() -> None:
    admission = door(streams=6)
    with ExitStack() as open_streams:
        for _ in range(3):
            open_streams.enter_context(admission.enter("hog"))
        with pytest.raises(Refused):
            admission.enter("hog")
        with admission.enter("newcomer"), admission.enter("another"):
            pass
    with admission.enter("hog"):
        pass


@pytest.mark.parametrize("limited", ["streams", "connections"])
def test_callers_who_take_all_they_may_one_after_the_other_leave_room_for_a_newcomer(limited: str) -> None:
    admission = door(**{limited: 32})
    with ExitStack() as open_streams:
        held = []
        for hog in "abcd":
            for number in range(33):
                try:
                    open_streams.enter_context(admission.enter(hog, f"{hog}{number}"))
                except Refused:
                    held.append(number)
                    break
        assert held == [16, 8, 4, 2]
        for newcomer in "ef":
            open_streams.enter_context(admission.enter(newcomer, newcomer))


def test_a_message_that_is_held_keeps_its_room_when_its_callers_share_shrinks() -> None:
    admission = door(n_bytes=1000)
    with ExitStack() as open_streams:
        held = [open_streams.enter_context(admission.enter("first")) for _ in range(2)]
        assert all(visit.hold(1, 240) for visit in held)
        for name in "abc":
            accept(open_streams.enter_context(admission.enter(name)), 1)
        assert [visit.has_room() for visit in held] == [True, True]


@pytest.mark.parametrize(
    ("limits", "other"),
    [
        pytest.param({"items_per_stream": 3}, None, id="of its stream"),
        pytest.param({"items_per_caller": 3}, "a", id="of its caller"),
        pytest.param({"items": 3}, "b", id="of all"),
    ],
)
def test_items_that_go_over_a_limit_have_no_room(limits: dict[str, int], other: str | None) -> None:
    admission = door(**limits)
    with admission.enter("a") as first:
        accept(first, 2)
        with admission.enter(other or "c") as second:
            visit = second if other else first
            assert not visit.has_room(2)
            assert visit.has_room(1)


def test_a_message_whose_bytes_do_not_fit_is_refused() -> None:
    admission = door(n_bytes=30)
    with admission.enter("a") as a, admission.enter("b") as b:
        assert a.hold(2, 20)
        assert not b.hold(2, 20)
        assert b.hold(2, 10)
    assert admission.counts.refused_items == 2
    assert admission.counts.bytes_in_flight == 0


def test_a_message_larger_than_a_whole_limit_is_let_in_alone() -> None:
    admission = door(items=3, n_bytes=10)
    with admission.enter("a") as visit:
        assert visit.hold(64, 500)
        assert visit.has_room(64)
        visit.accept(64)
        assert not visit.has_room(1)
        visit.answered(64, 500)
        assert visit.has_room(1)


def test_what_was_accepted_is_answered_abandoned_or_in_flight() -> None:
    admission = door()
    counts = admission.counts
    with admission.enter("a") as visit:
        accept(visit, 5, 50)
        accept(visit, 3, 30)
        visit.answered(5, 50)
        assert (counts.accepted_items, counts.answered_items, counts.items_in_flight) == (8, 5, 3)
        assert counts.bytes_in_flight == 30
    assert (counts.abandoned_items, counts.items_in_flight, counts.bytes_in_flight) == (3, 0, 0)


async def test_a_stream_without_room_waits_until_there_is() -> None:
    admission = door(items=2)
    with admission.enter("a") as a, admission.enter("b") as b:
        accept(a, 2, 1)
        task = await waiting(b)
        assert not task.done()
        a.answered(2, 1)
        await task


async def test_callers_who_wait_take_turns() -> None:
    admission = door(items=1)
    order: list[str] = []

    async def reader(visit: Visit, name: str) -> None:
        await visit.turn()
        accept(visit, 1, 1)
        order.append(name)
        visit.answered(1, 1)

    with admission.enter("first") as first, admission.enter("hog") as one, admission.enter("hog") as two:
        with admission.enter("small") as small:
            accept(first, 1, 1)
            names = ((one, "hog"), (two, "hog"), (small, "small"))
            tasks = [asyncio.create_task(reader(visit, name)) for visit, name in names]
            await asyncio.sleep(0)
            first.answered(1, 1)
            await asyncio.gather(*tasks)
    assert order == ["hog", "small", "hog"]


async def test_a_waiting_stream_that_ends_passes_its_turn_on() -> None:
    admission = door(items=1)
    with admission.enter("a") as a, admission.enter("b") as b, admission.enter("c") as c:
        accept(a, 1, 1)
        gone, stays = await waiting(b), await waiting(c)
        gone.cancel()
        await asyncio.sleep(0)
        a.answered(1, 1)
        await stays


@pytest.mark.parametrize("idle_s", [0, 60])
def test_a_refused_caller_is_told_about_when_there_will_be_room(idle_s: float) -> None:
    clock = Clock()
    admission = door_with(clock, items=32)
    with admission.enter("a") as visit:
        for _ in range(2):  # one every 100 ms
            accept(visit, 1, 1)
            clock.now_s += 0.1
            visit.answered(1, 1)
        clock.now_s += idle_s
        for _ in range(8):
            accept(visit, 1, 1)
        assert admission.retry_after_s() == pytest.approx(0.8, rel=0.1)


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:10.0.0.7:50312", "ipv4:10.0.0.7"),
        ("ipv6:%5B2001:db8::7%5D:50312", "ipv6:%5B2001:db8::7%5D"),
        ("ipv4:127.0.0.1:50312", "ipv4:127.0.0.1:50312"),
        ("ipv6:%5B::1%5D:50312", "ipv6:%5B::1%5D:50312"),
        ("unix:/run/facenet.sock", "unix:/run/facenet.sock"),
    ],
)
def test_a_caller_without_a_name_is_a_host_but_near_ones_are_told_apart_by_connection(peer: str, caller: str) -> None:
    assert host(peer) == caller


async def test_who_waits_no_longer_is_forgotten() -> None:
    admission = door(items=2)
    with admission.enter("a") as a, admission.enter("b") as b:
        accept(a, 2)
        first, second = await waiting(b), await waiting(b)
        for task in (second, first):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not admission._waiting


async def test_a_message_that_is_held_does_not_wait_behind_a_stream_that_waits_for_its_bytes() -> None:
    admission = door(n_bytes=1000, items=6)
    with admission.enter("a") as busy, admission.enter("a") as held, admission.enter("a") as reader:
        accept(busy, 3, 100)
        assert held.hold(1, 400)
        behind = [await waiting(reader), await waiting(held)]
        with admission.enter("b") as other:  # of 1000 bytes each has a third now, which the held message exceeds
            accept(other, 1)
            busy.answered(3, 100)
            await asyncio.sleep(0)
            assert [task.done() for task in behind] == [False, True]
            other.answered(1, 1)
        held.accept(1)
        held.answered(1, 400)
        await behind[0]


def test_no_caller_has_more_of_the_connections_than_leaves_as_many_for_a_newcomer() -> None:
    admission = door(connections=4)
    with ExitStack() as open_streams:
        for connection in ("a1", "a1", "a2"):
            open_streams.enter_context(admission.enter("a", connection))
        with pytest.raises(Refused):
            admission.enter("a", "a3")
        b1 = open_streams.enter_context(admission.enter("b", "b1"))
        assert b1
        with pytest.raises(Refused):
            admission.enter("b", "b2")
    for connection in ("b1", "b2"):  # those that are over do not count
        open_streams.enter_context(admission.enter("b", connection))
    open_streams.close()


def test_a_connection_that_callers_share_counts_once_and_is_forgotten_with_its_last_stream() -> None:
    admission = door(connections=2)
    for _ in range(3):
        with admission.enter("a", "proxy"):
            with admission.enter("b", "proxy"), admission.enter("c", "proxy"), admission.enter("d", "another"):
                with pytest.raises(Refused):
                    admission.enter("e", "a third")
            with admission.enter("e", "a third"):
                pass
