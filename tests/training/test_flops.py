"""FLOPs against the specification's table and a small case by hand."""

import dataclasses

import pytest

from xfactor.models import xfactor
from xfactor.training import flops


def test_full_size_stereo_is_the_published_count():
  """354.9 GFLOP forward: two register sets, the pose spread over 256 tokens.

  Ours has one set and embeds the target's pose once, which the two terms add.
  """
  config = xfactor.Config(registers=64)
  target_mlp = 2 * (256 * 4096 + 4096 * 1024)
  count = flops.forward_pass(config, views=2, tokens=256) + 255 * target_mlp
  assert count / 1e9 == pytest.approx(354.9, rel=2e-3)


def test_a_small_model_by_hand():
  config = xfactor.Config(
    features=4,
    heads=1,
    patch_size=1,
    encoder_layers=1,
    renderer_layers=1,
    pose_dim=2,
    registers=1,
  )

  # One layer of n tokens a view, two views: 16 C^2 multiply-adds a token,
  # 2 C (2n)^2 across, 2 * 2 C n^2 within.
  def layer(n):
    return 2 * 2 * n * 16 * 16 + 4 * 4 * 4 * n**2 + 2 * 4 * 4 * n**2

  embed = 2 * 2 * 4 * 3 * 4
  head = 2 * 4 * (8 * 16 + 16 * 4 + 4 * 2)
  ends = 2 * 4 * (5 * 16 + 16 * 4) + 2 * (2 * 16 + 16 * 4)
  pixels = 2 * 4 * (4 * 16 + 16 * 4 + 4 * 3)
  want = embed + head + layer(5) + ends + pixels + layer(4)
  assert flops.forward_pass(config, views=2, tokens=4) == want


def test_splitting_saves_only_attention():
  sizes = {'batch': 2, 'views': 2, 'height': 64, 'width': 64}
  config = xfactor.Config(registers=0)
  split = flops.train_step(config, **sizes)
  whole = flops.train_step(config, **sizes, whole=True)
  assert 0.9 < split / whole < 1.01


def test_recomputation_and_lpips_are_executed_too():
  sizes = {'batch': 2, 'views': 2, 'height': 64, 'width': 64}
  config = xfactor.Config(encoder_layers=2, renderer_layers=2, registers=0)
  model = flops.train_step(config, **sizes)
  kept = dataclasses.replace(config, remat='none')
  assert flops.executed_step(kept, **sizes) == model
  # The layers' forward pass once more: a third of their part of the step.
  none = dataclasses.replace(config, encoder_layers=0, renderer_layers=0)
  layers = model - flops.train_step(none, **sizes)
  assert flops.executed_step(config, **sizes) == model + layers / 3
  lpips = flops.lpips_gradient(64, 64)
  for dtype, passes in (('bfloat16', 1), ('float32', 6)):
    executed = flops.executed_step(kept, lpips_dtype=dtype, **sizes)
    assert executed == model + 2 * passes * lpips


def test_lpips_is_vgg16s_published_count():
  """15.3 G multiply-adds at 224 pixels; two images and a gradient."""
  assert flops.lpips_gradient(224, 224) == pytest.approx(
    3 * 2 * 15.3e9, rel=0.03
  )


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('NVIDIA H200', 989e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('cpu', None),
  ],
)
def test_peaks_are_found_by_jaxs_names(kind, peak):
  assert flops.peak_flops(kind) == peak
