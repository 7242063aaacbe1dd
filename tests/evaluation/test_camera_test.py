"""The test of a calibration, with a model whose poses are motions."""

import dataclasses

import numpy as np
import pytest

from tests.evaluation import test_transfer_test, test_true_pictures
from xfactor.data import files
from xfactor.errors import UserError
from xfactor.evaluation import camera_test
from xfactor.inference import calibration, posed_pairs

pytestmark = pytest.mark.slow

store = test_true_pictures.store
pairs = test_true_pictures.pairs


class Mover(test_true_pictures.Seer):
  """Its latent poses are a linear map of the true motions."""

  relative = True
  step, pose_dim, window = 1, 6, 7
  workdir = _calibration = None
  mix = 0.3 * np.eye(6) + 0.1

  def encode_poses(self, frames, reference=0):
    cameras = super().encode_poses(frames, reference).reshape(-1, 4, 4)
    moved = calibration.motions_of(cameras[:, :3]) @ self.mix
    return np.float32(moved)

  def encode_pairs(self, references, frames):
    return np.concatenate(
      [
        self.encode_poses(np.stack(pair))[1:]
        for pair in zip(references, frames, strict=True)
      ]
    )

  def render(self, context, context_poses, target_poses):
    moved = np.float64(target_poses) @ np.linalg.inv(self.mix)
    cameras = np.tile(np.eye(4), (len(moved), 1, 1))
    cameras[:, :3] = calibration.relative_of(moved)
    return super().render(context, context_poses, cameras)


@pytest.fixture(scope='module')
def model(store):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(calibration, '_STEPS', 101)
    patch.setattr(calibration, '_MEMBERS', 2)
    calibration._train.clear_cache()
    mover = Mover(store, sigma=1)
    read = posed_pairs.read(mover, [store], window=7, count=400, seed=0)
    made = calibration.fit(read, step=1, window=7, one_unit=True)
  calibration._train.clear_cache()
  return mover.calibrated(made)


class Knowing(test_true_pictures.Still):
  """Returns a path that does not depend on the pictures."""

  def __init__(self, path):
    self._path = path

  def __call__(self, images, scene=None):
    result = super().__call__(images)
    return dataclasses.replace(result, world_to_camera=self._path)


@pytest.fixture(scope='module')
def result(model, store, pairs):
  path = camera_test._relative(store, pairs[0][0])
  return camera_test.evaluate(model, store, pairs, Knowing(path))


def test_cameras_move_scenes_as_the_motion_itself(result):
  rows = result.pictures
  assert list(rows) == ['network', 'ridge', 'transfer', 'wrong path', 'frozen']
  assert rows['ridge']['psnr'] == pytest.approx(rows['transfer']['psnr'], abs=2)
  assert rows['ridge']['identified'] == rows['transfer']['identified'] == 1
  for null in ('wrong path', 'frozen'):
    assert rows[null]['psnr'] < rows['ridge']['psnr'] - 3
    assert rows[null]['identified'] < 0.5
  assert result.chance < 0.4


def test_paths_are_found(result):
  auc = {row: x.means['auc@20'].value for row, x in result.found.items()}
  assert auc['ridge'] > 0.8
  assert max(auc['shuffled'], auc['mean motion']) < auc['ridge'] - 0.2
  assert result.paths == 7


def test_the_oracle_is_compared_with_what_was_asked(result, pairs):
  """Only the first pair asks for the path that this oracle always finds."""
  drawn = result.drawn['network']
  assert drawn.acceptance_rate == 1
  same = sum(motion is pairs[0][0] for motion, _ in pairs) / len(pairs)
  assert same <= drawn.means['auc@10'].value < 1


def test_table_and_file(result, tmp_path):
  text = camera_test.table('rooms', result)
  for word in ('network', 'wrong path', 'mean motion', 'IDENTIFIED'.lower()):
    assert word in text
  camera_test.write(tmp_path / 'x.json', {'rooms': result})
  saved = files.read_json(tmp_path / 'x.json')['rooms']
  assert saved['pictures']['ridge'] == result.pictures['ridge']
  assert saved['found']['ridge']['means']['auc@20']['value'] > 0.8


def test_clips_without_cameras(model, tmp_path_factory):
  walks = test_transfer_test.store_of(tmp_path_factory.mktemp('walks'))
  chosen = test_transfer_test.pairs_of(walks)
  with pytest.raises(UserError, match='of walks/test has no cameras'):
    camera_test.evaluate(model, walks, chosen)
