"""What is said of an oracle is what it did, on pictures as bad as is said."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial import transform

from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.evaluation.oracles import base, degradation

SIZE = 16


@dataclasses.dataclass(frozen=True)
class Rooms(synthetic.Source):
  """The last room stands still between its first and its last frame."""

  def clips(self, item):
    for clip in super().clips(item):
      path = clip.world_to_camera.copy()
      if item.payload == self.scenes - 1:
        path[-1] = path[0]
      yield dataclasses.replace(clip, world_to_camera=path)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  source = Rooms(scenes=3, frames=6, size=SIZE, test_fraction=0.0)
  convert_run.convert(source, folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'synthetic', 'train')


class Scripted(base.PoseOracle):
  """Does for each kind of pictures what it is told, and keeps what it saw."""

  name = 'scripted'
  version = '7'

  def __init__(self, *script):
    self._script, self.seen = script, []

  def settings(self):
    return {}

  def __call__(self, images, scene=None):
    raise AssertionError('clips come in batches')

  def batch(self, clips):
    self.seen.append(clips)
    out = []
    for act, (_, scene) in zip(self._script, clips, strict=True):
      path = scene.store.clip(scene.clip).world_to_camera[scene.frames]
      out.append(act(base.from_poses(path)))
    return out


def right(result):
  return result


def turned(result):
  """The middle of three cameras looks 2 degrees aside."""
  path = result.world_to_camera.copy()
  turn = transform.Rotation.from_euler('y', 2, degrees=True).as_matrix()
  path[1, :3] = turn @ path[1, :3]
  return dataclasses.replace(result, world_to_camera=path)


def partly(result):
  """The last camera is lost; what stands in its place means nothing."""
  path = result.world_to_camera.copy()
  path[2] = 5.0
  frame_ok = np.array([True, True, False])
  return dataclasses.replace(
    result, world_to_camera=path, ok=False, frame_ok=frame_ok
  )


def lost(result):
  return dataclasses.replace(
    result,
    world_to_camera=np.full_like(result.world_to_camera, np.nan),
    ok=False,
    frame_ok=np.zeros(len(result.frame_ok), bool),
  )


def test_numbers(store):
  oracle = Scripted(right, turned, partly, lost, right, right, right)
  result = degradation.measure(oracle, store, [0, 1], 3)
  exact, off, part, none, *_ = (row.numbers for row in result.rows)
  assert result.clips == ['000000', '000001']
  assert result.truth.shape == (2, 3, 4, 4)
  assert (exact['ok_clips'], exact['ok_frames']) == (1, 1)
  assert exact['rotation_degrees_90'] < 1e-3
  assert exact['translation_degrees_90'] < 1e-3
  assert exact['auc@30'] == exact['auc@30_rejected_as_zero'] == 1
  # Two of three pairs.
  assert off['rotation_degrees'] == pytest.approx(2, abs=1e-4)
  assert off['rotation_degrees_90'] == pytest.approx(2, abs=1e-4)
  assert 0.9 < off['auc@30'] < 1
  assert part['ok_clips'] == 0
  assert part['ok_frames'] == pytest.approx(2 / 3)
  assert part['rotation_degrees'] < 1e-3
  assert part['auc@30'] is None
  assert part['auc@30_rejected_as_zero'] == 0
  assert np.isnan(result.rows[2].paths[:, 2]).all()
  assert (none['ok_frames'], none['auc@30_rejected_as_zero']) == (0, 0)
  assert none['rotation_degrees'] is none['translation_degrees_90'] is None


def test_rejected_clips_and_pairs_that_do_not_move(store):
  class Picky(Scripted):
    def batch(self, clips):
      found = super().batch(clips)
      return [lost(x) for x in found] if clips[0][1].clip == 1 else found

  result = degradation.measure(Picky(*[turned] * 7), store, num_frames=3)
  assert result.rows[0].ok.tolist() == [True, False, True]
  numbers = result.rows[0].numbers
  assert numbers['ok_clips'] == pytest.approx(2 / 3)
  assert numbers['auc@30_rejected_as_zero'] == pytest.approx(
    2 / 3 * numbers['auc@30']
  )
  # The definition calls a pair at one place 90 degrees off.
  assert numbers['translation_degrees_90'] < 3


def test_pictures(store):
  oracle = Scripted(*[right] * 7)
  degradation.measure(oracle, store, [0], 3, size=32)
  ((clean, *blurs, _, _, noise),) = (
    [images for images, _ in clips] for clips in oracle.seen
  )
  assert clean.shape == (3, 32, 32, 3)
  for worse in blurs[-1], noise:
    assert worse.shape == clean.shape
    assert not (worse == clean).all()
  assert [scene.frames.tolist() for _, scene in oracle.seen[0]] == [
    [0, 2, 5]
  ] * 7
  degradation.measure(oracle, store, [0], 3, window=4)
  assert oracle.seen[1][0][0].shape == (3, SIZE, SIZE, 3)
  assert oracle.seen[1][0][1].frames.tolist() == [1, 3, 4]


def test_blur_grows_with_the_size_and_keeps_frames_apart():
  rng = np.random.default_rng(0)
  for size in 128, 256:
    pictures = np.zeros((2, size, size, 3), np.uint8)
    pictures[0, :, size // 2 :, 0] = 200
    out = degradation.worse(pictures, 'blur', 3.0, rng)
    assert not out[1].any()
    assert not out[..., 1:].any()
    edge = np.gradient(out[0, size // 2, :, 0].astype(float))
    at = np.arange(size) - (size - 1) / 2
    width = np.sqrt((edge * at**2).sum() / edge.sum())
    assert width == pytest.approx(3 * size / 128, rel=0.05)


def test_noise():
  rng = np.random.default_rng(0)
  grey = np.full((2, 64, 64, 3), 128, np.uint8)
  off = degradation.worse(grey, 'noise', 0.05, rng) - 128.0
  assert off.std() == pytest.approx(255 * 0.05, rel=0.02)
  assert abs(off.mean()) < 0.5


def test_text_and_json(store):
  oracle = Scripted(right, turned, partly, lost, right, right, right)
  result = degradation.measure(oracle, store, [0, 1], 3)
  title, head, *lines = str(result).splitlines()
  assert 'scripted 7 on 2 clips of synthetic/train, 3 frames' in title
  assert 'AUC@30' in head
  assert len(lines) == 7
  assert lines[0].split() == [
    *('true', 'frames', '100.0', '100.0', '0.00', '0.00', '0.00', '0.00'),
    *('100.0', '100.0'),
  ]
  assert lines[3].split() == ['blur', '3', '0.0', '0.0', *'-----', '0.0']
  row = result.summary()['rows'][1]
  assert (row['kind'], row['sigma']) == ('blur', 1)
  assert row['rotation_degrees'] == pytest.approx(2, abs=1e-4)


def test_what_cannot_be_measured(store, tmp_path):
  oracle = Scripted(*[right] * 7)
  with pytest.raises(UserError, match='at least 2'):
    degradation.measure(oracle, store, num_frames=1)
  with pytest.raises(UserError, match='no more than the window'):
    degradation.measure(oracle, store, num_frames=5, window=4)
  with pytest.raises(UserError, match='synthetic/train has cameras for 7'):
    degradation.measure(oracle, store, num_frames=7)

  @dataclasses.dataclass(frozen=True)
  class Blind(synthetic.Source):
    def clips(self, item):
      for clip in super().clips(item):
        path = clip.world_to_camera.copy()
        path[1] = np.nan
        yield dataclasses.replace(
          clip, world_to_camera=None if item.payload else path
        )

  source = Blind(scenes=2, frames=3, size=SIZE, test_fraction=0.0)
  convert_run.convert(source, tmp_path, workers=0, quiet=True)
  blind = store_lib.open_split(tmp_path, 'synthetic', 'train')
  with pytest.raises(UserError, match='no clip of synthetic/train'):
    degradation.measure(oracle, blind, num_frames=3)
  result = degradation.measure(oracle, blind, num_frames=2)
  assert result.clips == ['000000']
