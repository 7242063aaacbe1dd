"""The transfer test where the truth of a transfer can be drawn."""

import functools
import json

import numpy as np
import pytest
from scipy import ndimage

from tests.evaluation import test_transfer_test
from tests.evaluation.reports import test_evaluation
from xfactor.data import images as images_lib
from xfactor.data import rerender
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.evaluation import transfer_test
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.inference import latent

pytestmark = pytest.mark.slow

SIZE = 64


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  source = synthetic.Source(scenes=7, frames=8, size=SIZE)
  convert_run.convert(source, folder, workers=0, quiet=True)
  with pytest.MonkeyPatch.context() as patch:
    # To light the scenes is what takes time here.
    baked = functools.lru_cache(None)(synthetic._baked.__wrapped__)
    patch.setattr(synthetic, '_baked', baked)
    yield store_lib.open_split(folder, 'synthetic', 'train')


class Seer(latent.Model):
  """Knows the cameras of all frames, and draws the truth, perhaps blurred."""

  def __init__(self, store, sigma=0.0):
    self.image_size = SIZE
    self._said = set()
    self._store, self._sigma = store, sigma
    self._known = {}
    for clip in range(len(store)):
      frames = store.clip_frames(clip, range(8))
      for frame, camera in zip(frames, self.cameras(clip), strict=True):
        self._known[images_lib.decode(frame).tobytes()] = clip, camera

  def cameras(self, clip):
    cameras = np.tile(np.eye(4), (8, 1, 1))
    cameras[:, :3] = self._store.clip(clip).world_to_camera
    return cameras

  def encode_poses(self, frames, reference=0):
    cameras = np.stack([self._known[x.tobytes()][1] for x in frames])
    return (cameras @ np.linalg.inv(cameras[reference])).reshape(-1, 16)

  def render(self, context, context_poses, target_poses):
    clip, start = self._known[context[0].tobytes()]
    path = target_poses.reshape(-1, 4, 4) @ start
    pictures, _ = rerender.rerender(self._store, clip, path, SIZE)
    return ndimage.gaussian_filter(pictures, (0, self._sigma, self._sigma, 0))


class Still(oracles_base.PoseOracle):
  """Trusts every clip."""

  name = 'still'
  version = '1'

  def settings(self):
    return {}

  def __call__(self, images, scene=None):
    return oracles_base.from_poses(np.tile(np.eye(4), (len(images), 1, 1)))


@pytest.fixture(scope='module')
def pairs(store):
  return test_transfer_test.pairs_of(store, count=len(store), window=7)


@pytest.fixture(scope='module')
def result(store, pairs):
  return transfer_test.evaluate(
    Seer(store, sigma=3), store, pairs, Still(), num_pictures=len(pairs)
  )


def test_blurred_truth_is_identified_and_other_pictures_by_chance(result):
  assert set(result.truth) == set(transfer_test.ROWS) - {'shuffled'}
  assert 2 < result.candidates.min() <= result.candidates.max() <= 8
  assert result.true_mean('true re-render', 'identified') == 1
  assert result.true_mean('model', 'identified') == 1
  assert result.true_mean('autoencoded', 'identified') == 1
  assert result.chance < 0.3
  for row in ('frozen', 'other motion'):
    assert result.true_mean(row, 'identified') < 0.5
    assert 0.2 < result.true_mean(row, 'rank') < 0.8
  assert np.isnan(result.truth['true re-render']['psnr']).all()


def test_psnr_is_to_the_truth_without_the_reference(store, pairs, result):
  free = result.accepted['true re-render']
  np.testing.assert_array_equal(
    np.isfinite(result.truth['model']['psnr']), free
  )
  seer = Seer(store)
  i = int(np.flatnonzero(free)[0])
  motion, scene = pairs[i]
  moved = motion.targets != motion.contexts[motion.reference]
  assert moved.tolist() == [True, True, False, True, True]
  cameras = seer.cameras(motion.clip)
  path = cameras[motion.targets] @ np.linalg.inv(cameras[motion.contexts[0]])
  path = path @ seer.cameras(scene.clip)[scene.contexts[0]]
  truth, _ = rerender.rerender(store, scene.clip, path, SIZE)
  error = np.float64(truth) - result.pictures['drawn'][i]
  error = np.square(error[moved] / 255).mean((1, 2, 3))
  got = result.truth['model']['psnr'][i]
  assert got == pytest.approx((-10 * np.log10(error)).mean(), abs=0.01)


def test_truth_in_tables(result, tmp_path):
  title, head, model, *_ = transfer_test.table('rooms', result).splitlines()
  assert f'{100 * result.chance:.1f} by chance' in title
  assert head.split()[-2:] == ['PSNR', 'IDENT.']
  psnr = result.true_mean('model', 'psnr')
  assert float(model.split()[-2]) == pytest.approx(psnr, rel=1e-3)
  transfer_test.write(tmp_path / 'x.json', result)
  saved = json.loads((tmp_path / 'x.json').read_text())
  assert saved['chance'] == result.chance
  row = saved['rows']['model']
  assert row['psnr'] == psnr
  assert len(row['each']['identified']) == len(saved['candidates'])
  assert saved['rows']['true re-render']['psnr'] is None
  assert 'psnr' not in saved['rows']['shuffled']
  page = test_evaluation.Page(test_evaluation.write(tmp_path, transfer=result))
  assert 'IDENT.' in page.text


def test_one_pair_has_no_other_motions(store, pairs):
  result = transfer_test.evaluate(Seer(store), store, pairs[:1], Still())
  assert result.candidates.tolist() == [1]
  assert np.isnan(result.truth['model']['identified']).all()
  assert transfer_test.table('rooms', result).splitlines()[2].split()[-1] == '-'
