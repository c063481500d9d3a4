"""The end of an image's work: which of the faces found count, and their crops."""

from collections.abc import Callable, Sequence
from typing import Any

from facenet_server.serving.image_task import FoundFaces, ImageTask
from facenet_server.vision import facenet
from facenet_server.vision.boxes import Faces
from facenet_server.vision.decode import Decoded
from facenet_server.vision.sources import Pixels

Step = Callable[..., Any]  # of a stage, a function and its arguments


def choose(step: Step, decoded: Decoded, faces: Faces, task: ImageTask) -> FoundFaces:
    """Those of an image's faces that its task wants, with their crops."""
    image, options = decoded.pixels, task.options.reduced(decoded.reduction)
    height, width = image.shape[:2]
    if task.selection is not None:
        faces = faces.take(facenet.visible(faces.boxes, height, width, options.margin_px))
        faces = facenet.select(faces, task.selection, height, width)
    faces = faces.take(slice(options.max_faces))
    aligned, crops = None, None
    if task.input_px and len(faces.boxes):
        aligned = step("align", facenet.align, image, faces.boxes, options.margin_px, task.input_px)
    if options.return_crops:
        crops = _crops(step, image, faces, task, options.margin_px)
    whole = faces.enlarged(decoded.reduction)
    return FoundFaces(whole, decoded.height, decoded.width, decoded.exif_orientation, decoded.damaged, aligned, crops)


def _crops(
    step: Step, image: Pixels, faces: Faces, task: ImageTask, margin_px: float
) -> Sequence[Pixels | None] | None:
    if len(faces.boxes) * task.crop_bytes_each > task.max_crop_bytes:
        return None
    crops: Sequence[Pixels | None] = step(
        "align", facenet.crops, image, faces.boxes, margin_px, task.options.crop_size_px
    )
    return crops
