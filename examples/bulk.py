"""Embed a folder with two processes, to a file of vectors: python examples/bulk.py FOLDER OUT.npz"""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
from facenet_client import Client

PROCESSES = 2


def embed(paths: list[str]) -> list[tuple[str, list[np.ndarray], str]]:
    """In a worker, with a client of its own: each path with its faces' vectors, or why it has none."""
    with Client("127.0.0.1:50051", timeout_s=60) as client:
        photos = list(client.embed_stream(paths))
    return [
        (path, [np.asarray(face.embedding) for face in photo.faces], str(photo.error or ""))
        for path, photo in zip(paths, photos, strict=True)
    ]


if __name__ == "__main__":
    found = sorted(str(path) for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:  # gRPC does not survive a fork
        answers = [
            answer for part in pool.map(embed, [found[n::PROCESSES] for n in range(PROCESSES)]) for answer in part
        ]
    for path, vectors, error in answers:
        print(path, error or f"{len(vectors)} faces")
    names = [path for path, vectors, _ in answers for _ in vectors]
    np.savez(sys.argv[2], names=names, vectors=[vector for _, vectors, _ in answers for vector in vectors])
