"""FaceNet Serve beside its peers, measured in one run: ``make bench``."""

import os

# ONNX Runtime's official builds, from 1.29 on, tell Microsoft about the process, its models and the machine, and keep a
# data base for it in the user's folder. Its own switch is read when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
