"""Float32 layers multiply in full float32 on accelerators.

Without a precision a float32 product is one bfloat16 pass on a TPU and TF32 on
an NVIDIA GPU.
"""

import re

import jax
import pytest

from tests.training import small
from xfactor.training import build

RECIPES = {
  'stereo': lambda: small.recipe('data'),
  'se3': lambda: small.recipe('data', model__pose='se3', model__pose_dim=10),
  'rust': lambda: small.baseline_recipe('rust', 'data'),
  'rayzer': lambda: small.baseline_recipe('rayzer', 'data'),
  'srt': lambda: small.posed_recipe('data'),
  'volume': lambda: small.posed_recipe('data', model__decoder='nerf'),
}
# Gradients of einsum attention: their cotangents are float32, their other
# factors bfloat16. GPUs and TPUs have kernels of their own for attention.
ATTENTION = 'batching_dims = [0, 1] x [0, 2]'


def products(name):
  """Lines of the lowered step that multiply float32 by float32."""
  config = RECIPES[name]()
  with config.unlocked():
    config.model.dtype = 'bfloat16'
  built = build.build(config, jax.devices()[:1])
  with jax.set_mesh(built.mesh):
    step = built.step(built.step_kinds()[0])
    text = step.lower(
      built.abstract_state(), built.abstract_batch(), None
    ).as_text()
  pattern = r'.*(?:dot_general|convolution)\W.*'
  lines = re.findall(pattern, text)
  assert lines
  return [
    line
    for line in lines
    if re.search(r': \(tensor<[^>]*xf32>, tensor<[^>]*xf32>\)', line)
  ]


@pytest.mark.parametrize('name', RECIPES)
def test_float32_products_are_exact(name):
  found = products(name)
  inexact = [
    line for line in found if 'HIGHEST' not in line and ATTENTION not in line
  ]
  assert not inexact
  # The pose head, or the last layer of colours.
  assert any('HIGHEST' in line for line in found)
