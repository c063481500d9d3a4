"""ONNX Runtime as the networks run on it: the device, the providers with their options, the sessions."""

import ctypes
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from facenet_server.errors import StartError
from facenet_server.models.contract import ModelInfo

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_INSTALL = 'pip install "facenet-serve[cuda]"'
_CPU_BUILD = f"this onnxruntime is built without CUDA: pip uninstall onnxruntime, then {_INSTALL}"
_CUDNN = "libcudnn.so.9"  # which the provider opens when it meets a convolution
_NEEDED = re.compile(rb"(?<=\0)lib(?:cu|nv)\w+\.so[.\d]+(?=\0)")  # an entry of its dynamic section's strings
_STRINGS_WITHIN = 1 << 20  # of its file, bytes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """How ONNX Runtime runs the networks.

    ``device`` is "auto", "cuda" or "cpu". ``threads`` are those of an embedder on the CPU. The others are for a GPU.
    ``gpu_mem_limit_mb`` is the memory of each session (0: no bound), ``tf32`` whether it computes in TF32.
    ``most_rows``, by the network's kind, are the most rows that a session is made for.
    """

    device: str
    threads: int
    gpu_mem_limit_mb: int = 0
    tf32: bool = False
    most_rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuda:
    """What a machine has of what CUDA takes.

    ``driver``: the NVIDIA driver's answer to ``cuInit``, 0 where it has a GPU to offer; None without a driver.
    ``has_provider``: whether ONNX Runtime is built with its CUDA provider. ``unloadable``: the libraries that the
    provider needs and the system does not find.
    """

    driver: int | None
    has_provider: bool
    unloadable: tuple[str, ...] = ()

    @property
    def has_gpu(self) -> bool:
        """Whether there seems to be a GPU: with a driver that says otherwise, somebody hid or removed it."""
        return self.driver not in (None, _NO_DEVICE)


def execution_providers(engine: Engine, cuda: Cuda | None = None, runtimes: Sequence[str] | None = None) -> list[Any]:
    """The providers with their options, the preferred one first. ``cuda``, ``runtimes``: what there is, where that is
    known. Raises StartError where the device cannot be had."""
    cpu: tuple[str, dict[str, Any]] = ("CPUExecutionProvider", {})
    clash = clash_of(installed_runtimes() if runtimes is None else runtimes)
    if clash:
        _log.warning("%s", clash)
    if engine.device == "cpu":
        return [cpu]
    cuda = cuda or find_cuda()
    missing = missing_for(cuda, clash)
    if missing is None:
        return [("CUDAExecutionProvider", cuda_options(engine)), cpu]
    if engine.device == "cuda":
        raise StartError(f"device cuda cannot be had: {missing}; --device cpu does without")
    _log.log(logging.WARNING if cuda.has_gpu else logging.INFO, "the networks run on the CPU: %s", missing)
    return [cpu]


def missing_for(cuda: Cuda, clash: str | None = None) -> str | None:
    """What keeps ONNX Runtime from a GPU, and what to do; None where nothing does."""
    if cuda.driver is None:
        return "no NVIDIA driver on this machine"
    if cuda.driver == _NO_DEVICE:
        return "the NVIDIA driver shows no GPU (is one there, and does CUDA_VISIBLE_DEVICES name it?)"
    if cuda.driver:
        return f"the NVIDIA driver cannot be used (cuInit: error {cuda.driver}); see what nvidia-smi says"
    if not cuda.has_provider:
        return clash or f"a GPU is there, but {_CPU_BUILD}"
    if cuda.unloadable:
        return f"a GPU is there, but not the libraries {', '.join(cuda.unloadable)}: {_INSTALL}"
    return None


def clash_of(runtimes: Sequence[str]) -> str | None:
    """What is wrong with so many distributions of ONNX Runtime, and what to do; None where nothing is."""
    if len(runtimes) < 2:
        return None
    return (
        f"{' and '.join(runtimes)} are both installed: the later one has overwritten files of the other. Keep "
        f"onnxruntime-gpu alone, which serves CPUs, too: pip uninstall {' '.join(runtimes)}, then "
        'pip install "facenet-serve[server]", or "facenet-serve[cuda]" for a GPU'
    )


def installed_runtimes() -> list[str]:
    """The distributions of ONNX Runtime that are installed, of those that are installed into the same folder."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            found.append(distribution(name).name)
    return found


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


def silence_missing_plans() -> None:
    """Keep ONNX Runtime from telling, as of an error, of each plan that cuDNN has not got: there is always another."""
    ort.set_default_logger_severity(4)


def open_session(data: bytes, providers: list[Any], threads: int) -> Any:
    """A session on a model's bytes; a run on the CPU has so many threads."""
    options = ort.SessionOptions()
    if len(providers) == 1:  # the CPU's alone
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Where a run has several threads they spin between its operators, which is worth 10 to 20 %, but not after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if _products_overflow():  # then slower ones that cannot; elsewhere they would cost int8 its speed for nothing
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Its own fallback would hide a GPU's errors: at the start, and while it serves.
    session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
    session._model_bytes = None  # kept for that fallback alone: as large as the weights
    return session


@cache
def _share_arena() -> None:
    """Have all sessions of this process take the CPU's memory from one arena, which is as large as the largest run, not
    from one of each."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def _products_overflow() -> bool:
    """Whether sums of this processor's 8-bit products may overflow: on x86 without VNNI, or where nobody tells."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split() if cpuinfo.exists() else []
    return {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def find_cuda() -> Cuda:
    """What this machine has, found without ONNX Runtime's own attempt, which prints errors and goes on without."""
    driver, has_provider = _driver(), "CUDAExecutionProvider" in ort.get_available_providers()
    if driver != 0 or not has_provider:
        return Cuda(driver=driver, has_provider=has_provider)
    with redirect_stdout(StringIO()):  # it prints what it does not find
        ort.preload_dlls()  # CUDA and cuDNN out of the nvidia wheels, where they are installed
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return Cuda(driver=driver, has_provider=True, unloadable=unloadable(needed_libraries(provider)))


def needed_libraries(provider: Path) -> list[str]:
    """The libraries of CUDA that the provider's file names, and cuDNN; none where there is no such file (Windows).

    The file itself cannot be loaded to see: it must find ONNX Runtime ready for it.
    """
    if not provider.exists():
        return []
    names = _NEEDED.findall(np.fromfile(provider, np.uint8, _STRINGS_WITHIN).tobytes())
    return [*dict.fromkeys(name.decode() for name in names), _CUDNN]


def unloadable(libraries: Sequence[str]) -> tuple[str, ...]:
    """Those of the libraries that the system cannot load. The others stay loaded."""
    missing = []
    for name in libraries:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return tuple(missing)


def _driver() -> int | None:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "windll") else "libcuda.so.1")
    except OSError:
        return None
    return int(driver.cuInit(0))


class Network:
    """One model in ONNX Runtime: rows in, one array per output (in its kind's order) out.

    Thread-safe. ``providers`` are the execution providers really in use. Where ``slice_rows`` is given, a batch is run
    in slices of that many rows, the last of what is left.
    """

    def __init__(self, info: ModelInfo, session: Any, slice_rows: int | None = None) -> None:
        self.info = info
        self._slice_rows = slice_rows
        self.providers: Sequence[str] = session.get_providers()
        self._session = session
        self._inputs = list(info.ports.inputs)
        self._outputs = list(info.ports.outputs)

    @property
    def on_cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return "CUDAExecutionProvider" in self.providers

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch: arrays with first dimension N, in the order of its kind's inputs → arrays with N."""
        count = len(inputs[0])
        size = self._slice_rows or count
        slices = [slice(start, start + size) for start in range(0, count, size)]
        runs = [self._run([rows[some] for rows in inputs]) for some in slices]
        outputs = runs[0] if len(runs) == 1 else tuple(map(np.concatenate, zip(*runs, strict=True)))
        if any(len(output) != len(inputs[0]) for output in outputs):
            raise RuntimeError(f"{self.info.name} answered {len(outputs[0])} rows for {len(inputs[0])}")
        return outputs

    def _run(self, inputs: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], ...]:
        return tuple(self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True))))
