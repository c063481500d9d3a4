"""Find the faces of some images: python examples/detect.py PHOTO..."""

import sys

from facenet_client import Client

with Client("127.0.0.1:50051") as client:
    for path, photo in zip(sys.argv[1:], client.detect(sys.argv[1:]), strict=True):
        if photo.error:
            print(path, photo.error)
        for face in photo.faces:
            print(path, [round(edge) for edge in face.box], f"{face.score:.3f}")
