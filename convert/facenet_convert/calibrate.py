"""Calibrations: what the distances of a model mean, as JSON in its metadata.

``facenet evaluate lfw --out`` writes such a JSON; those of published models lie in ``calibrations/`` and come with
every conversion.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from facenet_convert.errors import SourceError

KEY = "calibration"


def published(name: str) -> str | None:
    """The calibration that comes with the model of this name, as compact JSON; None where there is none."""
    path = files("facenet_convert") / "calibrations" / f"{name}.json"
    return _compact(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def read(path: Path, model: str, preprocessing: str) -> str:
    """A calibration file for ``model``, as compact JSON.

    Raises SourceError where it is none, or was fitted on another model or preprocessing.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        fitted_on = values["model"], values["preprocessing"]
        _check(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is no calibration: {error!r}") from error
    if fitted_on != (model, preprocessing):
        raise SourceError(f"{path} was fitted on {' with '.join(fitted_on)}; the model is {model} with {preprocessing}")
    return _compact(values)


def _check(values: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError for what the server would not read."""
    points = {point["name"]: point for point in values["operating_points"]}
    if "best_accuracy" not in points:
        raise ValueError("it lacks the operating point best_accuracy")
    for point in points.values():
        numbers = [float(point[name]) for name in ("false_accept_rate", "true_accept_rate")]
        if not 0 < float(point["threshold"]) <= 2 or not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"operating point {point['name']} is out of range")
        int(point["different_pairs"]), int(point["same_pairs"])
    shape = values["probability_map"]
    parameters = {"logistic": ("slope", "intercept"), "isotonic": ("distances", "probabilities")}[shape["kind"]]
    if not all(np.isfinite(np.asarray(shape[name], float)).all() for name in parameters):
        raise ValueError("its probability map is not finite")
    str(values["data"])


def apply(model: onnx.ModelProto, path: Path) -> str:
    """Put the calibration file into an embedder's metadata, in place of any other; returns the model's name.

    Raises SourceError where file and model do not go together.
    """
    properties = {prop.key: prop.value for prop in model.metadata_props}
    if properties.get("kind") != "embedder":
        raise SourceError(f"the model is a {properties.get('kind', 'stranger')}: only embedders are calibrated")
    name = properties["name"]
    onnx.helper.set_model_props(model, {**properties, KEY: read(path, name, properties["preprocessing"])})
    return name


def taken_over(calibration: dict[str, Any], base: str, n_pairs: int) -> str:
    """A calibration fitted on ``base``, for a model that ``n_pairs`` pairs showed to be interchangeable with it."""
    told = f"fitted on {base}, with which this model was interchangeable on {n_pairs} pairs"
    return _compact(calibration | {"data": f"{calibration['data']}; {told}"})


def _compact(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
