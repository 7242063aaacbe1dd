"""FLOPs against the specification's table and a small case by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from xfactor.methods.autoencoding import cost as autoencoding_cost
from xfactor.methods.autoencoding import rayzer, rust
from xfactor.methods.srt import cost as srt_cost
from xfactor.methods.srt import network as srt_network
from xfactor.methods.xfactor import cost as xfactor_cost
from xfactor.methods.xfactor import network as xfactor_network
from xfactor.metrics import lpips as lpips_lib
from xfactor.nn.functional import Functional
from xfactor.training import chips


def test_full_size_stereo_is_the_published_count():
  """354.9 GFLOP forward: two register sets, the pose spread over 256 tokens.

  Ours has one set and embeds the target's pose once, which the two terms add.
  """
  config = xfactor_network.Config(registers=64)
  target_mlp = 2 * (256 * 4096 + 4096 * 1024)
  count = (
    xfactor_cost.forward_pass(config, views=2, tokens=256) + 255 * target_mlp
  )
  assert count / 1e9 == pytest.approx(354.9, rel=2e-3)


def test_a_small_model_by_hand():
  config = xfactor_network.Config(
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
  assert xfactor_cost.forward_pass(config, views=2, tokens=4) == want
  more = dataclasses.replace(config, nuisance_dim=3)
  nuisance = 2 * (4 * 4 + 4 * 3 + 3 * 4)
  assert xfactor_cost.forward_pass(more, views=2, tokens=4) == want + nuisance


def xla_flops(model, draw, *shapes):
  """Of drawing from parameters and pictures, before any optimization."""
  functional = Functional(model)
  args = [jax.ShapeDtypeStruct(shape, 'float32') for shape in shapes]
  lowered = jax.jit(
    lambda params, *args: draw(functional.bind(params), *args)
  ).lower(functional.shapes, *args)
  return lowered.cost_analysis()['flops']


@pytest.mark.parametrize(
  'sizes',
  [
    {},
    {'pose': 'se3', 'pose_dim': 10},
    {'joint_encoder': True},
    {'pose': 'se3', 'pose_dim': 10, 'joint_encoder': True},
  ],
  ids=lambda sizes: '-'.join(map(str, sizes.values())) or 'xfactor',
)
def test_xfactor_is_what_xla_counts(sizes):
  """But for elementwise work; three views."""
  config = xfactor_network.Config(
    encoder_layers=1,
    renderer_layers=1,
    dtype='float32',
    remat='none',
    **sizes,
  )

  def encode(model, images):
    return model.encode_views(images)

  def draw(model, images):
    return model.render(images[:, :-1], model.encode_views(images))

  def make(rngs):
    return xfactor_network.XFactor(config, rngs=rngs)

  for render, run in ((True, draw), (False, encode)):
    ours = xfactor_cost.train_step(
      config, batch=1, views=3, height=64, width=96, whole=True, render=render
    )
    xla = xla_flops(make, run, (1, 3, 64, 96, 3))
    assert ours / 3 == pytest.approx(xla, rel=0.02)


@pytest.mark.parametrize('name', ['rust', 'rayzer'])
def test_baselines_are_what_xla_counts(name):
  """But for elementwise work; three views."""
  sizes = {'encoder_layers': 1, 'scene_layers': 1, 'decoder_layers': 1}
  sizes |= {'dtype': 'float32', 'remat': 'none'}
  if name == 'rust':
    config, network = rust.RustConfig(**sizes), rust.Rust
    cost = autoencoding_cost.rust_step
  else:
    config = rayzer.RayZerConfig(**sizes, scene_tokens=48)
    network, cost = rayzer.RayZer, autoencoding_cost.rayzer_step

  def draw(model, images):
    return model.reconstruct(images, jnp.ones(1, bool))

  ours = cost(config, batch=1, views=3, height=64, width=96)
  xla = xla_flops(
    lambda rngs: network(config, rngs=rngs), draw, (1, 3, 64, 96, 3)
  )
  assert ours / 3 == pytest.approx(xla, rel=0.02)


def test_splitting_saves_only_attention():
  sizes = {'batch': 2, 'views': 2, 'height': 64, 'width': 64}
  config = xfactor_network.Config(registers=0)
  split = xfactor_cost.train_step(config, **sizes)
  whole = xfactor_cost.train_step(config, **sizes, whole=True)
  assert 0.9 < split / whole < 1.01


@pytest.mark.parametrize(
  'sizes',
  [
    {},
    {'encoder': 'isrt', 'decoder': 'isrt', 'conv_blocks': 3},
    {'decoder': 'nerf'},
    {'decoder': 'nerf', 'fine_net': True},
    {'decoder': 'nerf', 'fine_samples': 0},
  ],
  ids=lambda sizes: '-'.join(map(str, sizes.values())) or 'srt',
)
def test_srt_is_what_xla_counts(sizes):
  """But for elementwise work and the rims of convolutions; no layer is twice.

  CLEVR3D's pictures, whose tokens are not whole.
  """
  config = srt_network.Config(
    encoder_layers=1, decoder_layers=1, dtype='float32', remat='none', **sizes
  )
  functional = Functional(lambda rngs: srt_network.SRT(config, rngs=rngs))

  def forward(params, *args):
    model = functional.bind(params)
    return model.decode(model.encode(*args[:3]), *args[3:])

  shapes = ((2, 120, 160), (2,), (2, 120, 160), (256,), (256,))
  args = (jax.ShapeDtypeStruct((1, *x, 3), 'float32') for x in shapes)
  xla = jax.jit(forward).lower(functional.shapes, *args).cost_analysis()
  ours = srt_cost.srt_train_step(
    config, batch=1, views=2, height=120, width=160, rays=256
  )
  assert ours / 3 == pytest.approx(xla['flops'], rel=0.06)


@pytest.mark.parametrize(
  ('decoder', 'width', 'queries'),
  [('srt', 180, [16]), ('nerf', 90, [16 * 128, 16 * 64])],
)
def test_layers_of_srt_add_up(decoder, width, queries):
  sizes = {'batch': 2, 'views': 2, 'height': 64, 'width': 64, 'rays': 16}

  def count(encoder, decoder_layers):
    config = srt_network.Config(
      decoder=decoder,
      encoder_layers=encoder,
      decoder_layers=decoder_layers,
    )
    return srt_cost.srt_train_step(config, **sizes)

  # Two scenes, two views of 16 tokens, three times; four C x C and two C x 2C.
  tokens = 2 * 16
  layer = 3 * 2 * tokens * (2 * 8 * 768**2 + 4 * 768 * tokens)
  assert count(3, 2) - count(1, 2) == 2 * layer
  # Queries to C and back, their MLP; keys and values of C x 2C; attention.
  layer = sum(
    2 * n * (2 * width * 768 + 2 * width * 1536)
    + 2 * tokens * 2 * 768**2
    + 4 * 768 * n * tokens
    for n in queries
  )
  assert count(1, 3) - count(1, 2) == 3 * 2 * layer


def test_lpips_is_vgg16s_published_count():
  """15.3 G multiply-adds at 224 pixels; two images and a gradient."""
  assert lpips_lib.lpips_gradient(224, 224) == pytest.approx(
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
  assert chips.peak_flops(kind) == peak
