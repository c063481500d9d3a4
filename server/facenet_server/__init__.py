"""The inference server: MTCNN and FaceNet on ONNX Runtime behind gRPC. Start it with ``facenet-server``.

The way from bytes to answer reads in ``serving.pipeline``. What computes is in ``vision`` (arrays in, arrays out), what
waits in ``serving`` and ``rpc``; ``build`` puts the parts together, and ``server`` is the process.
"""

import os

# ONNX Runtime's official builds, from 1.29 on, tell Microsoft about the process, its models and the machine, and keep a
# data base for it in the user's folder. Its own switch is read when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
