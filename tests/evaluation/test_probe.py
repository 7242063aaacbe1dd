"""The pose probe on latents that hold poses, and on some that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xfactor.errors import UserError
from xfactor.evaluation import poses, probe

QUICK = probe.Config(steps=1000)


def rotations(vectors):
  """Rodrigues' formula, [..., 3] to [..., 3, 3]."""
  angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
  x, y, z = np.moveaxis(vectors, -1, 0) / (angle[..., 0, 0] + 1e-12)
  zero = np.zeros_like(x)
  cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
  cross = cross.reshape(*x.shape, 3, 3)
  return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def clips(seed, count, views=5, scale=1.0, reference=0):
  """World-to-camera [b, v, 4, 4] and what moved, [b, v, 6], since reference."""
  rng = np.random.default_rng(seed)
  motion = rng.normal(0, 0.4, (count, views, 6))
  motion[:, reference] = 0
  relative = np.tile(np.eye(4), (count, views, 1, 1))
  relative[..., :3, :3] = rotations(motion[..., :3])
  relative[..., :3, 3] = scale * motion[..., 3:]
  world = np.tile(np.eye(4), (count, 1, 1, 1))
  world[..., :3, :3] = rotations(rng.normal(size=(count, 1, 3)))
  world[..., :3, 3] = scale * rng.normal(size=(count, 1, 3))
  return relative @ world, motion


def entangle(motion, width=32):
  """A smooth, invertible function of a motion, 0 where there is none."""
  rng = np.random.default_rng(7)
  hidden = np.tanh(motion @ rng.normal(0, 0.8, (6, width)))
  return np.float32(hidden @ rng.normal(0, 1, (width, width)))


def auc(scores):
  return scores.metrics['auc@30'].mean()


@pytest.mark.parametrize(('scale', 'reference'), [(1.0, 0), (250.0, 2)])
def test_recovers_poses_that_latents_hold(scale, reference):
  train, motion = clips(0, 1000, scale=scale, reference=reference)
  rows = probe.training_rows(entangle(motion), train, reference=reference)
  trained = probe.fit(*rows, QUICK)
  assert trained.unit == pytest.approx(0.4 * 3**0.5 * scale, rel=0.05)
  test, motion = clips(1, 100, scale=scale, reference=reference)
  scores = probe.score(
    trained, entangle(motion), test, reference=reference, scene_distance=scale
  )
  assert auc(scores) > 0.8
  assert scores.has_translation.all()
  # Of translations the length too, in the data set's own unit.
  assert scores.metrics['trajectory_error'].shape == (100,)
  guess = trained.predict(entangle(motion))[..., :3, 3]
  truth = poses.relative_poses(test[:, [reference, 1]])
  truth = np.linalg.inv(truth)[:, 0, :3, 3]
  assert np.abs(guess[:, 1] - truth).max() < 0.3 * scale


def test_latents_that_hold_nothing_score_as_chance_does():
  rng = np.random.default_rng(0)
  train, _ = clips(0, 1000)
  test, motion = clips(1, 200)
  noise = rng.normal(size=(1200, 5, 32)).astype(np.float32)
  trained = probe.fit(*probe.training_rows(noise[:1000], train), QUICK)
  got = probe.score(trained, noise[1000:], test)
  another_clips = poses.score(test, np.roll(test, 1, axis=0))
  assert auc(got) < auc(another_clips) + 0.05
  assert auc(got) < 0.2


def test_the_same_seed_gives_the_same_probe():
  rows = probe.training_rows(entangle(clips(0, 20)[1]), clips(0, 20)[0])
  config = probe.Config(steps=20, warmup_steps=5)
  one, same = probe.fit(*rows, config), probe.fit(*rows, config)
  other = probe.fit(*rows, probe.Config(steps=20, warmup_steps=5, seed=1))
  x = rows[0][:3]
  np.testing.assert_array_equal(one.predict(x), same.predict(x))
  assert np.abs(one.predict(x) - other.predict(x)).max() > 1e-3


def test_training_longer_helps():
  motion = clips(0, 200)[1]
  rows = probe.training_rows(entangle(motion), clips(0, 200)[0])
  few, more = (
    probe.fit(*rows, probe.Config(steps=steps, warmup_steps=5)).loss
    for steps in (20, 300)
  )
  assert more < few / 3


def test_sizes_are_those_of_the_public_code():
  rows = np.zeros((4, 256), np.float32), np.tile(np.eye(3, 4), (4, 1, 1))
  trained = probe.fit(*rows, probe.Config(steps=2, warmup_steps=1))
  assert [kernel.shape for kernel, _ in trained.params] == [
    (256, 256),
    (256, 64),
    (64, 12),
  ]
  # Neither latents nor cameras that never change break anything.
  assert np.isfinite(trained.loss)
  assert np.isfinite(trained.predict(rows[0])).all()


def test_predictions_are_rigid():
  rng = np.random.default_rng(0)
  train, motion = clips(0, 50)
  trained = probe.fit(
    *probe.training_rows(entangle(motion), train),
    probe.Config(steps=10, warmup_steps=1),
  )
  got = trained.predict(rng.normal(0, 9, (2, 3, 32)).astype(np.float32))
  assert got.shape == (2, 3, 4, 4)
  assert got.dtype == np.float64
  rotation = got[..., :3, :3]
  unit = rotation @ np.swapaxes(rotation, -1, -2)
  np.testing.assert_allclose(
    unit, np.broadcast_to(np.eye(3), unit.shape), atol=1e-5
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
  np.testing.assert_array_equal(got[..., 3, :], [[[0, 0, 0, 1]] * 3] * 2)


def test_training_rows_leave_out_references_and_bad_frames():
  world_to_camera, motion = clips(0, 3, views=4, reference=1)
  latents = entangle(motion)
  ok = np.ones((3, 4), bool)
  ok[0, 3] = False  # One frame.
  ok[2, 1] = False  # A reference, hence a clip.
  world_to_camera[~ok] = np.nan
  got, relative = probe.training_rows(
    latents, world_to_camera, reference=1, ok=ok
  )
  rows = [(0, 0), (0, 2), (1, 0), (1, 2), (1, 3)]
  np.testing.assert_array_equal(got, [latents[row] for row in rows])
  for row, pose in zip(rows, relative, strict=True):
    np.testing.assert_allclose(pose[:, :3], rotations(motion[row][:3]))
    np.testing.assert_allclose(pose[:, 3], motion[row][3:], atol=1e-12)


def test_bad_input_is_named():
  latents = np.zeros((4, 8), np.float32)
  relative = np.tile(np.eye(3, 4), (4, 1, 1))
  with pytest.raises(UserError, match='at least 2 frames with poses'):
    probe.fit(latents[:1], relative[:1])
  with pytest.raises(UserError, match='some latent poses .* are not finite'):
    probe.fit(latents + np.nan, relative)
  relative[2, 1, 3] = np.inf
  with pytest.raises(UserError, match='some camera poses .* are not finite'):
    probe.fit(latents, relative)


# ------------------------------------------------------------ nearest rotation


def test_nearest_rotation():
  rng = np.random.default_rng(0)
  rotation = rotations(rng.normal(0, 1.5, (64, 3)))
  stretch = rng.normal(size=(64, 3, 3))
  stretch = np.eye(3) + stretch @ np.swapaxes(stretch, -1, -2)
  # The rotation is the one of the polar decomposition.
  got = probe.nearest_rotation(jnp.asarray(rotation @ stretch, jnp.float32))
  np.testing.assert_allclose(got, rotation, atol=1e-5)
  mirrored = probe.nearest_rotation(jnp.diag(jnp.array([3.0, 2.0, -1.0]))[None])
  np.testing.assert_allclose(mirrored[0], np.eye(3), atol=1e-6)


def test_gradient_of_nearest_rotation_is_that_of_differences():
  rng = np.random.default_rng(1)
  matrices = rng.normal(size=(6, 3, 3)).astype(np.float32)
  matrices[0] = np.eye(3)  # Equal singular values.
  matrices[1] = -2 * np.eye(3) + 0.5 * matrices[2]
  weight = jnp.asarray(rng.normal(size=(6, 3, 3)), jnp.float32)
  direction = rng.normal(size=(6, 3, 3)).astype(np.float32)

  def f(x):
    return jnp.sum(weight * probe.nearest_rotation(jnp.asarray(x)), (-2, -1))

  slope = jax.grad(lambda x: f(x).sum())(jnp.asarray(matrices))
  slope = np.sum(slope * direction, axis=(-2, -1))
  step = np.float32(2e-3)
  rise = f(matrices + step * direction) - f(matrices - step * direction)
  np.testing.assert_allclose(slope, rise / (2 * step), rtol=0.03, atol=0.03)


def test_gradient_is_finite_where_no_rotation_is_nearest():
  matrices = jnp.stack([jnp.zeros((3, 3)), -jnp.eye(3)])
  weight = jnp.arange(9.0).reshape(1, 3, 3)
  slope = jax.grad(lambda x: jnp.sum(weight * probe.nearest_rotation(x)))(
    matrices
  )
  assert jnp.isfinite(slope).all()
