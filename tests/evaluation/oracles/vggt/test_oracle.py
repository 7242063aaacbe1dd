"""The VGGT oracle against the official one, on random weights; its guards.

The goldens in tests/golden/tps were made by xfactor-nvs's VggtOracle.
"""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.golden_tolerance import assert_close
from xfactor.errors import UserError
from xfactor.evaluation.oracles import make
from xfactor.evaluation.oracles.vggt import network
from xfactor.evaluation.oracles.vggt import oracle as oracle_lib
from xfactor.geometry import cameras
from xfactor.metrics import poses

# Of the public code's bicubic resizing, see golden_tolerance: PyTorch computes
# places in pictures in float32.
RESIZED = 7.1e-6


@pytest.fixture(scope='module')
def weights(golden):
  return golden('tps/vggt_tiny_weights')


@pytest.fixture(scope='module')
def save(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights')

  def save(weights):
    path = folder / f'{len(list(folder.iterdir()))}.safetensors'
    safetensors.numpy.save_file(weights, path)
    return str(path)

  return save


@pytest.fixture(scope='module')
def file(weights, save):
  return save(weights)


@pytest.fixture(scope='module')
def oracle(file):
  return make('vggt', weights=file)


@pytest.fixture(scope='module')
def small(file):
  """An oracle that sees little, hence quickly."""
  return make('vggt', weights=file, size=56)


@pytest.fixture(scope='module')
def official(golden):
  return golden('tps/oracle_end_to_end')


def draw(frames=3, height=20, width=30):
  rng = np.random.default_rng(frames)
  return rng.integers(0, 256, (frames, height, width, 3), np.uint8)


def test_preprocessing_equals_official(official, golden):
  units = golden('tps/vggt_units')
  for size in ('24x40', '40x24', '90x70'):
    images = np.moveaxis(units[f'resize/in_{size}'], 1, -1)
    want = np.moveaxis(units[f'resize/crop56_{size}'], 1, -1)
    for image, cropped in zip(images, want, strict=True):
      got = oracle_lib.preprocess(image, 56)
      # The official code clips later.
      assert_close(got, np.clip(cropped, 0, 1), RESIZED)
  images = official['target'].astype(np.float32) / 255
  got = np.stack([oracle_lib.preprocess(image) for image in images])
  got = np.moveaxis(got, -1, 1)
  assert (1, *got.shape) == tuple(official['preprocess/shape'])
  for part, name in (
    (got[None, :, :, ::37, ::37], 'strided_37'),
    (got[0].swapaxes(0, 1)[[0, 1, 517]].swapaxes(0, 1), 'rows_0_1_517'),
    (got.mean((2, 3))[None], 'mean'),
  ):
    assert_close(part, official[f'preprocess/{name}'], RESIZED)


@pytest.mark.slow
def test_poses_and_similarity_equal_official(oracle, official):
  target, transfer = (oracle(official[x]) for x in ('target', 'transfer'))
  assert target.ok
  assert target.frame_ok.all()
  assert not target.info['reasons']
  assert target.world_to_camera.dtype == np.float64
  np.testing.assert_array_equal(target.world_to_camera[0], np.eye(4))
  want = official['forward/default/T_cw'][0]
  assert_close(target.world_to_camera, want)
  # Another frame as the world, and other frames as the network's reference.
  moved = target.world_to_camera @ np.linalg.inv(target.world_to_camera[2])
  want = official['forward/ref2/T_cw'][0]
  assert_close(moved, want)
  for name, reference in (('ref1', 1), ('refneg1', 3)):
    encoding = oracle.encode(official['target'], reference)
    assert_close(
      network.world_to_camera(encoding),
      official[f'forward/nomid_{name}/T_cw'][0],
    )
  check_similarity(target, transfer, official, 'tps', 0)


@pytest.mark.slow
def test_batch_equals_official(oracle, official):
  """Five frames, so that the middle one is unambiguous."""
  images = [
    np.moveaxis(np.rint(official[f'{name}_batched'][0] * 255), 1, -1)
    for name in ('target', 'transfer')
  ]
  results = oracle.batch([(x.astype(np.uint8), None) for x in images])
  want = official['forward_batched/T_cw'][0]
  assert_close(results[0].world_to_camera, want)
  check_similarity(*results, official, 'tps_batched', 0)


def check_similarity(target, transfer, official, group, row):
  scores = poses.score(target.world_to_camera, transfer.world_to_camera)
  names = {'traj_err_unscaled': 'trajectory_error'}
  names['traj_err_scale_invariant'] = 'trajectory_error_scale_invariant'
  for t in poses.THRESHOLDS:
    names |= {f'Rac_{t}': f'rra@{t}', f'Tac_{t}': f'rta@{t}'}
    names |= {f'Rot_Auc_{t}': f'auc_rotation@{t}'}
    names |= {f'Trans_Auc_{t}': f'auc_translation@{t}'}
    names |= {f'SE3_Auc_{t}': f'auc@{t}'}
  assert len(names) == 32
  for theirs, ours in names.items():
    want = official[f'{group}/{theirs}'][row]
    assert_close(scores.metrics[ours], want, scale=1)


def test_intrinsics_are_of_the_whole_picture(weights, save):
  """Points keep their places when the network's crop is undone."""
  # A head that always answers with a vertical field of view of 1 rad and a
  # horizontal one of 0.8, no motion.
  answer = np.float32([0, 0, 0, 0, 0, 0, 1, 1, 0.8])
  last = 'camera_head.pose_branch.fc2'
  constant = {
    f'{last}.weight': np.zeros_like(weights[f'{last}.weight']),
    f'{last}.bias': answer / 4,  # Summed over four iterations.
  }
  height, width = 40, 70
  oracle = make('vggt', weights=save(weights | constant), size=56)
  result = oracle(draw(3, height, width))
  # 40 x 70 becomes 56 x 98, of which columns 21 to 77 are seen.
  seen = np.array([0.5 / np.tan(0.4), 0.5 / np.tan(0.5), 0.5, 0.5])
  points = np.array([[0.3, 0.2, 1.0], [-0.2, 0.1, 2.0]])
  pose = np.eye(4)[:3]
  for point in points:
    uv, _ = cameras.project(point, seen, pose)
    whole, _ = cameras.project(point, result.intrinsics[1], pose)
    np.testing.assert_allclose(
      whole, [(21 + 56 * uv[0]) / 98, uv[1]], atol=1e-5
    )


def test_pictures_that_hardly_change_are_not_ok(small):
  images = np.repeat(draw(1), 4, 0)
  images[2, 0, 0] ^= 255
  result = small(images)
  assert not result.ok
  assert not result.frame_ok.any()
  assert np.isfinite(result.world_to_camera).all()
  assert 'differ by' in result.info['reasons'][0]
  json.dumps(result.info)
  # One frame that differs is enough.
  images[2] = draw(2)[1]
  assert small(images).ok


def test_short_baselines_are_not_ok(file, small):
  images = draw()
  baseline = small(images).info['baseline']
  centres = poses.camera_centres(small(images).world_to_camera)
  np.testing.assert_allclose(
    baseline, np.linalg.norm(centres, axis=-1).max(), rtol=1e-9
  )
  for factor, ok in ((0.99, True), (1.01, False)):
    oracle = make('vggt', weights=file, size=56, min_baseline=baseline * factor)
    result = oracle(images)
    assert result.ok == ok
    assert bool(result.info['reasons']) != ok


@pytest.mark.parametrize('broken', ['not finite', 'no rotation'])
def test_what_is_no_pose_is_not_ok(broken, weights, save):
  weights = dict(weights)
  last = 'camera_head.pose_branch.fc2'
  for name in (f'{last}.weight', f'{last}.bias'):
    weights[name] = weights[name].copy()
    if broken == 'not finite':
      weights[name][1] = np.nan
    else:
      weights[name][3:7] = 0
  result = make('vggt', weights=save(weights), size=56)(draw())
  assert not result.ok
  assert not result.frame_ok.any()
  assert 'frames 0, 1, 2' in result.info['reasons'][0]
  assert result.intrinsics is None or np.isfinite(result.intrinsics).all()


def test_one_frame_lost_leaves_the_others(small, monkeypatch):
  encoding = small.encode(draw(), 1)
  encoding[2, 3] = np.inf
  monkeypatch.setattr(small, 'encode', lambda *_: encoding)
  result = small(draw())
  assert not result.ok
  np.testing.assert_array_equal(result.frame_ok, [True, True, False])


def test_settings_tell_results_apart(weights, save, small):
  other = dict(weights)
  other['camera_head.empty_pose_tokens'] = np.ones((1, 1, 9), np.float32)
  settings = [
    make('vggt', weights=save(w), size=56).settings() for w in (weights, other)
  ]
  assert settings[0] == small.settings()
  assert settings[0] != settings[1]
  assert json.loads(json.dumps(settings)) == settings


def test_bad_input(file, small, tmp_path):
  with pytest.raises(UserError, match='1 frame'):
    small(draw(1))
  with pytest.raises(UserError, match='no.pt do not exist; download'):
    make('vggt', weights=str(tmp_path / 'no.pt'))
  with pytest.raises(UserError, match='needs the option'):
    make('vggt')
  with pytest.raises(UserError, match='size 57.*multiple of 14'):
    make('vggt', weights=file, size=57)
  with pytest.raises(UserError, match="dtype 'float16'; choose"):
    make('vggt', weights=file, dtype='float16')
