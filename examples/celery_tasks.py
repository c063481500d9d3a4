"""Embeddings of photos in Celery's workers: celery -A celery_tasks worker"""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from facenet_client import Client, ItemError, TemporaryError

app = Celery("celery_tasks", broker=os.environ.get("BROKER_URL"), backend=os.environ.get("RESULT_BACKEND"))
client = Client("127.0.0.1:50051", timeout_s=30)


@worker_process_init.connect
def open_client(**_: Any) -> None:
    client.open()  # in the worker, after its fork


@worker_process_shutdown.connect
def close_client(**_: Any) -> None:
    client.close()


@app.task(autoretry_for=(TemporaryError,), retry_backoff=True, max_retries=5, throws=(ItemError,))
def embed(path: str) -> list[list[float]]:
    """The embedding of each face; an ItemError, raised, is the task's failure and names the reason."""
    (photo,) = client.embed([path])
    if photo.error is not None:
        raise photo.error
    return [face.embedding.vector.tolist() for face in photo.faces if face.embedding is not None]
