"""Fixtures for lowering without an accelerator."""

import pytest


@pytest.fixture
def cudnn(monkeypatch):
  """A version of cuDNN, which JAX reads from the library before it lowers."""
  monkeypatch.setattr(
    'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version',
    lambda: 91100,
  )
