"""Row counts of runs on a GPU: a few, and each in a session of its own, which never meets another shape.

cuDNN plans a convolution for one shape, and ONNX Runtime keeps no plan but the last. On an H200, a batch of another
size than the one before costs R-Net and O-Net 7 to 14 ms, and FaceNet in half precision 600 ms. The run itself takes
less than 4 ms. So rows are padded with zeros up to the next batch-size bucket.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facenet_server.models.fault_tolerance import is_no_memory

_STEP = 4  # from bucket to bucket

_log = logging.getLogger(__name__)

Rows = NDArray[Any]


class BatchSizeBuckets:
    """Sessions by the number of rows that each one runs; called as one ``onnxruntime.InferenceSession`` is."""

    def __init__(self, sessions: Mapping[int, Any]) -> None:
        self._sessions = dict(sorted(sessions.items()))
        self.sizes = list(self._sessions)

    def get_providers(self) -> Sequence[str]:
        """Where they run."""
        providers: Sequence[str] = self._sessions[self.sizes[0]].get_providers()
        return providers

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Rows]) -> list[Rows]:
        """The named outputs (N, …) for inputs (N, …), with N up to the highest bucket."""
        count = len(next(iter(inputs.values())))
        bucket = self.sizes[bisect_left(self.sizes, count)]
        answers = self._sessions[bucket].run(outputs, {name: _padded(rows, bucket) for name, rows in inputs.items()})
        return [rows[:count] for rows in answers]


def open_buckets(
    most_rows: int, open_one: Callable[[], Any], warm_up: Callable[[Any, int], object]
) -> BatchSizeBuckets:
    """Buckets up to so many rows: from the smallest on, each one's session is opened, and run once on as many rows.

    Where the device has no memory for one, the buckets end below it. Raises what ``open_one`` or ``warm_up`` raise
    else, and what they raise for the smallest.
    """
    sizes = [most_rows]
    while sizes[0] > 1:
        sizes.insert(0, -(-sizes[0] // _STEP))
    sessions: dict[int, Any] = {}
    for bucket in sizes:
        try:
            session = open_one()
            warm_up(session, bucket)
        except Exception as error:
            if not sessions or not is_no_memory(error):
                raise
            _log.warning("no memory on the device for runs of %d rows: %d are the most", bucket, max(sessions))
            break
        sessions[bucket] = session
    return BatchSizeBuckets(sessions)


def _padded(rows: Rows, count: int) -> Rows:
    if len(rows) == count:
        return rows
    padded = np.zeros((count, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded
