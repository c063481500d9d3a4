"""Model files opened as networks: whole, as promised, and on the device that was asked for.

A file is read once; its bytes are hashed, checked, and become the session. The metadata keys are the contract
with ``facenet-convert``.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import StartError
from facenet_server.models import manifest
from facenet_server.models.batch_buckets import open_buckets
from facenet_server.models.contract import PORTS, ModelInfo, check_ports, read_metadata
from facenet_server.models.fault_tolerance import is_no_memory
from facenet_server.models.manifest import MAKE_ANEW
from facenet_server.models.runtime import (
    Cuda,
    Engine,
    Network,
    execution_providers,
    for_one_shape,
    open_session,
    silence_missing_plans,
)
from facenet_server.vision.mtcnn import map_side
from facenet_server.vision.tiling import SIDE_PX

_FREE_SIDE = 36  # of the golden answer's input, where an input's height and width are free
_GOLDEN_ERROR = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "int8": 0.1}  # relative, over all outputs
# Rows of one run on the CPU: more are no faster, and take more memory, which ONNX Runtime keeps. Of R-Net and O-Net:
# their values stay in a core's own caches.
_ROWS_A_RUN = {"rnet": 16, "onet": 16, "embedder": 8}
_ELSEWHERE = re.compile(rb"j[\x80-\xff]*.\n\x08location\x12", re.DOTALL)  # an entry of TensorProto.external_data

_log = logging.getLogger(__name__)

_DTYPES = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(float)": np.float32}


def open_models(folder: Path, engine: Engine, cuda: Cuda | None = None) -> dict[str, Network]:
    """Every model that the folder's manifest lists, by name. ``cuda``: what there is of it, where that is known.

    Raises StartError where the folder, a file's hash, its metadata, names or shapes are wrong, where one of
    the detector's networks or every embedder is missing, or where the device cannot be had.
    """
    providers = execution_providers(engine, cuda)
    networks = [_open(folder / file, sha256, providers, engine) for file, sha256 in manifest.files(folder).items()]
    _check_device(networks, engine, wants_cuda=len(providers) > 1)
    kinds = [network.info.kind for network in networks]
    for kind in (*PORTS, "embedder"):
        if kind not in (*kinds, "pnet_canvas"):  # which only some servers use
            raise StartError(f"{folder} holds no {kind}: make it with `facenet-convert all --out {folder}`")
        if kind in PORTS and kinds.count(kind) > 1:
            raise StartError(f"{folder} holds {kinds.count(kind)} models of kind {kind}: keep one")
    names = [network.info.name for network in networks]
    if len(set(names)) < len(names):
        raise StartError(f"{folder} holds two models of one name, among {', '.join(names)}: keep one")
    _agree(networks)
    return dict(zip(names, networks, strict=True))


def open_some(folder: Path, engine: Engine, sha256s: Collection[str]) -> dict[str, Network]:
    """Those of the models whose files have one of these SHA-256, by name. Raises StartError."""
    providers = execution_providers(engine)
    listed = manifest.files(folder).items()
    networks = [_open(folder / file, sha256, providers, engine) for file, sha256 in listed if sha256 in sha256s]
    return {network.info.name: network for network in networks}


def _check_device(networks: Sequence[Network], engine: Engine, wants_cuda: bool) -> None:
    """Raises StartError where the CPU has networks that were to run on CUDA; a warning where it may have them."""
    on_cpu = [network.info.name for network in networks if wants_cuda and not network.on_cuda]
    if on_cpu and engine.device == "cuda":
        raise StartError(f"device cuda cannot be had: {on_cpu[0]} runs on the CPU; ONNX Runtime's own lines say why")
    if on_cpu:
        names = ", ".join(on_cpu)
        _log.warning("a GPU is there, but %s run on the CPU; ONNX Runtime's own lines say why", names)


def _agree(networks: Sequence[Network]) -> None:
    """What one model says of another holds for both: the one that was there first could not know."""
    for network in networks:
        told = {other.info.name for other in networks if network.info.name in other.info.interchangeable_with}
        known = tuple(sorted(told.union(network.info.interchangeable_with)))
        network.info = replace(network.info, interchangeable_with=known)


def _open(path: Path, sha256: str, providers: list[Any], engine: Engine) -> Network:
    again = f"{MAKE_ANEW.format(path.parent)}, or `quantize` where that made it"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}; {again}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise StartError(f"{path} is not the file in {manifest.NAME} (SHA-256 {found}, not {sha256}); {again}")
    if _ELSEWHERE.search(data):
        raise StartError(f"{path} has weights in another file, whose SHA-256 nobody checks: save it as one; {again}")
    try:
        return _opened(data, found, providers, engine)
    except StartError as error:
        raise StartError(f"{path}: {error}; {again}") from error
    except Exception as error:  # ONNX Runtime's own errors have no common base
        if is_no_memory(error):
            limit = f" within --gpu-mem-limit-mb {engine.gpu_mem_limit_mb}" if engine.gpu_mem_limit_mb else ""
            raise StartError(f"{path}: the device has no memory for it{limit}: {error}") from error
        raise StartError(f"{path}: ONNX Runtime cannot load it: {error}; {again}") from error


def _opened(data: bytes, sha256: str, providers: list[Any], engine: Engine) -> Network:
    session = open_session(data, providers, engine.threads)
    metadata = session.get_modelmeta().custom_metadata_map
    info = read_metadata(metadata, sha256)
    if info.kind in PORTS and engine.threads > 1:  # small networks: a thread for each of several runs does more
        session = open_session(data, providers, 1)
    check_ports(info, session)
    prove = partial(_self_test, golden=metadata.get("golden", ""), tf32=engine.tf32)
    if "CUDAExecutionProvider" not in session.get_providers():
        network = Network(info, session, _ROWS_A_RUN.get(info.kind))
        prove(network)
        return network
    silence_missing_plans()
    prove(Network(info, session))
    if info.kind not in engine.most_rows:
        return Network(info, session)
    one_shape = for_one_shape(providers, info.kind, info.precision)
    threads = 1 if info.kind in PORTS else engine.threads

    def warm_up(bucket: Any, count: int) -> None:
        network = Network(info, bucket)
        if not network.on_cuda:  # what ran there a moment ago may not be slow from now on, and nobody know why
            raise RuntimeError(f"a session for {count} rows came to run on {network.providers[0]}")
        prove(network, count=count, side_px=SIDE_PX)

    buckets = open_buckets(engine.most_rows[info.kind], partial(open_session, data, one_shape, threads), warm_up)
    return Network(info, buckets, buckets.sizes[-1])


def _self_test(network: Network, golden: str, *, tf32: bool, count: int = 1, side_px: int = _FREE_SIDE) -> None:
    """Run the network as the converter did, on so many rows alike, and compare: a device that does not work, or works
    wrongly, shows here. Where a side is free, the row lies in the corner of one of ``side_px``.

    Raises StartError.
    """
    expected = np.frombuffer(base64.b64decode(golden), "<f4")
    rows = [np.repeat(row, count, axis=0) for row in _one_row(network.info, side_px)]
    corner = slice(map_side(_FREE_SIDE))
    answers = {
        name: answer[-1][corner, corner] if shape.count(None) > 1 else answer[-1]
        for (name, shape), answer in zip(network.info.ports.outputs.items(), network(*rows), strict=True)
    }
    found = np.concatenate([answers[name].ravel() for name in sorted(answers)])
    if found.shape != expected.shape:
        raise StartError(f"its golden answer has {len(expected)} numbers, not {len(found)}")
    allowed = _GOLDEN_ERROR["tf32" if tf32 and network.info.precision == "fp32" else network.info.precision]
    error = float(np.linalg.norm(found - expected))
    if not error <= allowed * float(np.linalg.norm(expected)):  # not: NaN is no answer, either
        raise StartError(f"on {network.providers[0]} it does not give its golden answer: off by {error:.3g}")


def _one_row(info: ModelInfo, side_px: int) -> list[NDArray[Any]]:
    """The converter's generated input."""
    rows = []
    for kind, (_, *dims) in info.ports.inputs.values():
        shape = [1, *(dim or _FREE_SIDE for dim in dims)]
        values = np.arange(np.prod(shape)) * 37 % 251 if len(shape) == 4 else np.full(shape, _FREE_SIDE)
        around = [(0, side_px - _FREE_SIDE if dim is None and len(shape) == 4 else 0) for dim in dims]
        rows.append(np.pad(values.reshape(shape), [(0, 0), *around]).astype(_DTYPES[kind]))
    return rows
