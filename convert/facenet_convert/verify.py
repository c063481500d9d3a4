"""The proof that an exported graph computes what the TensorFlow original computes.

Both run on the same inputs, random ones and crops of two public-domain portraits, at several batch sizes;
the largest absolute difference of any output must stay within TOLERANCE.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import matplotlib.cbook
import numpy as np
import onnx
import onnxruntime as ort
import skimage.data
from onnx import numpy_helper
from PIL import Image

from facenet_convert.errors import ParityError

TOLERANCE = 1e-5
BATCH_SIZES = (1, 2, 7, 32)

Runner = Callable[[np.ndarray], dict[str, np.ndarray]]

_FACE_BOXES = {"astronaut": (180, 60, 268, 174), "grace_hopper": (177, 118, 357, 338)}
"""Where MTCNN finds the faces of the portraits: x1 y1 x2 y2, px."""


def onnx_runner(model: onnx.ModelProto, *, optimised: bool = True) -> Runner:
    """Run a model in ONNX Runtime on CPU, the kernels its graph was not built with; its nodes as they are, unless
    ``optimised``."""
    run = _onnx(model, optimised)
    return lambda image: run(image=image)


def canvas_runner(model: onnx.ModelProto) -> Runner:
    """Run P-Net over canvases: each image in the corner of a larger one full of noise, the outputs cropped to its."""
    run = _onnx(model)

    def run_on_canvas(image: np.ndarray) -> dict[str, np.ndarray]:
        batch, height, width, _ = image.shape
        canvas = np.random.default_rng(height).integers(0, 256, (batch, height + 7, width + 20, 3), dtype=np.uint8)
        canvas[:, :height, :width] = image
        outputs = run(image=canvas, valid=np.full((batch, 2), (height, width), np.int32))
        rows, columns = ((side - 1) // 2 - 4 for side in (height, width))
        return {name: output[:, :rows, :columns] for name, output in outputs.items()}

    return run_on_canvas


def open_session(model: onnx.ModelProto, optimised: bool = True) -> Any:
    """A session on the CPU, whose 8-bit products cannot overflow: on x86 without VNNI only slower ones do not."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _onnx(model: onnx.ModelProto, optimised: bool = True) -> Callable[..., dict[str, np.ndarray]]:
    session = open_session(model, optimised)
    names = [output.name for output in session.get_outputs()]
    return lambda **inputs: dict(zip(names, session.run(names, inputs), strict=True))


def verify(
    name: str, exported: Runner, original: Runner, inputs: Callable[[int], Iterator[np.ndarray]]
) -> dict[int, float]:
    """The largest |Δ| over all outputs, by batch size.

    ``inputs(batch)`` yields the inputs of one batch size. Raises ParityError over TOLERANCE, or where names
    or shapes of the outputs differ.
    """
    worst: dict[int, float] = {}
    for batch in BATCH_SIZES:
        deltas = [_difference(name, exported(image), original(image)) for image in inputs(batch)]
        worst[batch] = float(np.max(deltas))  # unlike max, it lets no NaN get lost
        if not worst[batch] <= TOLERANCE:
            raise ParityError(
                f"{name}: at batch size {batch} the ONNX graph differs from TensorFlow by {worst[batch]:.2e}, "
                f"more than {TOLERANCE:.0e}. No model was written."
            )
    return worst


def check_weights(name: str, model: onnx.ModelProto, weights: Sequence[np.ndarray]) -> None:
    """Every matrix and kernel of the source must be in one of the exported graph, number for number, in whatever
    order and company.

    Outputs alone do not show one small weight of a hundred thousand that is slightly off. Raises ParityError.
    """
    exported = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    for number, array in enumerate(weights):
        is_kernel = array.size > array.shape[-1]  # a bias or slope that is off shows in every output
        if is_kernel and not any(_holds(whole, array) for whole in exported):
            raise ParityError(
                f"{name}: array {number} of the source, {array.shape}, is not in the ONNX graph as it was"
            )


def _holds(whole: np.ndarray, part: np.ndarray) -> bool:
    """Whether all numbers of ``part`` are in ``whole``, as often."""
    if whole.size < part.size:
        return False
    values, counts = np.unique(whole, return_counts=True)
    wanted, times = np.unique(part, return_counts=True)
    at = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    return bool(np.all((values[at] == wanted) & (counts[at] >= times)))


def window_inputs(side_px: int, dtype: type[np.generic]) -> Callable[[int], Iterator[np.ndarray]]:
    """Square inputs of one size: noise, then windows around the portraits' faces, as a detector cuts them."""

    def inputs(batch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(batch)
        yield rng.integers(0, 256, (batch, side_px, side_px, 3)).astype(dtype)
        yield np.stack([face_window(rng, side_px) for _ in range(batch)]).astype(dtype)

    return inputs


def level_inputs(batch: int) -> Iterator[np.ndarray]:
    """P-Net's inputs: pyramid levels of several sizes, the smallest and odd ones among them."""
    rng = np.random.default_rng(batch)
    for height, width in [(12, 12), (13, 30), (97, 64)]:
        yield rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    for portrait in portraits().values():
        scale = rng.uniform(0.1, 0.3)
        height, width = (int(side * scale) for side in portrait.shape[:2])
        level = np.asarray(Image.fromarray(portrait).resize((width, height), Image.Resampling.BOX))
        yield np.stack([np.roll(level, shift, axis=1) for shift in range(batch)])


@cache
def portraits() -> dict[str, np.ndarray]:
    """Two public-domain portraits by NASA and the US Navy, which packages carry: (H, W, 3) uint8 RGB."""
    hopper = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return {"astronaut": skimage.data.astronaut(), "grace_hopper": np.asarray(hopper.convert("RGB"))}


def face_window(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """A square around one of the portraits' faces, moved and scaled at random, (side, side, 3) uint8 RGB."""
    name = str(rng.choice(sorted(_FACE_BOXES)))
    x1, y1, x2, y2 = _FACE_BOXES[name]
    size = max(x2 - x1, y2 - y1) * rng.uniform(0.8, 1.25)
    centre_x = (x1 + x2) / 2 + rng.uniform(-0.1, 0.1) * size
    centre_y = (y1 + y2) / 2 + rng.uniform(-0.1, 0.1) * size
    left, top, side = round(centre_x - size / 2), round(centre_y - size / 2), round(size)
    image = Image.fromarray(portraits()[name]).crop((left, top, left + side, top + side))
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR))


def _difference(name: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    shapes = [{key: value.shape for key, value in outputs.items()} for outputs in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ParityError(f"{name}: the ONNX graph gives {shapes[0]}, TensorFlow {shapes[1]}")
    deltas: list[Any] = [np.abs(ours[key].astype(np.float64) - theirs[key]).max() for key in theirs]
    return float(np.max(deltas))
