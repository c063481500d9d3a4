"""From an embedder's fp32 form to one in int8 or fp16: made, measured against it, judged, described."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from facenet_convert import calibrate, crops, forms, gate, interchange, metadata, verify
from facenet_convert.crops import Material, Pixels
from facenet_convert.errors import SourceError
from facenet_convert.forms import Track
from facenet_convert.pairs import Pairs, Vectors, accuracy


class Quantised(NamedTuple):
    """A model that passed the gate, its name, and in words what was measured."""

    model: onnx.ModelProto
    name: str
    told: list[str]


class _Findings(NamedTuple):
    """What was measured: for the metadata, and in words."""

    facts: dict[str, Any]
    told: list[str]


def quantise(base: onnx.ModelProto, precision: str, material: Material, pairs: Pairs | None, track: Track) -> Quantised:
    """The base in another precision. Raises SourceError for what is no fp32 embedder, and PrecisionError where it loses
    too much."""
    about = _about(base)
    name = f"{about['name']}-{precision}"
    form = forms.int8(base, material.calibration, track) if precision == "int8" else forms.fp16(base)
    _check_contract(form.model, base)
    runners = [verify.onnx_runner(base), form.run]
    facts, told = _on_crops(precision, runners, material, track)
    if pairs is not None:
        more = _on_pairs(about, runners, pairs, track)
        facts, told = facts | more.facts, told + more.told
    metadata.stamp_derived(form.model, about, {"name": name, "precision": precision, "base": about["name"], **facts})
    return Quantised(form.model, name, told)


def _about(base: onnx.ModelProto) -> Mapping[str, str]:
    found = {prop.key: prop.value for prop in base.metadata_props}
    if found.get("kind") != "embedder" or found.get("format") != metadata.FORMAT:
        raise SourceError("this is no embedder of this version: make one with `facenet-convert facenet`")
    if "base" in found:
        raise SourceError(f"{found['name']} is {found['precision']} already: give its fp32 form, {found['base']}")
    return found


def _check_contract(model: onnx.ModelProto, base: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    ports = [[*form.graph.input, *form.graph.output] for form in (model, base)]
    if ports[0] != ports[1]:
        raise SourceError(f"its input and output have become {ports[0]}: this graph cannot be made so")


def _on_crops(precision: str, runners: Sequence[verify.Runner], material: Material, track: Track) -> _Findings:
    """How near the embeddings of held-out crops are. Raises PrecisionError where that is not enough."""
    fp32, other = _embed(runners, track(crops.batches(material.held_out), "held-out crops"))
    seen = gate.fidelity(fp32, other)
    gate.check_fidelity(seen, precision)
    facts: dict[str, Any] = {
        "cosine_mean": seen.cosine_mean,
        "cosine_worst": seen.cosine_worst,
        "held_out_crops": seen.n_crops,
        "parity_max_abs_diff": seen.max_abs_diff,
    }
    if precision == "int8":
        facts["ranges"] = material.origin
    cosines = f"mean {seen.cosine_mean:.6f}, worst {seen.cosine_worst:.6f}"
    return _Findings(facts, [f"cosine to fp32 on {seen.n_crops} held-out crops: {cosines}"])


def _on_pairs(about: Mapping[str, str], runners: Sequence[verify.Runner], pairs: Pairs, track: Track) -> _Findings:
    """Accuracy, and whether the two are interchangeable. Raises PrecisionError where accuracy falls."""
    chunks = [pairs.files[start : start + crops.BATCH] for start in range(0, len(pairs.files), crops.BATCH)]
    fp32, other = _embed(runners, (crops.load(chunk) for chunk in track(chunks, "crops of the pairs")))
    n_pairs, before, after = len(pairs.same), accuracy(pairs, fp32), accuracy(pairs, other)
    gate.check_accuracy(before, after, n_pairs)
    facts: dict[str, Any] = {"pairs": n_pairs, "pairs_accuracy": after, "pairs_accuracy_fp32": before}
    missing = f" ({pairs.n_missing:,} pairs lack a crop)" if pairs.n_missing else ""
    told = [f"accuracy on {n_pairs:,} pairs: {after:.5f}, fp32 {before:.5f}{missing}"]
    base = about["name"]
    if calibrate.KEY not in about:
        return _Findings(facts, [*told, f"{base} is uncalibrated: whether they are interchangeable was not measured"])
    calibration = json.loads(about[calibrate.KEY])
    losses = interchange.differences(pairs, fp32, other, calibration)
    if losses:
        return _Findings(facts, [*told, f"not interchangeable with {base}: {'; '.join(losses)}"])
    facts["interchangeable_with"] = json.dumps([base])
    facts[calibrate.KEY] = calibrate.taken_over(calibration, base, n_pairs)
    return _Findings(facts, [*told, f"interchangeable with {base}, whose calibration it takes over"])


def _embed(runners: Sequence[verify.Runner], batches: Iterable[Pixels]) -> list[Vectors]:
    """The embeddings by each runner, (N, D) float64."""
    rows = [[runner(batch)["embedding"] for runner in runners] for batch in batches]
    return [np.concatenate(column).astype(np.float64) for column in zip(*rows, strict=True)]
