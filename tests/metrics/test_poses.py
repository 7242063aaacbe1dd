"""Pose metrics against XFactor's public code, and their invariances."""

import dataclasses

import numpy as np
import pytest

from xfactor.errors import UserError
from xfactor.metrics import poses

OFFICIAL = {
  'Rac': 'rra',
  'Tac': 'rta',
  'Rot_Auc': 'auc_rotation',
  'Trans_Auc': 'auc_translation',
  'SE3_Auc': 'auc',
}
CASES = 23


def ours(official: str) -> str:
  """Returns our name of an official metric."""
  if official.startswith('traj_err'):
    scaled = official.endswith('_scale_invariant')
    return 'trajectory_error' + scaled * '_scale_invariant'
  name, threshold = official.rsplit('_', 1)
  return f'{OFFICIAL[name]}@{threshold}'


def rotations(rng, *shape, angle=180.0):
  """Random rotations by up to `angle` degrees."""
  axis = rng.normal(size=(*shape, 3))
  axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
  theta = np.radians(rng.uniform(0, angle, shape))[..., None, None]
  cross = np.cross(np.eye(3), axis[..., None, :])
  return np.eye(3) + np.sin(theta) * cross + (1 - np.cos(theta)) * cross @ cross


def path(rng, *shape, angle=60.0, moves=1.0):
  """Random poses [*shape, 4, 4]."""
  out = np.tile(np.eye(4), (*shape, 1, 1))
  out[..., :3, :3] = rotations(rng, *shape, angle=angle)
  out[..., :3, 3] = moves * rng.normal(size=(*shape, 3))
  return out


def noisy(rng, target, angle=20.0, moves=0.3):
  return path(rng, *target.shape[:-2], angle=angle, moves=moves) @ target


def scaled(target, scale):
  out = target.copy()
  out[..., :3, 3] *= scale
  return out


def relative_metrics(scores):
  """Those that do not depend on the world."""
  return {k: v for k, v in scores.metrics.items() if 'trajectory' not in k}


def assert_same(a, b, atol=1e-9):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], atol=atol, err_msg=name)


def test_all_cases_of_the_public_code(golden):
  arrays = golden('tps/metrics')
  cases = sorted({key.split('/')[0] for key in arrays})
  assert len(cases) == CASES
  for case in cases:
    values = {
      key.removeprefix(f'{case}/'): value
      for key, value in arrays.items()
      if key.startswith(f'{case}/')
    }
    got = poses.score(values['target_T_cw'], values['pred_T_cw'])
    for name, key in (
      ('rotation_degrees', 'rel_rangle_deg'),
      ('translation_degrees', 'rel_tangle_deg'),
    ):
      # At nothing at all, where the last bit of a cosine shows.
      np.testing.assert_allclose(
        getattr(got, name), values[key], rtol=1e-9, atol=3e-8, err_msg=case
      )
    official = [key for key in values if key.startswith('metric/')]
    assert len(official) == 32
    for key in official:
      name = ours(key.removeprefix('metric/'))
      np.testing.assert_allclose(
        got.metrics[name], values[key], atol=1e-9, err_msg=f'{case} {name}'
      )
    usual = [got.metrics[f'auc_1deg@{t}'] for t in poses.THRESHOLDS]
    np.testing.assert_allclose(
      np.stack(usual, -1), values['auc_1deg_bins'], atol=1e-9, err_msg=case
    )
    still = (
      *('all_identity', 'pure_rotation_both', 'tiny_translation_1e-13'),
      'zero_translation_target_only',
    )
    assert (got.has_translation == (case not in still)).all(), case
    assert got.finite.all()


def test_both_areas_by_histograms():
  degrees = np.random.default_rng(0).uniform(0, 40, (3, 50))
  for t in poses.THRESHOLDS:
    for row, official, usual in zip(
      degrees, poses.auc(degrees, t), poses.auc_1deg(degrees, t), strict=True
    ):
      counts, _ = np.histogram(row, bins=31, range=(0, 30))
      assert official == pytest.approx((np.cumsum(counts / 50)[:t]).mean())
      counts, _ = np.histogram(row, bins=np.arange(t + 1))
      assert usual == pytest.approx((np.cumsum(counts / 50)).mean())


def test_a_batch_is_its_clips():
  rng = np.random.default_rng(1)
  target = path(rng, 2, 3, 5)
  prediction = noisy(rng, target)
  whole = poses.score(target, prediction)
  assert whole.rotation_degrees.shape == (2, 3, 10)
  one = poses.score(target[1, 2], prediction[1, 2])
  assert one.metrics['auc@20'].shape == ()
  assert_same({k: v[1, 2] for k, v in whole.metrics.items()}, one.metrics)
  assert whole.has_translation.shape == whole.finite.shape == (2, 3)


def test_known_angles():
  target = np.tile(np.eye(4), (2, 1, 1))
  target[1, :3, 3] = 0, 0, 1
  turn = np.radians(12.5)
  prediction = np.tile(np.eye(4), (2, 1, 1))
  prediction[1, :3, :3] = [
    [np.cos(turn), -np.sin(turn), 0],
    [np.sin(turn), np.cos(turn), 0],
    [0, 0, 1],
  ]
  # The pair is first to second: its translation is -R_2^T t_2.
  prediction[1, :3, 3] = np.sin(np.radians(7.0)), 0, np.cos(np.radians(7.0))
  got = poses.score(target, prediction)
  np.testing.assert_allclose(got.rotation_degrees, [12.5], atol=1e-6)
  np.testing.assert_allclose(got.translation_degrees, [7.0], atol=1e-6)
  for t in poses.THRESHOLDS:
    assert got.metrics[f'rra@{t}'] == (t > 12.5)
    assert got.metrics[f'rta@{t}'] == (t > 7)
  # Twelve bins of either kind lie below 12.5 degrees.
  assert got.metrics['auc_1deg@20'] == pytest.approx(8 / 20)
  assert got.metrics['auc@30'] == pytest.approx(18 / 30)


@pytest.mark.parametrize('seed', range(5))
def test_neither_world_matters(seed):
  rng = np.random.default_rng(seed)
  target = path(rng, 4, 6)
  prediction = noisy(rng, target)
  base = poses.score(target, prediction)
  motion, other = path(rng, 2, moves=10.0, angle=180.0)
  moved = poses.score(target @ motion, prediction @ other)
  assert_same(relative_metrics(base), relative_metrics(moved))
  np.testing.assert_array_equal(base.has_translation, moved.has_translation)
  # The centres do depend on it, unless both are moved by the same rotation.
  name = 'trajectory_error'
  assert not np.allclose(base.metrics[name], moved.metrics[name])


@pytest.mark.parametrize('scale', [1e-3, 0.5, 7.0, 1e4])
def test_scale_of_the_prediction_does_not_matter(scale):
  rng = np.random.default_rng(3)
  target = path(rng, 4, 6)
  prediction = noisy(rng, target)
  base = poses.score(target, prediction)
  other = poses.score(target, scaled(prediction, scale))
  alike = set(base.metrics) - {'trajectory_error'}
  assert_same(
    {k: base.metrics[k] for k in alike}, {k: other.metrics[k] for k in alike}
  )
  assert not np.allclose(
    base.metrics['trajectory_error'], other.metrics['trajectory_error']
  )


def test_order_of_the_two_matters_for_scaled_centres_alone():
  rng = np.random.default_rng(4)
  target = path(rng, 4, 6)
  prediction = noisy(rng, target)
  base = poses.score(target, prediction)
  swapped = poses.score(prediction, target)
  np.testing.assert_allclose(base.rotation_degrees, swapped.rotation_degrees)
  uneven = 'trajectory_error_scale_invariant'
  assert not np.allclose(base.metrics[uneven], swapped.metrics[uneven])
  alike = set(base.metrics) - {uneven}
  assert_same(
    {k: base.metrics[k] for k in alike}, {k: swapped.metrics[k] for k in alike}
  )


def test_order_of_frames_matters_only_in_that_it_is_the_same():
  rng = np.random.default_rng(5)
  target = path(rng, 6)
  prediction = noisy(rng, target)
  base = poses.score(target, prediction)
  order = rng.permutation(6)
  both = poses.score(target[order], prediction[order])
  # T_ij and T_ji differ in translation, but their rotations do not.
  for t in poses.THRESHOLDS:
    assert base.metrics[f'rra@{t}'] == both.metrics[f'rra@{t}']
  assert poses.score(target, prediction[order]).metrics['auc@20'] < 0.3


def test_a_mirrored_path_is_as_good():
  target = path(np.random.default_rng(6), 5)
  got = poses.score(target, scaled(target, -1.0))
  assert got.metrics['auc@30'] == got.metrics['rta@3'] == 1
  assert got.metrics['trajectory_error_scale_invariant'] < 1e-12
  assert got.metrics['trajectory_error'] > 0.1


@pytest.mark.parametrize('angle', [0.0, 40.0])
def test_cameras_that_do_not_move_are_flagged(angle):
  rng = np.random.default_rng(7)
  target = path(rng, 5, angle=angle, moves=0.0)
  got = poses.score(target, target)
  assert not got.has_translation
  assert got.metrics['rra@3'] == got.metrics['auc_rotation@30'] == 1
  # As in the public code.
  assert got.metrics['rta@30'] == got.metrics['auc@30'] == 0
  # About a point that is not the world's origin.
  far = target @ path(rng, moves=50.0)
  assert not poses.score(far, target).has_translation
  # It is the target that tells.
  assert poses.score(path(rng, 5), target).has_translation


def test_least_baseline_is_relative_to_the_scene():
  target = np.tile(np.eye(4), (3, 1, 1))
  target[:, 0, 3] = 0, 0.6e-3, 1.2e-3
  assert poses.baseline(target) == pytest.approx(1.2e-3)
  assert poses.score(target, target).has_translation
  assert not poses.score(target, target, 2.0).has_translation
  assert not poses.score(scaled(target, 0.5), target).has_translation


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_poses_that_are_not_finite_are_wrong(value):
  rng = np.random.default_rng(8)
  target = path(rng, 2, 4)
  prediction = target.copy()
  prediction[1, 2, 0, 3] = value
  got = poses.score(target, prediction)
  assert got.finite.tolist() == [True, False]
  assert got.metrics['auc@30'].tolist() == [1, 0.5]  # 3 of 6 pairs.
  assert got.metrics['rra@5'].tolist() == [1, 0.5]
  assert np.isinf(got.rotation_degrees[1]).sum() == 3
  assert np.isinf(got.translation_degrees[1]).sum() == 3
  assert np.isnan(got.metrics['trajectory_error']).tolist() == [False, True]
  other = poses.score(prediction, target)
  assert other.finite.tolist() == [True, False]
  assert other.metrics['auc@30'].tolist() == [1, 0.5]


def test_one_frame_is_refused():
  one = np.eye(4)[None]
  with pytest.raises(UserError, match='at least 2 frames'):
    poses.score(one, one)


def test_a_scale_in_a_rotation_is_refused():
  target = path(np.random.default_rng(9), 3)
  bad = target.copy()
  bad[1, :3, :3] *= 0.9
  with pytest.raises(ValueError, match='scale'):
    poses.score(target, bad)


def test_two_frames():
  rng = np.random.default_rng(10)
  target = path(rng, 2)
  got = poses.score(target, target)
  assert got.rotation_degrees.shape == (1,)
  assert got.metrics['auc@3'] == 1


def batch(seed=11, count=200):
  rng = np.random.default_rng(seed)
  target = path(rng, count, 4)
  return target, noisy(rng, target)


def test_means_and_rejected_pairs():
  target, prediction = batch(count=8)
  scores = poses.score(target, prediction)
  accepted = np.arange(8) % 4 != 0
  got = poses.aggregate(scores, accepted)
  assert got.num_pairs == 8
  assert got.acceptance_rate == 0.75
  assert got.num_without_translation == 0
  assert list(got.means) == list(scores.metrics)
  for name, mean in got.means.items():
    values = scores.metrics[name][accepted]
    assert mean.count == 6
    assert mean.value == pytest.approx(values.mean())
    assert mean.low <= mean.value <= mean.high
    if name.startswith('trajectory'):
      assert np.isnan(mean.rejected_as_zero)
    else:
      assert mean.rejected_as_zero == pytest.approx(values.sum() / 8)


def test_interval_is_that_of_the_mean():
  scores = poses.score(*batch())
  accepted = np.ones(200, bool)
  got = poses.aggregate(scores, accepted)
  values = scores.metrics['auc_rotation@20']
  mean = got.means['auc_rotation@20']
  half = 1.96 * values.std() / np.sqrt(200)
  assert mean.low == pytest.approx(mean.value - half, abs=0.15 * half)
  assert mean.high == pytest.approx(mean.value + half, abs=0.15 * half)
  assert poses.aggregate(scores, accepted) == got  # The same seed.
  other = poses.aggregate(scores, accepted, seed=1).means['auc_rotation@20']
  assert other.value == mean.value
  assert other.low != mean.low


def test_still_cameras_count_for_rotations_alone():
  target, _ = batch(count=6)
  target[:2, :, :3, 3] = 0
  scores = poses.score(target, target)
  accepted = np.array([True, False, True, True, True, False])
  got = poses.aggregate(scores, accepted)
  assert got.num_without_translation == 1
  for name in ('auc@20', 'rta@10', 'auc_1deg@5', 'auc_translation_1deg@30'):
    assert got.means[name].value == 1, name
    assert got.means[name].count == 3
    assert got.means[name].rejected_as_zero == pytest.approx(3 / 5)
  for name in ('rra@10', 'auc_rotation@20', 'auc_rotation_1deg@3'):
    assert got.means[name].count == 4, name
    assert got.means[name].rejected_as_zero == pytest.approx(4 / 6)
  assert got.means['trajectory_error'].count == 4
  assert got.means['trajectory_error_scale_invariant'].count == 3


def test_what_is_not_finite_is_rejected():
  target, prediction = batch(count=4)
  prediction[0, 1] = np.nan
  got = poses.aggregate(poses.score(target, prediction), np.ones(4, bool))
  assert got.acceptance_rate == 0.75
  assert all(np.isfinite(m.value) and m.count == 3 for m in got.means.values())


def test_nothing_accepted():
  scores = poses.score(*batch(count=3))
  got = poses.aggregate(scores, np.zeros(3, bool))
  assert got.acceptance_rate == 0
  mean = got.means['auc@20']
  assert (mean.count, mean.rejected_as_zero) == (0, 0)
  assert np.isnan([mean.value, mean.low, mean.high]).all()
  none = poses.aggregate(
    poses.score(*(x[:0] for x in batch())), np.ones(0, bool)
  )
  assert none.num_pairs == 0
  assert np.isnan(none.acceptance_rate)
  assert np.isnan(dataclasses.astuple(none.means['rra@5'])[:4]).all()
