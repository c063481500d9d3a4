"""An embedder's forms in lower precision, unjudged.

int8 is ONNX's static form (QDQ): kernels per channel in int8, activations in uint8, which is what x86 multiplies
fastest. The last pooling, the dense layer and the norm cost nothing and stay float32. The form fp16 is for
accelerators.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from facenet_convert import crops, rewrites, verify
from facenet_convert.crops import Pixels

QUANTISED_OPS = ("Conv", "Relu", "Add", "Concat", "MaxPool", "Transpose")

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Goes through the items of long work, and says how far it is."""


class Form(NamedTuple):
    """A model, and a runner that computes what it will compute where it is served."""

    model: onnx.ModelProto
    run: verify.Runner


def int8(base: onnx.ModelProto, calibration: Pixels, track: Track) -> Form:
    """The trunk in 8 bits; each activation's range is what it takes on the calibration crops."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"  # given as files: given otherwise, the base would lose its constants
        onnx.save(base, file)
        quant_pre_process(file, file, skip_symbolic_shape=True)
        model = onnx.load(file)
        pixels = rewrites.fold_standardisation(model.graph)
        rewrites.fold_scales(model.graph)
        onnx.save(model, file)
        known = {value: [{"scale": scale, "zero_point": zero}] for value, (scale, zero) in pixels.items()}
        quantize_static(
            file,
            file,
            _Reader(track(crops.batches(calibration), "calibration crops")),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED_OPS),
            nodes_to_exclude=rewrites.head(model.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"TensorQuantOverrides": known},
        )
        quantised = onnx.load(file)
    rewrites.drop_unused_domains(quantised)
    return Form(quantised, verify.onnx_runner(quantised))


def fp16(base: onnx.ModelProto) -> Form:
    """The trunk in half precision."""
    halved, rounded = onnx.ModelProto(), onnx.ModelProto()
    halved.CopyFrom(base)
    rewrites.halve_trunk(halved.graph)
    rounded.CopyFrom(halved)
    rewrites.separate(rounded.graph)
    return Form(halved, verify.onnx_runner(rounded, optimised=False))


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Batches of crops as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[Pixels]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        """The next inputs, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}
