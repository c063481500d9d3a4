"""Answers as rows of a Parquet table: a row a face; a row for an image without a face, and for one that failed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Answer(NamedTuple):
    """What came of an image of height × width px (upright, by ``exif_orientation``): boxes (N, 4) and landmarks
    (N, 5, 2) in px, scores (N,), embeddings (N, D), all float32, by descending score. ``reason`` and ``message`` say
    why there is none."""

    height: int = 0
    width: int = 0
    exif_orientation: int = 0
    damaged: bool = False
    boxes: NDArray[np.float32] = np.empty((0, 4), np.float32)
    scores: NDArray[np.float32] = np.empty(0, np.float32)
    landmarks: NDArray[np.float32] = np.empty((0, 5, 2), np.float32)
    embeddings: NDArray[np.float32] | None = None
    reason: str = ""
    message: str = ""


def schema(dimension: int) -> pa.Schema:
    """The columns of a part, with embeddings of so many dimensions."""
    return pa.schema(
        [
            pa.field("source", pa.string(), nullable=False),
            pa.field("image_index", pa.int32(), nullable=False),  # the image's place in its shard
            ("image_sha256", pa.string()),  # None: it could not be read
            ("image_height", pa.int32()),
            ("image_width", pa.int32()),
            ("exif_orientation", pa.int8()),
            ("damaged", pa.bool_()),
            ("face_index", pa.int32()),  # None: the image has no face, or failed
            ("box", pa.list_(pa.float32(), 4)),  # x1 y1 x2 y2, px
            ("landmarks", pa.list_(pa.float32(), 10)),  # x1 y1 … x5 y5, px
            ("score", pa.float32()),
            ("embedding", pa.list_(pa.float32(), dimension)),
            ("reason", pa.string()),  # None: it did not fail
            ("message", pa.string()),
        ]
    )


@dataclass(slots=True)
class Tally:
    """What came of images."""

    images: int = 0
    faces: int = 0
    without_face: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # by reason

    def add(self, answer: Answer) -> None:
        """Count an image."""
        self.images += 1
        self.faces += len(answer.scores)
        if answer.reason:
            self.failed[answer.reason] = self.failed.get(answer.reason, 0) + 1
        elif not len(answer.scores):
            self.without_face += 1

    def update(self, other: "Tally") -> None:
        """Count those of another tally."""
        self.images += other.images
        self.faces += other.faces
        self.without_face += other.without_face
        for reason, count in other.failed.items():
            self.failed[reason] = self.failed.get(reason, 0) + count

    @property
    def n_failed(self) -> int:
        """Images that failed, for whatever reason."""
        return sum(self.failed.values())


class Rows:
    """The rows of a shard's images, in their order."""

    def __init__(self, dimension: int) -> None:
        self.tally = Tally()
        self._dimension = dimension
        self._plain: list[tuple[Any, ...]] = []  # the columns that are no arrays
        self._arrays: dict[str, list[NDArray[np.float32]]] = {"box": [], "landmarks": [], "embedding": []}
        self._are_faces: list[bool] = []

    def add(self, source: str, sha256: str | None, answer: Answer) -> None:
        """An image's rows."""
        index = self.tally.images
        self.tally.add(answer)
        failed = bool(answer.reason)
        about = (None,) * 4 if failed else (answer.height, answer.width, answer.exif_orientation, answer.damaged)
        head = (source, index, sha256, *about)
        if failed or not len(answer.scores):
            self._plain.append((*head, None, None, answer.reason or None, answer.message or None))
            self._append(1, is_face=False)
            return
        for number, score in enumerate(answer.scores):
            self._plain.append((*head, number, float(score), None, None))
        assert answer.embeddings is not None
        count = len(answer.scores)
        self._append(count, answer.boxes, answer.landmarks.reshape(count, 10), answer.embeddings, is_face=True)

    def table(self, metadata: Mapping[str, str]) -> pa.Table:
        """All of them; ``metadata`` goes with the file."""
        columns = schema(self._dimension).with_metadata(dict(metadata))
        names = [name for name in columns.names if name not in self._arrays]
        plain = (
            dict(zip(names, zip(*self._plain, strict=True), strict=True)) if self._plain else dict.fromkeys(names, ())
        )
        missing = pa.array([not is_face for is_face in self._are_faces], pa.bool_())
        arrays = []
        for column in columns:
            if column.name in plain:
                arrays.append(pa.array(plain[column.name], column.type))
            else:
                values = np.concatenate([*self._arrays[column.name], np.empty((0, column.type.list_size), np.float32)])
                arrays.append(pa.FixedSizeListArray.from_arrays(values.ravel(), type=column.type, mask=missing))
        return pa.table(arrays, schema=columns)

    def _append(self, count: int, *arrays: NDArray[np.float32], is_face: bool) -> None:
        self._are_faces.extend([is_face] * count)
        widths = (4, 10, self._dimension)
        rows = arrays or [np.zeros((count, width), np.float32) for width in widths]
        for column, values in zip(self._arrays.values(), rows, strict=True):
            column.append(values)


def vectors(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float32]:
    """A column of fixed-size lists without nulls as (N, D) float32: the memory of the table itself where the column is
    one piece, else one copy of the whole. Raises ValueError where a row has none."""
    array = column
    if isinstance(column, pa.ChunkedArray):
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        raise ValueError("rows of images without a face have no vector: leave them out, as where face_index is null")
    values: NDArray[np.float32] = array.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(array), array.type.list_size)


def counted(table: pa.Table) -> Tally:
    """What a part's rows say of its images."""
    tally = Tally()
    for face, reason in zip(table["face_index"].to_pylist(), table["reason"].to_pylist(), strict=True):
        tally.images += not face  # None, or its first
        tally.faces += face is not None
        tally.without_face += face is None and reason is None
        if reason is not None:
            tally.failed[reason] = tally.failed.get(reason, 0) + 1
    return tally
