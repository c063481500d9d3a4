"""From an embedder's fp32 form to one in int8 or fp16: made, measured against it, judged, described.

int8 is ONNX's static form (QDQ): kernels per channel in int8, activations in uint8, which is what x86 multiplies
fastest; the last pooling, the dense layer and the norm cost nothing and stay float32. fp16 is for accelerators.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from facenet_convert import calibrate, crops, gate, interchange, metadata, rewrites, verify
from facenet_convert.crops import Material, Pixels
from facenet_convert.errors import SourceError
from facenet_convert.pairs import Pairs, Vectors, accuracy

QUANTISED_OPS = ("Conv", "Relu", "Add", "Concat", "MaxPool", "Transpose")

T = TypeVar("T")

Track = Callable[[Sequence[T], str], Iterable[T]]
"""Goes through the items of long work, and says how far it is."""


class Quantised(NamedTuple):
    """A model that passed the gate, its name, and in words what was measured."""

    model: onnx.ModelProto
    name: str
    told: list[str]


def quantise(
    base: onnx.ModelProto, precision: str, material: Material, pairs: Pairs | None, track: "Track[Any]"
) -> Quantised:
    """The base in another precision. Raises SourceError for what is no fp32 embedder, and PrecisionError where it loses
    too much."""
    about = _about(base)
    name = f"{about['name']}-{precision}"
    model = int8(base, material.calibration, track) if precision == "int8" else fp16(base)
    _check_contract(model, base)
    runners = [verify.onnx_runner(form) for form in (base, model)]
    fp32, other = _embed(runners, track(crops.batches(material.held_out), "held-out crops"))
    seen = gate.fidelity(fp32, other)
    told = [
        f"cosine to fp32 on {seen.n_crops} held-out crops: mean {seen.cosine_mean:.5f}, worst {seen.cosine_worst:.5f}"
    ]
    gate.check_fidelity(seen, precision)
    facts: dict[str, object] = {
        "name": name,
        "precision": precision,
        "base": about["name"],
        "cosine_mean": seen.cosine_mean,
        "cosine_worst": seen.cosine_worst,
        "held_out_crops": seen.n_crops,
        "parity_max_abs_diff": seen.max_abs_diff,
    }
    if precision == "int8":
        facts["ranges"] = material.origin
    if pairs is not None:
        facts |= _on_pairs(about, runners, pairs, track, told)
    metadata.stamp_derived(model, about, facts)
    return Quantised(model, name, told)


def int8(base: onnx.ModelProto, calibration: Pixels, track: "Track[Any]") -> onnx.ModelProto:
    """The trunk in 8 bits; each activation's range is what it takes on the calibration crops."""
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = (Path(folder) / name for name in ("prepared.onnx", "quantised.onnx"))
        quant_pre_process(base, str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        known = rewrites.fold_standardisation(model.graph)
        rewrites.fold_scales(model.graph)
        quantize_static(
            model,
            quantised,
            _Reader(track(crops.batches(calibration), "calibration crops")),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED_OPS),
            nodes_to_exclude=rewrites.head(model.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "TensorQuantOverrides": {
                    value: [{"scale": scale, "zero_point": zero_point}] for value, (scale, zero_point) in known.items()
                }
            },
        )
        return onnx.load(quantised)


def fp16(base: onnx.ModelProto) -> onnx.ModelProto:
    """The trunk in half precision."""
    model = onnx.ModelProto()
    model.CopyFrom(base)
    rewrites.halve_trunk(model.graph)
    return model


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Batches of crops as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[Pixels]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        """The next inputs, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _about(base: onnx.ModelProto) -> Mapping[str, str]:
    found = {prop.key: prop.value for prop in base.metadata_props}
    if found.get("kind") != "embedder" or found.get("format") != metadata.FORMAT:
        raise SourceError("this is no embedder of this version: make one with `facenet-convert facenet`")
    if "base" in found:
        raise SourceError(f"{found['name']} is {found['precision']} already: give its fp32 form, {found['base']}")
    return found


def _check_contract(model: onnx.ModelProto, base: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    for theirs, ours in zip(
        [*base.graph.input, *base.graph.output], [*model.graph.input, *model.graph.output], strict=True
    ):
        if theirs != ours:
            raise SourceError(f"{theirs.name} has become {ours}: this graph cannot be made so")


def _embed(runners: Sequence[verify.Runner], batches: Iterable[Pixels]) -> list[Vectors]:
    """The embeddings by each runner, (N, D) float64."""
    rows = [[runner(batch)["embedding"] for runner in runners] for batch in batches]
    return [np.concatenate(column).astype(np.float64) for column in zip(*rows, strict=True)]


def _on_pairs(
    about: Mapping[str, str], runners: Sequence[verify.Runner], pairs: Pairs, track: "Track[Any]", told: list[str]
) -> dict[str, object]:
    """What the pairs say, as facts and in words. Raises PrecisionError where accuracy falls."""
    chunks = [pairs.files[start : start + crops.BATCH] for start in range(0, len(pairs.files), crops.BATCH)]
    fp32, other = _embed(runners, _loaded(track(chunks, "crops of the pairs")))
    before, after = accuracy(pairs, fp32), accuracy(pairs, other)
    missing = f" ({pairs.n_missing:,} pairs lack a crop)" if pairs.n_missing else ""
    told.append(f"accuracy on {len(pairs.same):,} pairs: {after:.5f}, fp32 {before:.5f}{missing}")
    gate.check_accuracy(before, after, len(pairs.same))
    facts: dict[str, object] = {"pairs": len(pairs.same), "pairs_accuracy": after, "pairs_accuracy_fp32": before}
    if calibrate.KEY not in about:
        told.append(f"{about['name']} is uncalibrated: whether the two are interchangeable was not measured")
        return facts
    calibration = json.loads(about[calibrate.KEY])
    losses = interchange.differences(pairs, fp32, other, calibration)
    if losses:
        told.append(f"not interchangeable with {about['name']}: {'; '.join(losses)}")
        return facts
    told.append(f"interchangeable with {about['name']}, whose calibration it takes over")
    return facts | {
        "interchangeable_with": json.dumps([about["name"]]),
        calibrate.KEY: calibrate.taken_over(calibration, about["name"], len(pairs.same)),
    }


def _loaded(chunks: Iterable[Sequence[Path]]) -> Iterator[Pixels]:
    return (crops.load(chunk) for chunk in chunks)
