"""A worker process of a bulk run: it does shards by the server's own pipeline, one after the other.

    python -m facenet_bulk.worker

It reads lines of JSON from stdin: what to open, and then a shard a line. It writes lines to stdout: when it is ready,
each image that begins and ends, by its SHA-256, and each shard that is done. It ends where stdin does, as when the
process that started it is killed.
"""

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from facenet_server import inference
from facenet_server.build import Opened, Parts, open_in_process
from facenet_server.config import MIB, Config
from facenet_server.errors import ItemError, StartError
from facenet_server.models import manifest
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.pipeline import ByteBudget
from facenet_server.telemetry import process_memory
from facenet_server.telemetry.counters import Stats
from facenet_server.telemetry.error_id import log_error
from facenet_server.vision.options import DetectOptions, EmbedOptions, FaceSelection
from facenet_server.vision.sources import Encoded

from facenet_bulk.errors import BulkError
from facenet_bulk.output import Output, Record
from facenet_bulk.shard import Image, ordered, rows_of
from facenet_bulk.table import Answer

AT_ONCE = 8  # images a thread: their crops share batches
_GIVE_BACK_S = 10.0
REFUSED = Answer(
    reason="WORKER_CRASHED", message="the process that had this image ended, and another one that had it alone"
)

Tell = Callable[[Mapping[str, Any]], None]
Networks = Mapping[str, Any]


class PipelineEmbed:
    """The server's pipeline as what embeds a shard's images, so many at once. By their SHA-256, ``suspected`` ones have
    the process for themselves, and ``refused`` ones are not tried."""

    def __init__(
        self,
        opened: Opened,
        record: Record,
        tell: Tell,
        at_once: int,
        suspected: Collection[str] = frozenset(),
        refused: Collection[str] = frozenset(),
    ) -> None:
        options = dict(record.options)
        self._ignores_exif = not options.pop("apply_exif_orientation")
        faces = FaceSelection(options.pop("faces", "all"))
        self._options = EmbedOptions(DetectOptions(**options), faces, record.model.name)
        self._pipeline, self._tell, self._at_once = opened.pipeline, tell, at_once
        self._suspected, self._refused = suspected, refused
        self._turn, self._idle, self._n_running = asyncio.Lock(), asyncio.Event(), 0
        self._idle.set()

    def __call__(self, images: AsyncIterator[Image]) -> AsyncGenerator[tuple[Image, Answer]]:
        return ordered(self._answered, images, self._at_once)

    async def _answered(self, image: Image) -> tuple[Image, Answer]:
        if image.failure or image.sha256 in self._refused:
            answer = image.failure or REFUSED
            self._tell({"failed": answer.reason})
        elif image.sha256 in self._suspected:
            async with self._turn:
                await self._idle.wait()
                answer = await self._tracked(image)
        else:
            async with self._turn:  # behind one that is suspected
                self._n_running += 1
                self._idle.clear()
            try:
                answer = await self._tracked(image)
            finally:
                self._n_running -= 1
                if not self._n_running:
                    self._idle.set()
        return image._replace(data=b""), answer

    async def _tracked(self, image: Image) -> Answer:
        """Whoever started this process knows which images it has."""
        self._tell({"begun": image.sha256})
        answer = await self._embedded(image)
        self._tell({"ended": image.sha256, "failed": answer.reason})
        return answer

    async def _embedded(self, image: Image) -> Answer:
        encoded = Encoded(image.data, self._ignores_exif)
        try:
            (pixels,) = await self._pipeline.claimed_pixels([encoded])
            barrier = BatchBarrier(1, pixels=pixels)
            found = await self._pipeline.embed(encoded, self._options, ByteBudget(0), barrier)
        except ItemError as error:
            return Answer(reason=error.reason, message=str(error))
        except Exception:  # noqa: BLE001 (an image's failure is its own)
            return Answer(reason="INTERNAL", message=f"internal error {log_error('an image failed')}; see the log")
        boxes, scores, landmarks = (np.asarray(each, np.float32) for each in found.faces)
        about = (found.height, found.width, found.exif_orientation, found.damaged)
        return Answer(*about, boxes, scores, landmarks, found.embeddings)


class Worker:
    """``run`` does what it is told until stdin ends. Whoever needs other networks replaces what opens them."""

    embed: type[PipelineEmbed] = PipelineEmbed
    open_all: Callable[[Config], Networks] = staticmethod(inference.open_networks)
    open_files: Callable[[Config, list[str]], Networks] = staticmethod(inference.open_files)

    def __init__(self, lines: TextIO, told: TextIO) -> None:
        self._lines, self._told = lines, told
        self._jobs: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def run(self) -> None:
        """Open what the first line says, and do the shards of the others."""
        setup = json.loads(await asyncio.to_thread(self._lines.readline))
        loop = asyncio.get_running_loop()
        reading = asyncio.create_task(asyncio.to_thread(self._read, loop))
        try:
            if "record" in setup:
                await self._work(setup)
            else:
                self._tell(await asyncio.to_thread(self._about, _config(setup)))
        except (BulkError, OSError, StartError) as error:  # no image's: of the models, the list, the disk of OUT
            self._tell({"cannot": str(error)})
        except Exception:  # noqa: BLE001 (not passed on: the thread that reads would keep this process)
            traceback.print_exc()
            os._exit(1)
        await reading

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        for line in self._lines:
            loop.call_soon_threadsafe(self._jobs.put_nowait, json.loads(line))
        os._exit(0)  # whoever wanted the work has gone

    def _tell(self, what: Mapping[str, Any]) -> None:
        self._told.write(json.dumps(what) + "\n")
        self._told.flush()

    def _about(self, config: Config) -> dict[str, Any]:
        networks = self.open_all(config)
        infos = [asdict(info) for info in inference.infos_of(networks)]
        default, providers = manifest.stated_default(config.models), inference.providers_of(networks)
        return {"models": infos, "default": default, "providers": providers}

    async def _work(self, setup: dict[str, Any]) -> None:
        record = Record.of(setup["record"])
        config = replace(_config(setup), default_embedder=record.model.name)
        files = [*record.model.detector_sha256s.values(), record.model.onnx_sha256]
        parts = Parts(open_networks=partial(self.open_files, sha256s=files))  # type: ignore[call-arg]
        async with open_in_process(config, Stats(), parts, _lost) as opened, process_memory.given_back(_GIVE_BACK_S):
            process_memory.freeze_gc()
            self._tell({"ready": opened.providers})
            output = Output(setup["out"])
            listed = output.manifest()
            while True:
                job = await self._jobs.get()
                at_once = AT_ONCE * max(1, config.threads)
                suspected, refused = frozenset(job["suspected"]), frozenset(job["refused"])
                embed = self.embed(opened, record, self._tell, at_once, suspected, refused)
                shard, most = listed.shard(job["shard"]), config.image_mib * MIB
                rows = await rows_of(shard, record.source, embed, record.model.dimension, most)
                await asyncio.to_thread(output.write, job["shard"], rows, record)
                self._tell({"done": job["shard"], "tally": asdict(rows.tally)})


def _config(setup: Mapping[str, Any]) -> Config:
    """Raises StartError."""
    settings = {name: setup[name] for name in ("device", "threads", "image_formats")}
    config = Config(models=Path(setup["models"]), **settings).with_streams_for(None)
    config.check()
    return config


def _lost() -> None:
    """A process cannot get out of a poisoned CUDA context; another may do what this one had."""
    print("the device is lost: this worker ends", file=sys.stderr)  # noqa: T201 (its log is stderr)
    os._exit(1)


def main(kind: type[Worker] = Worker) -> None:
    """Run until stdin ends. Ctrl-C is the business of the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no line of ours
    process_memory.limit_heaps(1)
    asyncio.run(kind(sys.stdin, told).run())


if __name__ == "__main__":
    main()
