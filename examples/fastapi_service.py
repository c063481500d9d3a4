"""How alike are two photos? A web service: gunicorn --preload -k uvicorn_worker.UvicornWorker fastapi_service:app"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from facenet_client import AsyncClient, ItemError, TemporaryError, raise_for_errors
from fastapi import FastAPI, HTTPException, UploadFile

client = AsyncClient("127.0.0.1:50051", timeout_s=5)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with client:  # opened in the worker, on its own event loop
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> None:
    if not await client.is_ready():
        raise HTTPException(503, "the face server is not ready")


@app.post("/compare")
async def compare(a: UploadFile, b: UploadFile) -> dict[str, Any]:
    try:
        (result,) = raise_for_errors(await client.compare([(await a.read(), await b.read())]))
    except TemporaryError as error:  # no server, no room, no answer in time
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    except ItemError as error:  # the photos; any other error is a mistake of this service: 500
        raise HTTPException(422, str(error)) from error
    return result.to_dict()
