"""ONNX files become verified networks."""
