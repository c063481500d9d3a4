"""Files that are no source of an embedder, recognised by their first bytes, or by the names in a zip or a folder.

Nothing in a file is run, unpickled or unpacked, and its own name says nothing.
"""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from facenet_convert.weights import FACENET_20170512

_HEAD_BYTES = 512
_TAKES = (
    "--source takes a frozen graph (.pb), a checkpoint (.meta, .index, .data), a folder or zip with one of them, "
    "facenet_keras.h5 or graph_final.pb"
)
_RELEASES = (
    "Take the release that it was made from: `facenet-convert facenet` fetches 20170512-110547 and 20180408-102900, "
    "--download NAME a release from Google Drive"
)
_PYTORCH = (
    "The weights of facenet-pytorch were made from two releases: casia-webface is 20180408-102900, which "
    "`facenet-convert facenet --name 20180408-102900` fetches; vggface2 is --download 20180402-114759"
)


class _Kind(NamedTuple):
    """What a file is whose ``signature`` begins like ``pattern``, and what its owner can do."""

    pattern: bytes
    what: str
    advice: str


_KINDS = (
    _Kind(rb"\Z", "an empty file", "Its download or its copy failed: get it again"),
    _Kind(
        rb"(\xef\xbb\xbf)?\s*<(?i:!doctype html|html)",
        "a web page (HTML)",
        "The download failed: Google Drive gives such a page where it asks for a click, or where too many have asked. "
        "Open the link in a browser, and save the file itself",
    ),
    _Kind(
        rb"\x89HDF\r\n\x1a\n",
        f"a Keras (HDF5) file, but not facenet_keras.h5, whose SHA-256 is {FACENET_20170512.sha256}",
        "It is another network or a damaged copy. `facenet-convert facenet --name 20170512-110547` fetches that file",
    ),
    _Kind(rb"zip:(?=.*\nconfig\.json\n).*\nmodel\.weights\.h5\n", "a Keras 3 model (.keras)", _RELEASES),
    _Kind(
        rb"(\x08\x01\x12|(folder|zip):(?!.*\.meta\n).*[\n/]saved_model\.pb\n)",
        "a TensorFlow SavedModel",
        "Freeze its graph into one .pb, with nodes named input and embeddings. If it is a release: " + _RELEASES,
    ),
    _Kind(
        rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x32\x3a\x42]",
        "an ONNX model",
        "It needs no conversion: a model that facenet-convert made goes into the folder of `facenet-server --models`",
    ),
    _Kind(rb"zip:.*/data\.pkl\n", "a PyTorch file (.pt, .pth)", _PYTORCH),
    _Kind(rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", "a PyTorch file in its old form (.pt, .pth)", _PYTORCH),
    _Kind(rb"\x80[\x02-\x05]", "a Python pickle, which may run anything and was not opened", _RELEASES),
    _Kind(rb"....TFL3", "a TensorFlow Lite model (.tflite)", _RELEASES),
    _Kind(
        rb"\x93NUMPY|zip:.*\.npy\n",
        "NumPy arrays (.npy, .npz)",
        "det1.npy, det2.npy and det3.npy are the detector's weights, which `facenet-convert mtcnn` fetches",
    ),
    _Kind(
        rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\x00|MM\x00\*|RIFF....WEBP|BM.{4}\x00{4}|.{4}ftyp(hei[cx]|mif1|avif)",
        "an image",
        "Photos are for the server's clients: `facenet detect PHOTO`",
    ),
)


def explain(source: Path) -> str | None:
    """What ``source`` is, what the command takes instead and what to do next. None for what may be a source.

    Raises OSError where it cannot be read.
    """
    signature = _signature(source)
    kind = next((kind for kind in _KINDS if re.match(kind.pattern, signature, re.DOTALL)), None)
    if kind is None or _is_pinned(source):
        return None
    return f"{source} is {kind.what}. {_TAKES}. {kind.advice}"


def _signature(source: Path) -> bytes:
    """The first bytes of a file. For a folder and a zip the names in it, each between line ends."""
    if source.is_dir():
        return _listed("folder", [file.name for file in source.iterdir()])
    with source.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(source) as archive:
                return _listed("zip", archive.namelist())
        except zipfile.BadZipFile:
            pass  # whoever reads it will say how it is broken
    return head


def _listed(holder: str, names: list[str]) -> bytes:
    return "\n".join([f"{holder}:", *names, ""]).encode(errors="replace")


def _is_pinned(source: Path) -> bool:
    """Whether it is facenet_keras.h5, whose kind is no source otherwise."""
    if source.is_dir():
        return False
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == FACENET_20170512.sha256
