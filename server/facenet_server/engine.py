"""ONNX Runtime as the networks run on it: the device, the providers with their options, the sessions."""

import ctypes
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from facenet_server.errors import StartError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """How ONNX Runtime runs the networks: on which device ("auto", "cuda" or "cpu"), an embedder on how many threads
    of the CPU; on a GPU with how much memory for each session (0: no bound), whether in TF32, and with sessions up to
    how many rows, by the network's kind."""

    device: str
    threads: int
    gpu_mem_limit_mb: int = 0
    tf32: bool = False
    most_rows: Mapping[str, int] = field(default_factory=dict)


def execution_providers(engine: Engine) -> list[Any]:
    """The providers with their options, the preferred one first. Raises StartError where the device cannot be had."""
    cpu: tuple[str, dict[str, Any]] = ("CPUExecutionProvider", {})
    if engine.device == "cpu":
        return [cpu]
    missing = _missing_for_cuda()
    if missing is None:
        return [("CUDAExecutionProvider", cuda_options(engine)), cpu]
    if engine.device == "cuda":
        raise StartError(f"device cuda cannot be had: {missing}; start with --device cpu, or auto")
    _log.info("no CUDA (%s): the networks run on the CPU", missing)
    return [cpu]


def cuda_options(engine: Engine) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider."""
    options = {
        "use_tf32": str(int(engine.tf32)),
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE, the default, tries every algorithm on every new shape
        "arena_extend_strategy": "kSameAsRequested",  # not the next power of two: some twenty sessions share the memory
    }
    if engine.gpu_mem_limit_mb:
        options["gpu_mem_limit"] = str(engine.gpu_mem_limit_mb * 1_000_000)
    return options


def for_one_shape(providers: Sequence[Any], kind: str, precision: str) -> list[Any]:
    """The same providers for a session that only ever meets one shape, for which more planning pays."""
    options: dict[str, str] = {}
    if kind == "pnet_canvas":
        options["cudnn_conv_algo_search"] = "EXHAUSTIVE"  # in 0.76 to 0.85 of the time
    if precision == "fp16":
        options["prefer_nhwc"] = "1"  # the matrix units' layout: in half the time or less
    return [(name, {**given, **options} if name.startswith("CUDA") else given) for name, given in providers]


def hush_plans() -> None:
    """Keep ONNX Runtime from telling, as of an error, of each plan that cuDNN has not got: there is always another."""
    ort.set_default_logger_severity(4)


def open_session(data: bytes, providers: list[Any], threads: int) -> Any:
    """A session on a model's bytes; a run on the CPU has so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Where a run has several threads they spin between its operators, which is worth 10 to 20 %, but not after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if _products_overflow():  # then slower ones that cannot; elsewhere they would cost int8 its speed for nothing
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Its own fallback would hide a GPU's errors: at the start, and while it serves.
    return ort.InferenceSession(data, options, providers=providers, enable_fallback=0)


def _products_overflow() -> bool:
    """Whether sums of this processor's 8-bit products may overflow: on x86 without VNNI, or where nobody tells."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split() if cpuinfo.exists() else []
    return {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def _missing_for_cuda() -> str | None:
    """What keeps ONNX Runtime from CUDA, found without its noisy attempt; None where nothing does."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime is built without it; install onnxruntime-gpu"
    try:
        ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "windll") else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this machine"
    ort.preload_dlls()  # CUDA and cuDNN out of the nvidia wheels, where they are installed
    return None
