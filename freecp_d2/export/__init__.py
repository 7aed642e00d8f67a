"""FreeCP for other runtimes: PyTorch's own programs, ONNX, OpenVINO."""
