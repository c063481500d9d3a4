"""What the SDK makes of servers that say, while they are in use, that they are not ready."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from facenet_client import AsyncClient, Client, Embedding, ServerUnavailable, _endpoint
from facenet_client._call import Channel
from facenet_client._endpoint import Endpoint
from scripted import HEARD_S, Scripted, answer, answered, assert_answers, images, tell_changes

SERVICE_UNKNOWN = b"\x08\x03"


async def until(true: Callable[[], Any]) -> None:
    while not true():  # noqa: ASYNC110 (of what a server or the client's tasks do)
        await asyncio.sleep(0.002)


class Held:
    """A script that reads all that comes and answers once it is let."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, context: Any) -> None:
        messages: asyncio.Queue[bytes] = asyncio.Queue()

        async def read() -> None:
            while (data := await context.read()) is not grpc.aio.EOF:
                messages.put_nowait(data)

        reading = asyncio.create_task(read())
        await self.opened.wait()
        while not (reading.done() and messages.empty()):
            try:
                data = messages.get_nowait()
            except asyncio.QueueEmpty:
                await asyncio.sleep(0.002)
                continue
            await context.write(answered(data).SerializeToString())


class Source:
    """Images that come when they are let out."""

    def __init__(self, sent: list[np.ndarray]) -> None:
        self._sent = sent
        self._out = asyncio.Semaphore(0)

    def let(self, count: int) -> None:
        for _ in range(count):
            self._out.release()

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        for image in self._sent:
            await self._out.acquire()
            yield image


async def taken(client: AsyncClient, source: Source) -> list[Embedding]:
    return [result async for result in client.embed_crops_stream(source)]


def watched(*scripts: Any) -> Scripted:
    return Scripted(*scripts, ready=True, watch=tell_changes)


def endpoint_of(client: AsyncClient, target: str) -> Endpoint:
    """What the client knows of the server."""
    return next(endpoint for endpoint in client._endpoints._all if endpoint.address == target)


async def turn(server: Scripted, target: str, client: AsyncClient, *, ready: bool) -> None:
    """The server turns, and the client has heard of it."""
    await until(lambda: server.watchers)
    server.ready = ready
    await until(lambda: endpoint_of(client, target).is_ready is ready)


async def test_a_server_that_turns_unready_gets_no_message_while_another_serves_and_answers_what_it_has() -> None:
    sent, held = images(10), (Held(), Held())
    source, servers = Source(sent), [watched(script) for script in held]
    async with servers[0].serve() as first, servers[1].serve() as second:
        async with AsyncClient([first, second], timeout_s=10) as client:
            running = asyncio.create_task(taken(client, source))
            source.let(2)
            await until(lambda: all(len(server.read_ids) == 1 for server in servers))
            await turn(servers[0], first, client, ready=False)
            source.let(8)
            await until(lambda: len(servers[1].read_ids) == 9)
            for script in held:
                script.opened.set()
            assert_answers(await running, sent)
    assert [len(server.read_ids) for server in servers] == [1, 9]
    assert [server.calls for server in servers] == [1, 1]


async def test_a_server_that_is_ready_again_is_used_again() -> None:
    servers = [watched(answer), watched(answer)]
    async with servers[0].serve() as first, servers[1].serve() as second:
        async with AsyncClient([first, second], timeout_s=10) as client:
            while not all(server.calls for server in servers):
                assert_answers(await client.embed_crops(images(1)), images(1))
            await turn(servers[0], first, client, ready=False)
            calls = servers[0].calls
            for _ in range(6):
                assert_answers(await client.embed_crops(images(1)), images(1))
            assert servers[0].calls == calls
            await turn(servers[0], first, client, ready=True)
            while servers[0].calls == calls:
                assert_answers(await client.embed_crops(images(1)), images(1))


async def test_the_synchronous_client_hears_of_it_too() -> None:
    servers = [watched(answer), watched(answer)]
    async with servers[0].serve() as first, servers[1].serve() as second:
        client = await asyncio.to_thread(Client([first, second], timeout_s=10).__enter__)
        for _ in range(4):
            assert_answers(await asyncio.to_thread(client.embed_crops, images(1)), images(1))
        await turn(servers[0], first, client._client, ready=False)
        calls = servers[0].calls
        for _ in range(6):
            assert_answers(await asyncio.to_thread(client.embed_crops, images(1)), images(1))
        await asyncio.to_thread(client.__exit__, None, None, None)
    assert servers[0].calls == calls


async def test_a_stream_whose_only_server_turns_unready_goes_on_where_it_was_once_that_is_ready() -> None:
    server, source = watched(answer), Source(sent := images(3))
    async with server.serve() as target, AsyncClient(target, timeout_s=10) as client:
        running = asyncio.create_task(taken(client, source))
        source.let(1)
        await until(lambda: server.read_ids)
        await turn(server, target, client, ready=False)
        source.let(2)
        await asyncio.sleep(0.1)
        assert server.read_ids == [0]
        server.ready = True
        assert_answers(await running, sent)
    assert (server.calls, sorted(server.read_ids)) == (1, [0, 1, 2])


async def test_no_call_waits_longer_than_its_time_for_a_server_that_is_not_ready() -> None:
    server = watched(answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=HEARD_S) as client:
        assert_answers(await client.embed_crops(images(1)), images(1))
        await turn(server, target, client, ready=False)
        with pytest.raises(ServerUnavailable, match="not ready"):
            await client.embed_crops(images(1))
    assert server.calls == 1


async def unknown(_: Scripted, context: Any) -> None:
    await context.write(SERVICE_UNKNOWN)
    await asyncio.Event().wait()


async def broken(_: Scripted, context: Any) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch already")


async def refused(_: Scripted, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")


@pytest.mark.parametrize("watch", [None, refused, unknown, broken])
async def test_a_server_that_cannot_be_watched_is_used_as_it_is(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_endpoint, "_WATCH_PAUSE_S", 60.0)  # longer than the test may take
    server = Scripted(answer, ready=True, watch=watch)
    async with server.serve() as target, AsyncClient(target, timeout_s=10) as client:
        for _ in range(50):
            assert_answers(await client.embed_crops(images(1)), images(1))
        assert endpoint_of(client, target).attempts == 1
    assert server.watches <= 1


async def test_a_watch_that_broke_is_begun_anew() -> None:
    async def break_first(server: Scripted, context: Any) -> None:
        await (broken if server.watches == 1 else tell_changes)(server, context)

    server = Scripted(answer, ready=True, watch=break_first)
    async with server.serve() as target, AsyncClient(target, timeout_s=10) as client:
        while not server.watchers:
            assert_answers(await client.embed_crops(images(1)), images(1))
            await asyncio.sleep(0.01)
    assert server.watches == 2


async def test_each_address_has_one_watch_however_many_connections_and_calls() -> None:
    server = watched(answer)
    async with server.serve() as target, AsyncClient(target, connections=3) as client:
        await asyncio.gather(*(client.embed_crops(images(20)) for _ in range(5)))
        assert server.watches == server.watchers == 1


async def test_who_asks_for_no_work_watches_nothing() -> None:
    server = watched(answer)
    async with server.serve() as target, AsyncClient(target) as client:
        await client.server_info()
    assert not server.watches


async def test_an_address_that_goes_unused_is_not_watched_until_it_is_used_again() -> None:
    server = watched(answer)
    async with server.serve() as target, AsyncClient(target) as client:
        endpoint_of(client, target).watch_idle_s = 0.02
        for watches in (1, 2):
            await client.embed_crops(images(1))
            await until(lambda: server.watches == watches and not server.watchers)  # noqa: B023 (it waits here)


async def test_what_a_watch_says_while_the_server_is_asked_counts_more_than_the_answer() -> None:
    async def ask(endpoint: Endpoint) -> None:
        asked.append(endpoint.address)
        if len(asked) == 2:  # it turns, and is ready again when its health is asked
            server.ready = False
            await until(lambda: told == [False])
            server.ready = True

    server, asked, told = watched(answer), list[str](), list[bool]()
    async with server.serve() as target, grpc.aio.insecure_channel(target) as connection:
        endpoint = Endpoint([Channel(target, connection)], ask, lambda: told.append(endpoint.is_ready))
        endpoint.connect()
        await until(lambda: told == [True])
        endpoint.used()
        await until(lambda: server.watchers)
        told.clear()
        endpoint.connect()
        await until(lambda: told and told[-1])
        await endpoint.close()
    assert told == [False, False, True]


@pytest.mark.parametrize("ready", [True, False])
async def test_closing_leaves_no_watch_behind(ready: bool) -> None:
    before, server = asyncio.all_tasks(), watched(Held())
    async with server.serve() as target:
        client = await AsyncClient(target).__aenter__()
        waiting = asyncio.create_task(client.embed_crops(images(3)))
        await turn(server, target, client, ready=ready)
        await client.__aexit__(None, None, None)
        with pytest.raises(Exception, match="closed"):
            await waiting
        ours = ("facenet_client", "grpc/aio/_call.py")
        left = [task for task in asyncio.all_tasks() - before if any(name in repr(task) for name in ours)]
        assert not left
        await until(lambda: not server.watchers)
