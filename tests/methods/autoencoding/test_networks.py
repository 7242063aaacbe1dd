"""RUST and RayZer: what their poses may know, and what they are made of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xfactor.errors import UserError
from xfactor.methods.autoencoding import blocks, rayzer, rust
from xfactor.nn.functional import Functional

SIZES = {
  'features': 16,
  'heads': 2,
  'patch_size': 8,
  'encoder_layers': 1,
  'scene_layers': 1,
  'decoder_layers': 1,
  'dtype': 'float32',
  'remat': 'none',
}
CONFIGS = {
  'rust': rust.RustConfig(**SIZES, pose_dim=3),
  'rayzer': rayzer.RayZerConfig(**SIZES, scene_tokens=4),
}
NETWORKS = {'rust': rust.Rust, 'rayzer': rayzer.RayZer}
# What a picture can depend on: a rotation, a translation and a lens.
FREEDOM = {'rust': 3, 'rayzer': 7}
HALF = 16  # Pixels, of the width.
LEFT = jnp.array([True, False])

both = pytest.mark.parametrize('name', NETWORKS)


def functional(name, **changes):
  config = dataclasses.replace(CONFIGS[name], **changes)
  return Functional(lambda rngs: NETWORKS[name](config, rngs=rngs))


@functools.cache
def params(name):
  """Of a network all of whose parts matter."""
  rng = np.random.default_rng(0)
  return {
    key: x + 0.1 * rng.standard_normal(x.shape, np.float32)
    for key, x in functional(name).init(jax.random.key(0)).items()
  }


def views(count, batch=2, seed=0):
  """Of 2 x 4 patches."""
  rng = np.random.default_rng(seed)
  return jnp.float32(rng.uniform(-1, 1, (batch, count, 16, 2 * HALF, 3)))


@functools.cache
def program(name, **changes):
  """Poses in the first view's scene and in all contexts', and a picture."""
  made = functional(name, **changes)

  @jax.jit
  def run(params, images, poses=None):
    model = made.bind(params)
    of_all = model.encode_views(images)
    drawn = model.render(images[:, :-1], of_all if poses is None else poses)
    return model.encode(images), of_all, drawn

  return run


@functools.cache
def seen(name):
  """What is drawn of a target, and by which pixels of it that was told."""
  made = functional(name)

  @jax.jit
  def run(params, images, left):
    model = made.bind(params)

    def draw(target):
      whole = jnp.concatenate([images[:, :-1], target[:, None]], axis=1)
      return model.reconstruct(whole, left)[0]

    drawn, back = jax.vjp(draw, images[:, -1])
    asked = jax.random.normal(jax.random.key(1), (12, *drawn.shape))
    return drawn, jax.vmap(back)(asked)[0]

  return run


@pytest.mark.slow
@both
def test_a_target_is_drawn_from_its_pose_alone(name):
  """All that a picture knows of it has as many dimensions as a pose.

  One context: the reference's pose is always the same.
  """
  _, told = seen(name)(params(name), views(2), LEFT)
  for example in np.moveaxis(told, 1, 0):
    spread = np.linalg.svd(example.reshape(12, -1))[1]
    assert (spread[: FREEDOM[name]] > 1e-4 * spread[0]).all()
    assert (spread[FREEDOM[name] :] < 1e-5 * spread[0]).all()


@pytest.mark.slow
def test_rust_never_sees_the_half_that_it_draws():
  _, told = seen('rust')(params('rust'), views(2), LEFT)
  left, right = np.abs(told[..., :HALF, :]), np.abs(told[..., HALF:, :])
  assert left[:, 0].max() > 0
  assert right[:, 1].max() > 0
  assert not right[:, 0].any()
  assert not left[:, 1].any()


def test_rust_draws_the_half_that_it_does_not_see():
  """In its place, as of the whole picture from the same pose."""
  images = views(2)
  run = jax.jit(
    lambda p, x, left: functional('rust').bind(p).reconstruct(x, left)
  )
  drawn, truth = run(params('rust'), images, jnp.array([True, True]))
  np.testing.assert_array_equal(truth, images[:, -1, :, HALF:])
  # Poses are told by the left half.
  _, _, picture = program('rust')(params('rust'), images)
  np.testing.assert_allclose(drawn, picture[:, :, HALF:], atol=1e-5)
  drawn, truth = run(params('rust'), images, ~LEFT)
  np.testing.assert_array_equal(truth[0], images[0, -1, :, :HALF])
  np.testing.assert_array_equal(truth[1], images[1, -1, :, HALF:])


@pytest.mark.slow
def test_rayzer_draws_the_whole_target():
  drawn, _ = seen('rayzer')(params('rayzer'), views(2), LEFT)
  _, _, picture = program('rayzer')(params('rayzer'), views(2))
  np.testing.assert_allclose(drawn, picture, atol=1e-5)


@both
@pytest.mark.parametrize(('batch', 'count'), [(1, 2), (2, 3)])
def test_shapes_and_ranges(name, batch, count):
  """One example, several contexts; pictures that are wider than high."""
  images = views(count, batch)
  in_first, in_all, drawn = program(name)(params(name), images)
  shape = (batch, count, CONFIGS[name].pose_dim)
  assert in_first.shape == in_all.shape == shape
  assert drawn.shape == (batch, 16, 2 * HALF, 3)
  assert 0.05 < np.abs(drawn).max() <= 1
  # One context is the scene of the first view; several are another.
  same = name == 'rayzer' or count == 2
  assert np.allclose(in_first, in_all, atol=1e-6) == same


@both
def test_examples_do_not_meet(name):
  images = views(3)
  other = images.at[0].set(views(3, seed=1)[0])
  before = program(name)(params(name), images)
  after = program(name)(params(name), other)
  for a, b in zip(before, after, strict=True):
    np.testing.assert_allclose(a[1], b[1], atol=1e-6)
    assert not np.allclose(a[0], b[0], atol=1e-3)


def test_rusts_contexts_need_no_poses():
  images = views(3)
  _, poses, drawn = program('rust')(params('rust'), images)
  moved = poses.at[:, :-1].add(1)
  other = program('rust')(params('rust'), images, moved)[2]
  np.testing.assert_array_equal(other, drawn)
  moved = poses.at[:, -1].add(1)
  other = program('rust')(params('rust'), images, moved)[2]
  assert not np.allclose(other, drawn, atol=1e-3)


def test_rusts_scene_is_that_of_all_contexts():
  """A view's pose depends on the others; with `encode`, on the first alone."""
  images = views(3)
  other = images.at[:, 1].set(views(3, seed=1)[:, 1])
  before = program('rust')(params('rust'), images)
  after = program('rust')(params('rust'), other)
  np.testing.assert_allclose(before[0][:, 2], after[0][:, 2], atol=1e-6)
  assert not np.allclose(before[1][:, 2], after[1][:, 2], atol=1e-4)


def test_rayzers_cameras_are_estimated_jointly():
  images = views(3)
  poses = program('rayzer')(params('rayzer'), images)[0]
  assert not poses[:, 0].any()
  np.testing.assert_array_equal(poses[:, 1, 9], poses[:, 2, 9])  # One lens.
  assert not np.allclose(poses[:, 1, :9], poses[:, 2, :9], atol=1e-3)
  other = images.at[:, 1].set(views(3, seed=1)[:, 1])
  moved = program('rayzer')(params('rayzer'), other)[0]
  assert not np.allclose(poses[:, 2], moved[:, 2], atol=1e-4)


def test_rayzer_looks_at_every_views_camera():
  images = views(3)
  _, poses, drawn = program('rayzer')(params('rayzer'), images)
  for view in (1, 2):
    moved = poses.at[:, view, 6].add(1)
    other = program('rayzer')(params('rayzer'), images, moved)[2]
    assert not np.allclose(other, drawn, atol=1e-4)


@both
def test_half_precision_stays_near(name):
  images = views(3)
  want = program(name)(params(name), images)
  half = program(name, dtype='bfloat16')(params(name), images)
  for a, b in zip(half, want, strict=True):
    assert a.dtype == jnp.float32
    difference = np.abs(a - b)
    assert 0 < difference.mean() < 0.03 * np.std(b)


@pytest.mark.parametrize(
  ('change', 'names'),
  [
    ({'heads': 3}, 'config.model.features=16'),
    ({'features': 18}, 'config.model.features=18'),
    ({'dtype': 'float8'}, 'config.model.dtype'),
    ({'remat': 'ful'}, 'config.model.remat'),
    ({'attention': 'flash'}, 'config.model.attention'),
  ],
)
def test_bad_sizes_name_their_key(change, names):
  with pytest.raises(UserError, match=names):
    functional('rust', **change)


def test_places_are_told_by_sines_and_cosines():
  """As of Vaswani et al., 2017: half of them of the row, half of the column."""
  places = jnp.array([[0, 0], [0, 3], [5, 3]])
  code = np.asarray(blocks.sinusoids(places, 16))
  frequencies = 10_000.0 ** (-np.arange(4) / 4)
  angles = np.asarray(places)[..., None] * frequencies
  waves = np.stack([np.cos(angles), np.sin(angles)], -1)
  np.testing.assert_allclose(
    np.sort(code, -1), np.sort(waves.reshape(3, 16), -1), atol=1e-6
  )


@pytest.mark.slow
@both
def test_settings_of_small_models_change_only_the_start(name):
  published = functional(name).init(jax.random.key(0))
  ours = functional(name, tie_qk=True, pose_gain=10.0).init(jax.random.key(0))
  changed = {k for k, x in ours.items() if not (x == published[k]).all()}
  width, pose = SIZES['features'], set()
  for key, x in ours.items():
    if key.endswith('/qkv/kernel'):
      q, k, v = np.split(np.asarray(x), 3, -1)
      np.testing.assert_array_equal(q, k)
      assert not (q == v).any()
    elif key.endswith('/kv/kernel'):
      q = ours[key.replace('/kv/', '/q/')]
      np.testing.assert_array_equal(x[..., :width], q)
      np.testing.assert_array_equal(x[..., width:], published[key][..., width:])
    elif key in changed:
      np.testing.assert_allclose(x, 10 * published[key], rtol=1e-6)
      pose.add(key)
  assert pose == {
    {'rust': 'pose/kernel', 'rayzer': 'pose/layers/1/kernel'}[name]
  }
