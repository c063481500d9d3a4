"""Embed a folder with two processes, into parts; run again, it goes on: python examples/bulk.py FOLDER OUT"""

import multiprocessing
import sys
from functools import partial
from pathlib import Path

import numpy as np
from facenet_client import Client, Detection, TemporaryError

PROCESSES, PHOTOS_A_PART = 2, 500


def embed(out: Path, part: tuple[int, list[str]]) -> str:
    """In a worker, with a client of its own. Each part is a file, which is there once it is whole."""
    number, paths = part
    photos: list[Detection] = []
    with Client("127.0.0.1:50051", timeout_s=60) as client:
        while len(photos) < len(paths):
            try:
                for photo in client.embed_stream(paths[len(photos) :]):
                    photos.append(photo)
            except TemporaryError:  # what was answered is kept
                client.wait_until_ready(600)
    faces = [(path, face.embedding) for path, photo in zip(paths, photos, strict=True) for face in photo.faces]
    names, vectors = [path for path, _ in faces], [np.asarray(embedding) for _, embedding in faces]
    errors = [f"{path}: {photo.error}" for path, photo in zip(paths, photos, strict=True) if photo.error]
    models = sorted({embedding.model for _, embedding in faces if embedding})
    np.savez(out / f"{number}.part.npz", names=names, vectors=vectors, errors=errors, models=models)
    (out / f"{number}.part.npz").rename(out / f"{number}.npz")
    return "\n".join([*errors, f"part {number}: {len(paths)} photos, {len(faces)} faces, {len(errors)} errors"])


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    found = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    parts = [(n, found[n : n + PHOTOS_A_PART]) for n in range(0, len(found), PHOTOS_A_PART)]
    todo = [part for part in parts if not (out / f"{part[0]}.npz").exists()]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:  # not a fork: see docs/services.md
        for told in pool.imap_unordered(partial(embed, out), todo):
            print(told, flush=True)
