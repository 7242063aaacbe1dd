"""The transfer test on cameras that can be read off the pictures' colours."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.training import small
from xfactor.data import images as images_lib
from xfactor.data import sources
from xfactor.data.convert import run as convert_run
from xfactor.data.records import folders
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.evaluation import pairs as pairs_lib
from xfactor.evaluation import run, transfer_test
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.inference import latent, restore
from xfactor.metrics import frechet
from xfactor.training import build
from xfactor.training.resilience import checkpoints

SIZE, CLIPS, LENGTH = 32, 6, 24


@dataclasses.dataclass(frozen=True)
class Walks(sources.Source):
  """Flat pictures whose red and green are the camera's place on the ground."""

  name = 'walks'
  description = 'Walks.'
  marked: int = -1

  def items(self):
    return [sources.Item(f'{i:02d}', i, split='test') for i in range(CLIPS)]

  def clips(self, item):
    rng = np.random.default_rng(item.payload)
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(
      0, rng.uniform(1, 3), LENGTH
    )
    step = 4 * np.stack([np.cos(angle), np.sin(angle)], -1)
    place = np.cumsum(step, axis=0)
    place = np.round(128 + place - place.mean(0)).astype(np.uint8)
    blue = 255 if item.payload == self.marked else 0
    frames = [
      np.broadcast_to(np.uint8([x, y, blue]), (SIZE, SIZE, 3)) for x, y in place
    ]
    data = [images_lib.encode_png(np.ascontiguousarray(x)) for x in frames]
    yield sources.Clip(item.id, data, SIZE, SIZE)


class Reader(oracles_base.PoseOracle):
  """Reads the place off the colours; refuses what is blue."""

  name = 'reader'
  version = '1'

  def settings(self):
    return {}

  def __call__(self, images, scene=None):
    oracles_base.check_images(images)
    poses = np.tile(np.eye(4), (len(images), 1, 1))
    poses[:, [0, 2], 3] = -images[:, 0, 0, :2] / 10.0
    result = oracles_base.from_poses(poses)
    ok = bool(images[0, 0, 0, 2] < 128)
    return dataclasses.replace(result, ok=ok)


class Painter(latent.Model):
  """A model whose latents are differences of colour: it transfers perfectly."""

  def __init__(self):
    self.image_size = SIZE
    self._said = set()

  def encode_poses(self, frames, reference=0):
    colour = frames[:, 0, 0].astype(np.float32)
    return colour - colour[reference]

  def render(self, context, context_poses, target_poses):
    start = context[(len(context) - 1) // 2, 0, 0]
    colour = np.clip(np.round(start + target_poses), 0, 255).astype(np.uint8)
    shape = (len(colour), SIZE, SIZE, 3)
    return np.broadcast_to(colour[:, None, None], shape).copy()


def store_of(folder, **options):
  convert_run.convert(Walks(**options), folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'walks', 'test')


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return store_of(tmp_path_factory.mktemp('data'))


def pairs_of(store, count=8, contexts=1, targets=5, window=16):
  return pairs_lib.fixed_pairs(
    store, count, contexts=contexts, targets=targets, window=window
  )


def test_pairs_are_of_different_clips_and_stay(store):
  pairs = pairs_of(store, count=100)
  assert len(pairs) == CLIPS * (CLIPS - 1)
  ids = [(a.clip, b.clip) for a, b in pairs]
  assert len(set(ids)) == len(ids)
  assert all(a != b for a, b in ids)
  # Each clip is motion and scene once in the first round.
  assert sorted(a for a, _ in ids[:CLIPS]) == list(range(CLIPS))
  assert sorted(b for _, b in ids[:CLIPS]) == list(range(CLIPS))
  again = pairs_of(store, count=100)
  for one, other in zip(pairs, again, strict=True):
    for x, y in zip(one, other, strict=True):
      assert x.clip == y.clip
      np.testing.assert_array_equal(x.targets, y.targets)


@pytest.mark.parametrize('contexts', [1, 5])
def test_frames_lie_in_the_middle_window(store, contexts):
  (motion, _), *_ = pairs_of(store, contexts=contexts)
  assert motion.targets.tolist() == [4, 7, 11, 15, 19]
  assert len(motion.contexts) == contexts
  assert motion.contexts.min() >= 4
  assert motion.contexts.max() <= 19
  middle = motion.contexts[motion.reference]
  assert abs(middle - 11.5) <= 1


def test_a_perfect_transfer_and_its_null_rows(store):
  result = transfer_test.evaluate(Painter(), store, pairs_of(store), Reader())
  auc = {row: s.means['auc@20'].value for row, s in result.summaries.items()}
  assert auc['model'] > 0.99
  assert auc['autoencoded'] > 0.99
  assert auc['frozen'] == 0
  assert auc['shuffled'] < 0.8
  assert auc['other motion'] < 0.8
  assert {s.acceptance_rate for s in result.summaries.values()} == {1.0}
  np.testing.assert_array_equal(
    result.scores['shuffled'].metrics['rra@20'], np.ones(8)
  )


@dataclasses.dataclass(frozen=True)
class Turned(Walks):
  """The same walks, turned around."""

  name = 'turned'

  def items(self):
    return super().items()[:4]

  def clips(self, item):
    for clip in super().clips(item):
      yield dataclasses.replace(clip, frames=clip.frames[::-1])


def test_another_data_set_can_give_the_motions(store, tmp_path):
  convert_run.convert(Turned(), tmp_path, workers=0, quiet=True)
  motions = store_lib.open_split(tmp_path, 'turned', 'test')
  pairs = pairs_lib.fixed_pairs(
    store, 100, contexts=1, targets=5, window=16, motions=motions
  )
  assert len(pairs) == 4 * CLIPS
  assert len({(a.clip, b.clip) for a, b in pairs}) == len(pairs)
  assert all(a.store is motions and b.store is store for a, b in pairs)
  # Pairs of one data set stay as they were.
  assert len(pairs_of(store, count=100)) == CLIPS * (CLIPS - 1)
  result = transfer_test.evaluate(
    Painter(), store, pairs, Reader(), num_pictures=len(pairs)
  )
  auc = {row: s.means['auc@20'].value for row, s in result.summaries.items()}
  assert auc['model'] > 0.99
  assert auc['autoencoded'] > 0.99
  assert auc['frozen'] == 0
  for (motion, scene), shown, first in zip(
    pairs, result.pictures['motion'], result.pictures['scene'], strict=True
  ):
    frames = motions.clip_frames(motion.clip, motion.targets)
    np.testing.assert_array_equal(shown, [*map(images_lib.decode, frames)])
    (frame,) = store.clip_frames(scene.clip, scene.contexts)
    np.testing.assert_array_equal(first, images_lib.decode(frame))


def test_clips_of_several_pairs_are_looked_at_once(store, monkeypatch):
  calls = {'clip_frames': 0, 'encode_poses': 0, 'render': 0}

  def count(owner, name):
    wrapped = getattr(owner, name)

    def counted(*args):
      calls[name] += 1
      return wrapped(*args)

    monkeypatch.setattr(owner, name, counted)

  model = Painter()
  count(store, 'clip_frames')
  count(model, 'encode_poses')
  count(model, 'render')
  pairs = pairs_of(store, count=CLIPS * (CLIPS - 1))
  result = transfer_test.evaluate(
    model, store, pairs, Reader(), num_pictures=len(pairs)
  )
  # Contexts and targets of each clip; each pair, and each clip after itself.
  assert calls == {
    'clip_frames': 2 * CLIPS,
    'encode_poses': 2 * CLIPS,
    'render': len(pairs) + CLIPS,
  }
  assert result.summaries['model'].means['auc@20'].value > 0.99
  for i in (0, 7, -1):
    alone = transfer_test.evaluate(model, store, [pairs[i]], Reader())
    for name, pictures in alone.pictures.items():
      np.testing.assert_array_equal(result.pictures[name][i], pictures[0])


def test_a_model_that_diverged_is_said_not_scored(store):
  built = build.build(small.recipe('none'))
  lost = jax.tree.map(lambda x: x * np.nan, built.init().params)
  restored = restore.Restored(small.recipe('none'), 7, built, lost)
  model = latent.Model(restored, batch=8, progress=False)
  with pytest.raises(UserError, match='poses .* of step 7 .* not finite'):
    transfer_test.evaluate(model, store, pairs_of(store), Reader())


class Colours(frechet.Features):
  """Features for a Frechet distance: mean colours."""

  def __init__(self):
    self.name = 'fd_colours'

  def __call__(self, images):
    return images.mean((1, 2)).astype(np.float32)


def test_frechet_distances_are_to_the_scenes_real_frames(store, monkeypatch):
  pairs = pairs_of(store)
  monkeypatch.setattr(transfer_test, '_CHUNK', 3)  # Moments of parts add up.
  result = transfer_test.evaluate(
    Painter(), store, pairs, Reader(), features=Colours(), num_pictures=8
  )
  assert set(result.distances) == {'model', 'autoencoded', 'frozen'}
  # The painter draws B from B's poses as it is.
  assert result.distances['autoencoded'] == pytest.approx(0, abs=1e-4)
  real = [
    images_lib.decode(x)
    for _, b in pairs
    for x in store.clip_frames(b.clip, b.targets)
  ]
  drawn = np.concatenate(result.pictures['drawn'])
  moments = [frechet.Moments.of(Colours()(x)) for x in (np.stack(real), drawn)]
  want = frechet.distance(*moments)
  assert want > 1
  assert result.distances['model'] == pytest.approx(want, rel=1e-6)
  head, *lines = transfer_test.table('walks', result).splitlines()[1:]
  assert head.endswith('FD_COLOURS')
  assert lines[0].split()[-1] == f'{want:.4g}'
  assert lines[-1].split()[-1] == '-'


@pytest.mark.slow
def test_synthetic_scenes_are_drawn_anew(tmp_path):
  source = synthetic.Source(scenes=8, frames=8, size=SIZE)
  convert_run.convert(source, tmp_path, workers=0, quiet=True)
  store = store_lib.open_split(tmp_path, 'synthetic', 'train')
  pairs = pairs_of(store, count=3, window=8)
  seen = []

  class Watcher(Reader):
    def batch(self, clips):
      seen.append([images for images, _ in clips])
      still = np.tile(np.eye(4), (5, 1, 1))
      return [oracles_base.from_poses(still) for _ in clips]

  # Each clip's own motion: what is drawn anew are its own frames, but for JPEG.
  own = [(b, b) for _, b in pairs]
  result = transfer_test.evaluate(Painter(), store, own, Watcher())
  assert 'true re-render' in result.summaries
  # The rows of three pairs that come before, and the motions after them.
  truth, motion = np.float32(seen[-1][12:-3]), np.float32(seen[-1][-3:])
  assert motion.std() > 20
  assert np.abs(truth - motion).mean() < 4
  # Another's motion shows other things, or goes through a wall.
  result = transfer_test.evaluate(Painter(), store, pairs, Watcher())
  truth = seen[-1][12:-3]
  assert len(truth) == result.accepted['true re-render'].sum() > 0
  assert np.abs(truth[0] - motion[0]).mean() > 4


def test_targets_whose_cameras_are_known(store):
  class Known(Reader):
    name = 'known'

    def batch(self, clips):
      assert all(len(scene.frames) == 5 for _, scene in clips)
      return super().batch(clips)

  class Lost(Reader):
    def __call__(self, images, scene=None):
      # What is asked of it are B's real frames and what was drawn of B.
      return dataclasses.replace(super().__call__(images), ok=False)

  pairs = pairs_of(store)
  want = transfer_test.evaluate(Painter(), store, pairs, Reader())
  result = transfer_test.evaluate(
    Painter(), store, pairs, Reader(), target_oracle=Known()
  )
  np.testing.assert_array_equal(result.paths['target'], want.paths['target'])
  lost = transfer_test.evaluate(
    Painter(), store, pairs, Lost(), target_oracle=Known()
  )
  np.testing.assert_array_equal(lost.paths['target'], want.paths['target'])
  assert not lost.accepted['model'].any()


def test_rejected_pairs_count_as_zero_where_it_says_so(tmp_path):
  store = store_of(tmp_path, marked=2)
  pairs = pairs_of(store, count=6)
  result = transfer_test.evaluate(Painter(), store, pairs, Reader())
  marked = store.clip_ids().index('02')
  expected = [marked not in (a.clip, b.clip) for a, b in pairs]
  # A motion from the blue clip makes no blue picture, but its own path fails.
  assert result.accepted['model'].tolist() == expected
  mean = result.summaries['model'].means['auc@20']
  assert mean.value > 0.99
  assert mean.rejected_as_zero == pytest.approx(mean.value * 4 / 6, rel=1e-6)
  text = transfer_test.table('walks', result)
  assert 'reader 1' in text
  assert ' 66.7 ' in text.splitlines()[2]


def test_numbers_and_pictures_on_disk(store, tmp_path):
  result = transfer_test.evaluate(
    Painter(), store, pairs_of(store), Reader(), num_pictures=3
  )
  transfer_test.write(tmp_path / 'x.json', result)
  saved = json.loads((tmp_path / 'x.json').read_text())
  # Scenes that cannot be drawn anew.
  assert set(saved['rows']) == set(transfer_test.ROWS) - {'true re-render'}
  row = saved['rows']['model']
  assert row['mean']['auc@20']['value'] > 0.99
  assert len(row['each']['auc@20']) == 8
  assert 'psnr' not in row
  assert 'PSNR' not in transfer_test.table('walks', result)
  picture = transfer_test.panel(result)
  # Two rows a pair; the scene and five targets.
  assert picture.shape == (4 * (6 * 34 - 2), 4 * (6 * 34 - 2), 3)


def test_too_short_clips_and_windows_are_said(store):
  with pytest.raises(UserError, match='0 clips .* have 30 frames'):
    pairs_of(store, window=30)
  with pytest.raises(UserError, match='cannot hold 5 targets'):
    pairs_of(store, window=4)


def test_an_index_of_clips_that_are_gone_is_said(tmp_path):
  store = store_of(tmp_path)
  pairs_of(store)
  path = folders.clips_folder(tmp_path, 'walks', '1.0.0')
  path = path / 'transfer_index-test.json'
  path.write_text(path.read_text().replace('"03"', '"gone"'))
  with pytest.raises(UserError, match='transfer_index-test.json names .* gone'):
    pairs_of(store)


@pytest.mark.slow
def test_the_binarys_test_on_a_run(tmp_path):
  store_of(tmp_path / 'data')
  config = small.recipe(tmp_path / 'data', eval__pairs=4, eval__targets=3)
  config = config.copy_and_resolve_references().unlock()
  config.data.mix = {'walks': config.data.mix.squares}
  config.eval.window = 8
  config.lock()
  built = build.build(config)
  with contextlib.closing(checkpoints.Checkpoints(tmp_path / 'run')) as saved:
    meta = {'config': json.loads(config.to_json_best_effort()), 'data': {}}
    saved.save(built.init(), meta)
    saved.wait()
  evaluation = run.Evaluation(config, str(tmp_path / 'run'), oracle=Reader())
  evaluation(0)
  folder = tmp_path / 'run/eval/00000000'
  assert (folder / 'walks_tps-reader.png').exists()
  saved = json.loads((folder / 'walks_tps-reader.json').read_text())
  assert saved['rows']['model']['pairs'] == 4
  assert evaluation.is_done(0)
  (folder / 'walks_tps-reader.json').unlink()  # As if killed before it.
  assert (tmp_path / 'run/eval/00000000.json').exists()
  assert not evaluation.is_done(0)
  # Paths are kept, and found again.
  kept = sorted((tmp_path / 'run/eval/poses').iterdir())
  times = [p.stat().st_mtime_ns for p in kept]
  evaluation(0)
  again = sorted((tmp_path / 'run/eval/poses').iterdir())
  assert [p.stat().st_mtime_ns for p in again] == times
