"""How a call is read: so that whoever waits for a message may leave."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from google.protobuf.message import Message


def start_read(context: grpc.aio.ServicerContext[bytes, Message]) -> asyncio.Future[Any]:
    """A read to be waited for with asyncio.wait, and never cancelled: grpc.aio would lose its message, and not free
    it."""
    read = asyncio.ensure_future(context.read())
    read.add_done_callback(_retrieve)
    return read


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Look at the error of a read that nobody waits for once its call has ended."""
    if not done.cancelled():
        done.exception()
