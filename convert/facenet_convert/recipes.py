"""The models that can be made: for each its source, what its metadata says, and the function that makes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx

from facenet_convert import facenet, inception_resnet_v1, keras_file, mtcnn, reference, verify
from facenet_convert.errors import SourceError
from facenet_convert.export import Dims, to_onnx
from facenet_convert.graphs import inference_graph
from facenet_convert.metadata import EMBEDDER_PREFIX, Source
from facenet_convert.releases import CASIA_20180408, MS_CELEB_20170512, Release
from facenet_convert.sources import ReleaseFiles
from facenet_convert.weights import FACENET_20170512, FACENET_20180408, MTCNN

Parity = dict[int, float]
"""The largest |Δ| to TensorFlow by batch size."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model file is made. ``make`` takes the content of the source to the verified model; ``facts`` go
    into its metadata, beside what the conversion finds."""

    file: str
    source: Source
    facts: Mapping[str, object]
    make: Callable[[Any], tuple[onnx.ModelProto, Parity]]


def mtcnn_recipes() -> list[Recipe]:
    """The detector's three networks."""
    return [
        Recipe(
            file=f"{name}.onnx",
            source=MTCNN[name],
            facts={"name": f"mtcnn-{name}", "kind": name, "preprocessing": "fixed", "input_size_px": side_px},
            make=partial(make_mtcnn, name),
        )
        for name, side_px in mtcnn.SIDES_PX.items()
    ] + [
        Recipe(
            file="pnet-canvas.onnx",
            source=MTCNN["pnet"],
            facts={"name": "mtcnn-pnet-canvas", "kind": "pnet_canvas", "preprocessing": "fixed", "input_size_px": 0},
            make=make_pnet_canvas,
        )
    ]


def embedder_recipes() -> list[Recipe]:
    """The embedders that the package index has; the first one is the default of a server that has several."""
    return [
        Recipe(_file(MS_CELEB_20170512), FACENET_20170512, _facts(MS_CELEB_20170512), make_keras_facenet),
        Recipe(_file(CASIA_20180408), FACENET_20180408, _facts(CASIA_20180408), make_facenet),
    ]


def release_recipe(release: Release, files: ReleaseFiles) -> Recipe:
    """One embedder, from the files of its release; ``make`` takes their inference graph."""
    return Recipe(_file(release), files, _facts(release), partial(make_release, release, files))


def _file(release: Release) -> str:
    return f"{EMBEDDER_PREFIX}{release.name}.onnx"


def _facts(release: Release) -> dict[str, object]:
    return {
        "name": release.name,
        "kind": "embedder",
        "preprocessing": release.preprocessing,
        "input_size_px": facenet.INPUT_SIZE_PX,
        "dimension": release.dimension,
    }


def make_mtcnn(name: str, data: bytes) -> tuple[onnx.ModelProto, Parity]:
    """pnet, rnet or onet from the bytes of its weight file."""
    weights = mtcnn.parse(name, data)
    model = export_mtcnn(name, weights)
    return model, verify_mtcnn(name, model, weights)


def export_mtcnn(name: str, weights: mtcnn.Weights) -> onnx.ModelProto:
    """The network over ordinary images, unverified."""
    return to_onnx(lambda image: mtcnn.NETWORKS[name](image, weights), [mtcnn.signature(name)], _MTCNN_DIMS[name])


def verify_mtcnn(name: str, model: onnx.ModelProto, weights: mtcnn.Weights) -> Parity:
    """The exported network against the reference's form of these weights."""
    side_px = mtcnn.SIDES_PX[name]
    inputs = verify.window_inputs(side_px, np.float32) if side_px else verify.level_inputs
    verify.check_weights(name, model, weights)
    return verify.verify(name, verify.onnx_runner(model), partial(reference.mtcnn, name, weights), inputs)


def make_pnet_canvas(data: bytes) -> tuple[onnx.ModelProto, Parity]:
    """P-Net over images on larger canvases, from the bytes of its weight file."""
    weights = mtcnn.parse("pnet", data)
    signature = [mtcnn.signature("pnet"), mtcnn.VALID]
    dims: dict[str, Dims] = _MTCNN_DIMS["pnet"] | {"valid": ("batch", 2)}
    model = to_onnx(lambda image, valid: mtcnn.pnet_canvas(image, valid, weights), signature, dims)
    verify.check_weights("pnet_canvas", model, weights)
    runner = verify.canvas_runner(model)
    return model, verify.verify("pnet_canvas", runner, partial(reference.mtcnn, "pnet", weights), verify.level_inputs)


def make_facenet(data: bytes) -> tuple[onnx.ModelProto, Parity]:
    """20180408-102900 from the bytes of its frozen graph."""
    graph_def = facenet.parse(data)
    model = export_facenet(CASIA_20180408, inference_graph(graph_def))
    original = reference.FaceNet(reference.frozen(graph_def), CASIA_20180408.preprocessing)
    return model, verify_facenet(CASIA_20180408, model, original)


def make_keras_facenet(data: bytes) -> tuple[onnx.ModelProto, Parity]:
    """20170512-110547 from the bytes of its Keras file."""
    file = keras_file.parse(data)
    model = export_keras_facenet(MS_CELEB_20170512, file.weights)
    original = reference.KerasFaceNet(file, MS_CELEB_20170512.preprocessing)
    return model, verify_facenet(MS_CELEB_20170512, model, original)


def make_release(release: Release, files: ReleaseFiles, graph_def: Any) -> tuple[onnx.ModelProto, Parity]:
    """An embedder from its inference graph, verified against the release's own files."""
    model = export_facenet(release, graph_def)
    if files.form == "pb":
        session = reference.frozen(facenet.parse(files.graph.read_bytes()))
    else:
        session = reference.restored(files.graph, files.prefix)
    return model, verify_facenet(release, model, reference.FaceNet(session, release.preprocessing))


def export_facenet(release: Release, graph_def: Any) -> onnx.ModelProto:
    """An inference graph with free batch and standardisation in front, unverified."""
    return _export_embedder(release, partial(facenet.network, facenet.free_batch(graph_def)))


def export_keras_facenet(release: Release, weights: inception_resnet_v1.Weights) -> onnx.ModelProto:
    """Inception-ResNet-v1 over these weights with standardisation in front, unverified. Raises SourceError where a
    weight is missing."""
    try:
        return _export_embedder(release, partial(inception_resnet_v1.network, weights))
    except KeyError as error:
        raise SourceError(f"not the weights of {release.name}: {error} is missing") from error


def _export_embedder(release: Release, network: Callable[[Any], Any]) -> onnx.ModelProto:
    side = facenet.INPUT_SIZE_PX
    dims: dict[str, Dims] = {"image": ("batch", side, side, 3), "embedding": ("batch", release.dimension)}
    standardise = facenet.STANDARDISATIONS[release.preprocessing]
    return to_onnx(lambda image: {"embedding": network(standardise(image))}, [facenet.signature()], dims)


def verify_facenet(release: Release, model: onnx.ModelProto, original: verify.Runner) -> Parity:
    """The exported graph against the original on TensorFlow."""
    inputs = verify.window_inputs(facenet.INPUT_SIZE_PX, np.uint8)
    return verify.verify(release.name, verify.onnx_runner(model), original, inputs)


_MTCNN_DIMS: dict[str, dict[str, Dims]] = {
    "pnet": {
        "image": ("batch", "height", "width", 3),
        "probability": ("batch", "map_height", "map_width"),
        "regression": ("batch", "map_height", "map_width", 4),
    },
    "rnet": {
        "image": ("batch", 24, 24, 3),
        "probability": ("batch",),
        "regression": ("batch", 4),
    },
    "onet": {
        "image": ("batch", 48, 48, 3),
        "probability": ("batch",),
        "regression": ("batch", 4),
        "landmarks": ("batch", 5, 2),
    },
}
