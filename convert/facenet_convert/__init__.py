"""Turns the pretrained TensorFlow networks into verified ONNX files: the ``facenet-convert`` command.

Nothing imports this package at serving time; it meets the server only in the files that it writes.
"""
