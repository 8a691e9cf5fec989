"""Models, their training, and the ONNX files that they are saved to."""
