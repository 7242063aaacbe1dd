"""The dense reference against the golden numbers; our split against it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import plain_xfactor

from tests.golden_tolerance import assert_all_close, assert_close
from tests.methods.xfactor.test_network import GRADIENTS, POSES
from xfactor.exchange import xfactor_names
from xfactor.methods.xfactor import augment, network, objective
from xfactor.nn.functional import Functional

GOLDEN = network.Config(
  features=64,
  heads=4,
  patch_size=8,
  encoder_layers=2,
  renderer_layers=2,
  pose_dim=16,
  registers=32,
  dtype='float32',
)
SMALL = network.Config(
  features=32,
  heads=2,
  patch_size=8,
  encoder_layers=2,
  renderer_layers=2,
  pose_dim=8,
  registers=3,
  dtype='float32',
  remat='none',
)
BATCH, HEIGHT, WIDTH = 3, 32, 48
GRID = (HEIGHT // SMALL.patch_size, WIDTH // SMALL.patch_size)
# Row-major quadrants of each example, A's two, then B's.
DEALS = {
  'rows': ((0, 1, 2, 3), (2, 3, 0, 1), (1, 0, 3, 2)),
  'columns and diagonals': ((0, 2, 1, 3), (3, 0, 2, 1), (1, 2, 0, 3)),
  'each another': ((0, 1, 2, 3), (3, 1, 0, 2), (1, 2, 3, 0)),
}


def assert_gradients_equal(got, want):
  assert_all_close(got, want, GRADIENTS)


def dense_gradients(params, config, images, pairs, mask):
  """Loss and gradients of the reference, for our parameters."""

  def loss(params):
    return plain_xfactor.masked_l1(
      plain_xfactor.unstack(params), config, images, pairs, mask
    )

  return jax.value_and_grad(loss)(params)


@pytest.fixture(scope='module')
def golden_params(golden):
  return xfactor_names.to_ours(golden('xf_params_pert'))


@pytest.fixture(scope='module')
def golden_step(golden, golden_params):
  """The golden step's loss, gradients and what the loss function reports."""
  step = golden('xf_loss_2v')
  images = 2 * (step['mid/x'].astype(np.float32) / 255) - 1

  @jax.jit
  def gradients(params, images, encoder_images, mask):
    return dense_gradients(
      params, GOLDEN, images, encoder_images[:, None], mask
    )

  return gradients(golden_params, images, step['mid/x_enc'], step['mid/pmask'])


def test_masked_poses_and_renders_are_golden(golden, golden_params):
  forward = golden('xf_forward')
  images = 2 * (forward['in/images2_u8'].astype(np.float32) / 255) - 1

  @jax.jit
  def run(params, images, mask, poses):
    params = plain_xfactor.unstack(params)
    return (
      plain_xfactor.encode(params, GOLDEN, images, mask),
      plain_xfactor.render(params, GOLDEN, images[:, :1], poses, mask),
    )

  poses, render = run(
    golden_params, images, forward['in/pmask2'], forward['in/P4']
  )
  assert_close(poses, forward['f32exact/pose2_mask'], POSES)
  assert_close(render, forward['f32exact/render2_P4_mask'])


def test_the_step_has_an_unmasked_example_and_a_self_target(golden):
  step = golden('xf_loss_2v')
  assert step['mid/qc'].tolist() == [0, 2, 2, 2]
  assert step['mid/self_mask'].any()


def test_the_stereo_loss_is_golden(golden, golden_step):
  want = golden('xf_loss_2v')['f32exact/loss']
  assert_close(golden_step[0], want)


def test_the_gradients_are_golden(golden, golden_step):
  assert_gradients_equal(
    golden_step[1], xfactor_names.to_ours(golden('xf_grads_2v'))
  )


@pytest.fixture(scope='module')
def functional():
  return Functional(lambda rngs: network.XFactor(SMALL, rngs=rngs))


def away_from_initial(functional):
  """Weights away from what initialisers make special, such as zero biases."""
  rng = np.random.default_rng(0)
  out = {}
  for name, shape in functional.shapes.items():
    noise = rng.standard_normal(shape.shape, np.float32)
    if name.endswith('kernel'):
      out[name] = noise / np.sqrt(shape.shape[-2])
    elif name.endswith('/scale'):
      out[name] = 1 + 0.3 * noise
    else:
      out[name] = 0.3 * noise
  return out


@pytest.fixture(scope='module')
def params(functional):
  return away_from_initial(functional)


@pytest.fixture(scope='module')
def images():
  """Two contexts and a target, and what the pose encoder sees of them."""
  rng = np.random.default_rng(1)
  shapes = (BATCH, 3, HEIGHT, WIDTH, 3), (BATCH, 2, 2, HEIGHT, WIDTH, 3)
  return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


@pytest.fixture(scope='module')
def dense(params, images):
  """Loss and gradients of the reference for a patch mask."""

  gradients = jax.jit(dense_gradients, static_argnums=1)
  return lambda mask: gradients(params, SMALL, *images, mask)


@pytest.fixture(scope='module')
def split(functional, params, images):
  """Loss and gradients of ours for an order of quadrants."""

  @jax.jit
  @jax.value_and_grad
  def gradients(params, images, pairs, order):
    drawn = objective.reconstruct(functional.bind(params), images, pairs, order)
    return jnp.abs(drawn.image - images[:, -1]).mean()

  return lambda order: gradients(params, *images, order)


@pytest.mark.slow
@pytest.mark.parametrize('deal', DEALS)
def test_the_split_equals_the_masked_reference(dense, split, deal):
  order = jnp.array(DEALS[deal])
  want_loss, want = dense(plain_xfactor.mask_of(order, GRID))
  loss, got = split(order)
  assert_close(loss, want_loss)
  assert_gradients_equal(got, want)


@pytest.mark.slow
def test_the_split_equals_the_reference_at_awkward_sizes():
  """One example, one register token, five views, two rows of six patches."""
  config = dataclasses.replace(
    SMALL, encoder_layers=1, renderer_layers=1, registers=1, remat='full'
  )
  functional = Functional(lambda rngs: network.XFactor(config, rngs=rngs))
  params = away_from_initial(functional)
  rng = np.random.default_rng(4)
  images, pairs = (
    rng.uniform(-1, 1, (*shape, 16, 48, 3)).astype(np.float32)
    for shape in ((1, 5), (1, 4, 2))
  )
  order = jnp.array([[3, 0, 1, 2]])

  @jax.jit
  def both(params, images, pairs):
    def loss(params):
      drawn = objective.reconstruct(
        functional.bind(params), images, pairs, order
      )
      return jnp.abs(drawn.image - images[:, -1]).mean()

    mask = plain_xfactor.mask_of(order, (2, 6))
    return (
      jax.value_and_grad(loss)(params),
      dense_gradients(params, config, images, pairs, mask),
    )

  (loss, got), (want_loss, want) = both(params, images, pairs)
  assert_close(loss, want_loss)
  assert_gradients_equal(got, want)


@pytest.mark.slow
def test_the_comparison_tells_deals_apart(dense):
  first, other = (
    dense(plain_xfactor.mask_of(jnp.array(DEALS[deal]), GRID))[1]
    for deal in ('rows', 'each another')
  )
  with pytest.raises(AssertionError):
    assert_gradients_equal(first, other)


def test_a_mask_follows_its_quadrants():
  order = jnp.array([[0, 3, 1, 2], [2, 3, 0, 1]])
  mask = plain_xfactor.mask_of(order, (2, 4)).reshape(2, 2, 4)
  want = [[[0, 0, 1, 1], [1, 1, 0, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]]]
  np.testing.assert_array_equal(mask, want)


def test_augmentation_by_switches_equals_ours():
  config = augment.Config(jitter_prob=0.8, blur_prob=0.5)
  draws = augment.sample(jax.random.key(3), 12, config)
  for switch in (draws.jitter, draws.blur):
    assert 0 < switch.sum() < 12  # Both ways are taken.
  rng = np.random.default_rng(2)
  images = rng.uniform(-1, 1, (12, 2, 16, 24, 3)).astype(np.float32)

  @jax.jit
  def both(images, draws):
    return (
      augment.apply(images, draws, config),
      plain_xfactor.jitter_and_blur(images, draws, config),
    )

  got, want = both(images, draws)
  assert_close(got, want)
  assert np.abs(np.asarray(got) - images).max() > 0.1
