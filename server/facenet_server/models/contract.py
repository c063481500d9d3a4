"""The contract with ``facenet-convert``: what a model file's metadata says, and which inputs and outputs it has."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from facenet_server.errors import StartError
from facenet_server.vision import calibration
from facenet_server.vision.calibration import Calibration, OperatingPoint

FORMAT = "4"
PRECISIONS = ("fp32", "fp16", "int8")

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Ports:
    """A network's inputs and outputs by name: dtype (as ONNX Runtime spells it) and shape, None: dynamic."""

    inputs: Mapping[str, tuple[str, Shape]]
    outputs: Mapping[str, Shape]


_LEVELS: tuple[str, Shape] = ("tensor(uint8)", (None, None, None, 3))
_MAPS: Mapping[str, Shape] = {"probability": (None, None, None), "regression": (None, None, None, 4)}

PORTS = {
    "pnet": Ports({"image": _LEVELS}, _MAPS),
    "pnet_canvas": Ports({"image": _LEVELS, "valid": ("tensor(int32)", (None, 2))}, _MAPS),
    "rnet": Ports({"image": ("tensor(float)", (None, 24, 24, 3))}, {"probability": (None,), "regression": (None, 4)}),
    "onet": Ports(
        {"image": ("tensor(float)", (None, 48, 48, 3))},
        {"probability": (None,), "regression": (None, 4), "landmarks": (None, 5, 2)},
    ),
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model file says of itself; ``dimension``, ``calibration`` and ``interchangeable_with`` count for
    embedders only."""

    name: str
    kind: str
    source: str
    source_sha256: str
    onnx_sha256: str
    preprocessing: str
    input_size_px: int
    parity_max_abs_diff: float
    dimension: int = 0
    calibration: Calibration | None = None
    precision: str = PRECISIONS[0]
    interchangeable_with: tuple[str, ...] = ()

    @property
    def ports(self) -> Ports:
        """The input and outputs that a model of this kind must have."""
        if self.kind != "embedder":
            return PORTS[self.kind]
        return Ports({"image": ("tensor(uint8)", (None, 160, 160, 3))}, {"embedding": (None, self.dimension)})


def info_of(values: Mapping[str, Any]) -> ModelInfo:
    """A ModelInfo out of what ``dataclasses.asdict`` made of one, and JSON of that."""
    calibration = values["calibration"]
    if calibration is not None:
        points = {name: OperatingPoint(**point) for name, point in calibration["operating_points"].items()}
        calibration = Calibration(**{**calibration, "operating_points": points})
    twins = tuple(values["interchangeable_with"])
    return ModelInfo(**{**values, "calibration": calibration, "interchangeable_with": twins})


def read_metadata(metadata: Mapping[str, str], onnx_sha256: str) -> ModelInfo:
    if metadata.get("format") != FORMAT:
        raise StartError(f"its metadata has format {metadata.get('format')!r}, this server reads {FORMAT!r}")
    kind = metadata.get("kind", "")
    if kind not in (*PORTS, "embedder"):
        raise StartError(f"its metadata says kind {kind!r}")
    try:
        return ModelInfo(
            name=metadata["name"],
            kind=kind,
            source=metadata["source"],
            source_sha256=metadata["source_sha256"],
            onnx_sha256=onnx_sha256,
            preprocessing=metadata["preprocessing"],
            input_size_px=int(metadata["input_size_px"]),
            parity_max_abs_diff=float(metadata["parity_max_abs_diff"]),
            dimension=int(metadata.get("dimension", 0)),
            calibration=calibration.parse(metadata["calibration"]) if metadata.get("calibration") else None,
            precision=_precision(metadata.get("precision", PRECISIONS[0])),
            interchangeable_with=_names(metadata.get("interchangeable_with", "[]")),
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise StartError(f"its metadata is wrong: {error}") from error


def _precision(text: str) -> str:
    if text not in PRECISIONS:
        raise ValueError(f"its precision is {text!r}, none of {', '.join(PRECISIONS)}")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{text!r} is no list of names")
    return tuple(names)


def check_ports(info: ModelInfo, session: Any) -> None:
    def shape(port: Any) -> Shape:
        return tuple(dim if isinstance(dim, int) else None for dim in port.shape)

    inputs = {port.name: (port.type, shape(port)) for port in session.get_inputs()}
    outputs = {port.name: shape(port) for port in session.get_outputs()}
    if inputs != dict(info.ports.inputs) or outputs != dict(info.ports.outputs):
        raise StartError(f"as {info.kind} it should have {info.ports}, it has {inputs} and {outputs}")
