"""gRPC and protobuf, and nothing of them elsewhere."""
