"""Turns the pretrained TensorFlow networks into verified ONNX files: the ``facenet-convert`` command.

Nothing imports this package at serving time; it meets the server only in the files that it writes.
"""

import os

# ONNX Runtime's official builds, from 1.29 on, tell Microsoft about the process, its models and the machine, and keep a
# data base for it in the user's folder. Its own switch is read when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
