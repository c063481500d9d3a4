"""Questions about files to a server: many in flight, answers one by one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import click

from facenet_client import Detection, Embedding, ModelInfo, ServerInfo

T = TypeVar("T", Detection, Embedding)
_WRONG_FOR_ALL = {"OPTION_OUT_OF_RANGE", "UNKNOWN_MODEL"}


def answers(ask: Callable[[Iterable[Path]], Iterator[T]], files: Iterable[Path]) -> Iterator[tuple[Path, T]]:
    """Each file with its answer, as answers come; ``files`` is advanced ahead of them, in another thread.

    Raises CallError, and the OptionError of an option that suits no image.
    """
    sent: deque[Path] = deque()

    def noted() -> Iterator[Path]:
        for file in files:
            sent.append(file)
            yield file

    for answer in ask(noted()):
        file = sent.popleft()
        if answer.error is not None and answer.error.reason in _WRONG_FOR_ALL:
            raise answer.error
        if answer.error is not None and answer.error.reason == "RESPONSE_TOO_LARGE":
            (answer,) = ask([file])  # its crops did not fit beside those of its message's other images
        yield file, answer


def embedder(server: ServerInfo, name: str | None) -> ModelInfo:
    """The embedder of this name, by default the server's default one. Raises BadParameter."""
    name = name or server.default_embedder
    embedders = {model.name: model for model in server.models if model.dimension}
    if name not in embedders:
        raise click.BadParameter(f"the server has no embedder {name!r}; it has {', '.join(sorted(embedders))}")
    return embedders[name]


def threshold(model: ModelInfo, given: float | None, option: str, point: str | None, preferred: str) -> float:
    """The L2 distance given, or that of the operating point given; by default that of the preferred one, or of the
    strictest where a small calibration lacks it.

    Raises UsageError where the model has none.
    """
    if given is not None:
        return given
    points = {point.name: point.threshold for point in model.calibration.operating_points} if model.calibration else {}
    if not points:
        raise click.UsageError(f"{model.name} is uncalibrated: give {option}")
    name = point or (preferred if preferred in points else min(points, key=points.__getitem__))
    if name not in points:
        raise click.UsageError(f"{model.name} has no operating point {name}; it has {', '.join(points)}")
    return points[name]
