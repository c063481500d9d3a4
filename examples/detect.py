"""Find the faces of some images: python examples/detect.py PHOTO..."""

import sys

from facenet_client import CallError, Client

with Client("127.0.0.1:50051", timeout_s=10) as client:
    try:
        photos = client.detect(sys.argv[1:])
    except CallError as error:
        sys.exit(f"no answer: {error}")
for path, photo in zip(sys.argv[1:], photos, strict=True):
    if photo.error is not None:
        print(path, photo.error, file=sys.stderr)
    for face in photo.faces:
        print(path, [round(edge) for edge in face.box], f"{face.score:.3f}")
sys.exit(any(photo.error for photo in photos))
