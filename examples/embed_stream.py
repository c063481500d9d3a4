"""Embed a folder of any size, asynchronously, in bounded memory: python examples/embed_stream.py FOLDER"""

import asyncio
import sys
from pathlib import Path

import numpy as np
from facenet_client import AsyncClient, CallError


async def main(files: list[Path]) -> None:
    async with AsyncClient("127.0.0.1:50051", timeout_s=60) as client:
        number = 0
        try:
            async for photo in client.embed_stream(files, faces="largest"):
                vectors = [np.asarray(face.embedding) for face in photo.faces]
                print(files[number].name, photo.error or [vector.shape for vector in vectors])
                number += 1
        except CallError as error:
            sys.exit(f"no answer after {number} photos: {error}")


asyncio.run(main(sorted(Path(sys.argv[1]).iterdir())))
