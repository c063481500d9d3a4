import threading

import numpy as np
import onnxruntime as ort
import pytest
from facenet_server.errors import DeviceLost, Overloaded
from facenet_server.models.fault_tolerance import FaultTolerantNetwork, is_no_memory
from facenet_server.serving.batcher import Batcher
from onnx import TensorProto, helper

NO_MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
    "Failed to allocate memory for requested buffer of size 104857600"
)
NO_ROOM = (  # of ONNX Runtime 1.31 on an H200, with a memory limit
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Cast node. Name:'Cast' Status "
    "Message: bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Available memory of 11868160 is smaller than requested bytes of 39321600"
)
CUDNN_9 = "CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0 ; hostname=h"
LOST = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=cudaStreamSynchronize"


class Device:
    """A net that doubles its rows, with memory for so many; it remembers its runs."""

    def __init__(self, room: int = 1000, text: str = NO_MEMORY) -> None:
        self.room = room
        self._text = text
        self.runs: list[int] = []
        self.error: BaseException | None = None

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.error is not None:
            raise self.error
        if len(rows) > self.room:
            raise RuntimeError(self._text)
        self.runs.append(len(rows))
        return (rows * 2,)


def rows(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)[:, np.newaxis]


def nobody() -> None:
    raise AssertionError("the device is not lost")


@pytest.mark.parametrize("text", [NO_MEMORY, NO_ROOM, CUDNN_9])
def test_without_memory_for_all_rows_they_run_in_parts(text: str) -> None:
    device = Device(room=5, text=text)
    (doubled,) = FaultTolerantNetwork(device, nobody)(rows(16))
    np.testing.assert_array_equal(doubled, rows(16) * 2)
    assert device.runs == [4] * 4


def widest(side: int) -> bytes:
    """A model that repeats each number (N, 1) so many times, and answers (N,) the largest of them."""
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["wide"]),
            helper.make_node("ReduceMax", ["wide", "axes"], ["y"], keepdims=0),
        ],
        "widest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [1, side]),
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def test_a_real_arena_that_is_full_is_told_by_its_words() -> None:
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(64 << 20, -1, -1, -1))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 4
    session = ort.InferenceSession(widest(1 << 20), options, providers=["CPUExecutionProvider"])

    def net(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(session.run(["y"], {"x": rows}))

    with pytest.raises(Exception, match="BFCArena") as error:
        net(rows(32))  # 128 MB
    assert is_no_memory(error.value)
    (largest,) = FaultTolerantNetwork(net, nobody)(rows(32))
    np.testing.assert_array_equal(largest, rows(32)[:, 0])


def test_after_that_runs_are_small_and_grow_again_once_they_go_well() -> None:
    device = Device(room=5)
    net = FaultTolerantNetwork(device, nobody)
    net(rows(16))
    device.room, device.runs = 1000, []
    net(rows(16))
    assert device.runs == [4] * 4
    for _ in range(100):
        net(rows(16))
    assert device.runs[-1] == 16


def test_a_row_without_memory_is_refused_and_served_later() -> None:
    device = Device(room=0)
    net = FaultTolerantNetwork(device, nobody)
    with pytest.raises(Overloaded):
        net(rows(2))
    device.room = 10
    (doubled,) = net(rows(2))
    np.testing.assert_array_equal(doubled, rows(2) * 2)


def test_a_lost_device_is_told_once_and_stays_lost() -> None:
    device, told = Device(), []
    net = FaultTolerantNetwork(device, lambda: told.append(threading.current_thread()))
    device.error = RuntimeError(LOST)
    with pytest.raises(DeviceLost):
        net(rows(1))
    device.error = None  # a poisoned context would not come back, either
    with pytest.raises(DeviceLost):
        net(rows(1))
    assert len(told) == 1


async def test_what_would_end_a_worker_fails_its_call_and_the_next_is_served() -> None:
    device = Device()
    async with Batcher(FaultTolerantNetwork(device, nobody), 8) as batcher:
        for ending in (SystemExit(1), KeyboardInterrupt(), MemoryError()):
            device.error = ending
            with pytest.raises((RuntimeError, MemoryError)):
                await batcher(rows(1))
            device.error = None
            (doubled,) = await batcher(rows(3))
            np.testing.assert_array_equal(doubled, rows(3) * 2)
