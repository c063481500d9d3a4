"""How alike are two photos? A web service: gunicorn --preload -k uvicorn_worker.UvicornWorker fastapi_service:app"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from facenet_client import AsyncClient, CallError, ImageError, NoFaceError
from fastapi import FastAPI, HTTPException, UploadFile

client = AsyncClient("127.0.0.1:50051", timeout_s=5)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with client:  # opened in the worker, on its own event loop
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/compare")
async def compare(a: UploadFile, b: UploadFile) -> dict[str, float | bool | None]:
    try:
        (result,) = await client.compare([(await a.read(), await b.read())])
    except CallError as error:  # no server, no room, no answer in time
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    if result.error is not None:  # the sender's photos, or the server's trouble with them
        raise HTTPException(422 if isinstance(result.error, ImageError | NoFaceError) else 503, str(result.error))
    return {"distance": result.distance, "same": result.same, "probability": result.probability}
