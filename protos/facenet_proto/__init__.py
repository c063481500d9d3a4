"""The contract of FaceNet Serve: ``v1/face.proto`` and the Python code generated from it (``make proto``)."""
