"""What an ONNX file says of itself, and the manifest that says which files are whole and which embedder is the default.

The keys below are the contract with the server, which reads them from the ONNX file's ``metadata_props``.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import onnx

from facenet_convert import calibrate, golden
from facenet_convert.weights import write_atomically

FORMAT = "4"
"""Raised when the graphs or the keys change: files of another format are converted anew."""

MANIFEST = "manifest.json"
EMBEDDER_PREFIX = "facenet-"
"""Of embedders' file names, before the model's name."""

_Entry = dict[str, str | int]


class Source(Protocol):
    """What a model is made from; its ``str`` says where it lies."""

    @property
    def sha256(self) -> str:
        """The hex digest of its content."""


def stamp(model: onnx.ModelProto, pretrained: Source, facts: Mapping[str, object], parity_max_abs_diff: float) -> None:
    """Write into the model what it is, what it was made from, and with what.

    Keys: ``format``, ``source``, ``source_sha256``, ``versions``, ``parity_max_abs_diff`` and every one of
    ``facts``: ``name``, ``kind`` (pnet, pnet_canvas, rnet, onet or embedder), ``preprocessing``, ``input_size_px``, and
    for embedders ``dimension`` and, where one is known, ``calibration``.
    """
    entries = _expected(pretrained, facts) | {
        "source": str(pretrained),
        "versions": _versions("facenet-serve", "onnx", "onnxruntime-gpu", "onnxruntime", "tensorflow", "tf2onnx"),
        "parity_max_abs_diff": str(parity_max_abs_diff),
    }
    published = calibrate.published(entries["name"])
    if published is not None:
        entries[calibrate.KEY] = published
    onnx.helper.set_model_props(model, entries)


def stamp_derived(model: onnx.ModelProto, base: Mapping[str, str], facts: Mapping[str, object]) -> None:
    """Write into a model made from another one what it is: what still holds of ``base``, the other's metadata, and
    ``facts``.

    Keys beside those of ``stamp``:

    - ``precision`` (fp16 or int8), ``base`` (the other's name), ``ranges`` (what they were taken from)
    - ``cosine_mean`` and ``cosine_worst`` to the other on ``held_out_crops`` crops
    - where pairs were given: ``pairs``, ``pairs_accuracy`` and ``pairs_accuracy_fp32``
    - where it was measured so: ``interchangeable_with``, a JSON list of names

    ``parity_max_abs_diff`` is to the other.
    """
    kept = ("format", "source", "source_sha256", "kind", "preprocessing", "input_size_px", "dimension")
    entries = {key: base[key] for key in kept} | {key: str(value) for key, value in facts.items()}
    entries["versions"] = _versions("facenet-serve", "onnx", "onnxruntime-gpu", "onnxruntime")
    onnx.helper.set_model_props(model, entries)


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write the model file with its golden answer, then its hash into the manifest beside it: each whole or not at
    all."""
    known = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(model, known | {golden.KEY: golden.answer(model)})
    data = model.SerializeToString()
    write_atomically(path, data)
    default = default_embedder(path.parent)  # before there is another one: a model more does not change it
    files = _files(path.parent)
    files[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    _write_manifest(path.parent, files, default)


def default_embedder(folder: Path) -> str:
    """The embedder that answers requests without a model: the one in the manifest, or where it states none the first
    by name; empty where there is none."""
    embedders = (name for name in _files(folder) if name.startswith(EMBEDDER_PREFIX))
    first = min(embedders, default="").removeprefix(EMBEDDER_PREFIX).removesuffix(".onnx")
    return _stated_default(folder) or first


def set_default_embedder(folder: Path, name: str) -> None:
    """State in the manifest which embedder answers requests without a model."""
    _write_manifest(folder, _files(folder), name)


def is_current(path: Path, pretrained: Source, facts: Mapping[str, object]) -> bool:
    """Whether ``path`` is whole, and was made from this source, in the present format, with these facts."""
    data = _whole(path)
    if data is None:
        return False
    found = {prop.key: prop.value for prop in onnx.load_from_string(data).metadata_props}
    return _expected(pretrained, facts).items() <= found.items()


def is_whole(path: Path) -> bool:
    """Whether ``path`` is the file in the manifest."""
    return _whole(path) is not None


def _whole(path: Path) -> bytes | None:
    """The content of ``path``, if it is the file in the manifest."""
    entry = _files(path.parent).get(path.name)
    if entry is None or not path.exists():
        return None
    data = path.read_bytes()
    return data if hashlib.sha256(data).hexdigest() == entry.get("sha256") else None


def _expected(pretrained: Source, facts: Mapping[str, object]) -> dict[str, str]:
    known = {"format": FORMAT, "source_sha256": pretrained.sha256, **facts}
    return {key: str(value) for key, value in known.items()}


def _files(folder: Path) -> dict[str, _Entry]:
    try:
        return {name: dict(entry) for name, entry in _manifest(folder)["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}  # none yet, or unreadable: everything is converted anew


def _stated_default(folder: Path) -> str:
    return str(_manifest(folder).get("default_embedder") or "")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / MANIFEST).read_text()))
    except (OSError, TypeError, ValueError):
        return {}


def _write_manifest(folder: Path, files: Mapping[str, _Entry], default: str) -> None:
    stated = {"default_embedder": default} if default else {}
    text = json.dumps({"format": FORMAT, **stated, "files": dict(sorted(files.items()))}, indent=2)
    write_atomically(folder / MANIFEST, f"{text}\n".encode())


def _versions(*tools: str) -> str:
    return ", ".join(f"{tool} {_version(tool)}" for tool in tools if _version(tool))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
