"""Questions of health and of what a server is: answered, however many and however large others' are."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest
from calls import until
from facenet_server.rpc import unary
from facenet_server.rpc.auth import Callers
from facenet_server.rpc.unary import UnaryCalls
from grpc_health.v1 import health_pb2

ASK = "/test.Questions/Ask"
QUESTION: bytes = health_pb2.HealthCheckRequest(service="who").SerializeToString()


class Question:
    """What answers: once it may."""

    def __init__(self) -> None:
        self.answered = list[str]()
        self.open = asyncio.Event()

    async def answer(self, question: Any, _: Any) -> Any:
        self.answered.append(question.service)
        await self.open.wait()
        return health_pb2.HealthCheckResponse(status=1)


class Reading:
    """How many questions are being read, as those who ask see it; each comes when it is let."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.come = asyncio.Semaphore(0)

    def context(self, number: int) -> Any:
        context = AsyncMock()
        context.invocation_metadata, context.peer = (lambda: ()), (lambda: f"ipv4:10.0.0.{number}:1")
        context.peer_identities = lambda: None
        context.read = self._read
        return context

    async def _read(self) -> bytes:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.come.acquire()
        self.now -= 1
        return QUESTION


@asynccontextmanager
async def asked(most: int) -> AsyncIterator[tuple[str, Question]]:
    """A server of questions that are answered once they may be, and its address."""
    server, question = grpc.aio.server(), Question()
    methods: Any = {"Ask": UnaryCalls(Callers(), most).handler(health_pb2.HealthCheckRequest, question.answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Questions", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", question
    finally:
        question.open.set()
        await server.stop(0)


@asynccontextmanager
async def caller(target: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own: a caller of its own."""
    async with grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def begun(channel: grpc.aio.Channel) -> Any:
    """A question that is not said yet."""
    call: Any = channel.stream_stream(ASK)
    return call()


async def answer_to(channel: grpc.aio.Channel, question: bytes = QUESTION) -> bytes:
    ask: Any = channel.unary_unary(ASK)
    return bytes(await ask(question))


async def test_no_caller_has_so_many_questions_that_a_newcomer_could_not_have_as_many() -> None:
    async with asked(most=12) as (target, question), AsyncExitStack() as stack:
        hog, other = [await stack.enter_async_context(caller(target)) for _ in range(2)]
        asking = [asyncio.create_task(answer_to(hog)) for _ in range(9)]
        await until(lambda: len(question.answered) + sum(task.done() for task in asking) == 9)
        refused = [task.exception() for task in asking if task.done()]
        assert len(refused) == 3
        for error in refused:
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        newcomer = asyncio.create_task(answer_to(other))
        await until(lambda: len(question.answered) == 7)
        question.open.set()
        assert await newcomer == b"\x08\x01"
        assert [await task for task in asking if task.done() is False or not task.exception()] == [b"\x08\x01"] * 6


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions have more time than a test takes."""
    for limit in ("_ACQUIRE_S", "_READ_S"):
        monkeypatch.setattr(unary, limit, 30.0)


async def silent_calls(channel: grpc.aio.Channel) -> list[Any]:
    """Forty questions that are not said."""
    calls = [begun(channel) for _ in range(40)]
    await asyncio.gather(*(call.wait_for_connection() for call in calls))
    return calls


@pytest.mark.usefixtures("patient")
async def test_questions_that_never_come_hold_up_no_other_caller() -> None:
    async with asked(most=100) as (target, question), AsyncExitStack() as stack:
        question.open.set()
        hog, other = [await stack.enter_async_context(caller(target)) for _ in range(2)]
        silent = await silent_calls(hog)
        for _ in range(20):
            assert await answer_to(other) == b"\x08\x01"
        assert not any(call.done() for call in silent)


async def test_questions_that_never_come_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(unary, "_ACQUIRE_S", 1.5)
    async with asked(most=100) as (target, _), caller(target) as hog:
        silent = await silent_calls(hog)
        codes = Counter(await asyncio.gather(*(call.code() for call in silent)))
        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        del silent
        gc.collect()
    assert not caplog.records


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("callers", "most"), [(10, 8), (3, 6), (1, 4)])
async def test_eight_questions_are_read_at_a_time_and_of_one_caller_as_many_as_leave_a_newcomer_as_much(
    callers: int, most: int
) -> None:
    question, reading = Question(), Reading()
    question.open.set()
    ask: Any = UnaryCalls(Callers(), 200).handler(health_pb2.HealthCheckRequest, question.answer)
    handlers = [asyncio.create_task(ask.stream_stream(None, reading.context(number % callers))) for number in range(40)]
    await until(lambda: reading.now == most)
    for answered in range(1, 41):
        reading.come.release()
        await until(lambda answered=answered: len(question.answered) == answered)
    await asyncio.gather(*handlers)
    assert reading.most == most


async def test_what_is_no_question_is_refused_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with asked(most=8) as (target, question), caller(target) as channel:
        empty = begun(channel)
        await empty.done_writing()
        assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await answer_to(channel, b"\xff\xff")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "a message HealthCheckRequest of at most 4096 bytes is asked for"
        with pytest.raises(grpc.aio.AioRpcError, match="at most 4096 bytes"):
            await answer_to(channel, health_pb2.HealthCheckRequest(service="x" * 4096).SerializeToString())
        question.open.set()
        assert await answer_to(channel) == b"\x08\x01"
    assert not caplog.records
