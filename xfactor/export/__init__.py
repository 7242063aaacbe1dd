"""Writes trained models for other programs: StableHLO, ONNX, PyTorch, pages."""
