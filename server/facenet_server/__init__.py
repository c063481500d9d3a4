"""The inference server: MTCNN and FaceNet on ONNX Runtime behind gRPC. Start it with ``facenet-server``.

The way from bytes to answer reads in ``pipeline``; what computes is below it (``mtcnn``, ``facenet``,
``images``, ``boxes``: arrays in, arrays out), what waits is above (``batching``, ``service``, ``app``).
"""
