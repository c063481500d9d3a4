"""What a network's device can do to it: run out of memory, or be lost."""

from collections.abc import Callable
from typing import Any

import numpy as np

from facenet_server.errors import DeviceLost, Overloaded

Outputs = tuple[Any, ...]

# ONNX Runtime raises one class for all of these; what happened is in the text (CUDA's, cuDNN's, its own arena's).
_NO_MEMORY = (
    "failed to allocate memory",
    "is smaller than requested bytes",
    "out of memory",
    "cudnn_status_alloc_failed",
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, of cuDNN 9
    "cublas_status_alloc_failed",
)
_LOST = (
    "cuda failure 700",
    "cuda error 700",
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "cudnn_status_execution_failed",
    "cublas_status_execution_failed",
    "uncorrectable ecc",
    "gpu is lost",
    "cuda failure 999",
)
_RUNS_TO_RECOVER = 32
_NO_SHORTAGE = 512  # rows of a run


def is_no_memory(error: Exception) -> bool:
    """Whether an error of ONNX Runtime says that its device has no memory for a run."""
    text = str(error).lower()
    return any(sign in text for sign in _NO_MEMORY)


class FaultTolerantNetwork:
    """A network that goes on where it can.

    Where the device has no memory for a run, its rows run in halves, and later runs are as small until some dozens of
    them went well; then twice as large, and so on. A single row without memory is refused. A lost device stays lost:
    a process cannot get out of a poisoned CUDA context. ``on_lost`` is called then, in the thread that met it.

    Called as the network is, from any thread. Raises Overloaded, DeviceLost, and what else the network raises; what
    would end the thread comes as RuntimeError.
    """

    def __init__(self, net: Callable[..., Outputs], on_lost: Callable[[], object]) -> None:
        self._net = net
        self._on_lost = on_lost
        self._most_rows: int | None = None  # of a run, while memory is short
        self._went_well = 0
        self._is_lost = False

    def __call__(self, *inputs: Any) -> Outputs:
        most_rows = self._most_rows  # once: other threads change it
        return self._run(inputs) if most_rows is None else self._in_runs(inputs, most_rows)

    def _in_runs(self, inputs: tuple[Any, ...], most_rows: int) -> Outputs:
        starts = range(0, len(inputs[0]), most_rows)
        outputs = [self._run(tuple(rows[start : start + most_rows] for rows in inputs)) for start in starts]
        return tuple(map(np.concatenate, zip(*outputs, strict=True)))

    def _run(self, inputs: tuple[Any, ...]) -> Outputs:
        if self._is_lost:
            raise DeviceLost
        try:
            outputs = self._net(*inputs)
        except Exception as error:
            text = str(error).lower()
            if any(sign in text for sign in _LOST):
                self._is_lost = True
                self._on_lost()
                raise DeviceLost from error
            if is_no_memory(error):
                return self._in_halves(inputs, error)
            raise
        except BaseException as error:
            raise RuntimeError(f"a network's thread was to end: {error!r}") from error
        if (most_rows := self._most_rows) is not None:
            self._recover(most_rows)
        return outputs

    def _in_halves(self, inputs: tuple[Any, ...], error: Exception) -> Outputs:
        n_rows = len(inputs[0])
        if n_rows == 1:
            raise Overloaded("the device has no memory for it now") from error
        self._most_rows, self._went_well = n_rows // 2, 0
        return self._in_runs(inputs, n_rows // 2)

    def _recover(self, most_rows: int) -> None:
        self._went_well += 1
        if self._went_well >= _RUNS_TO_RECOVER:
            self._most_rows, self._went_well = 2 * most_rows if most_rows <= _NO_SHORTAGE else None, 0
