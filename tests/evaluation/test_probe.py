"""The pose probe on latents that hold poses, and on some that do not."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from xfactor.data import files, images, sources
from xfactor.data import views as views_lib
from xfactor.data.convert import run as convert_run
from xfactor.data.records import folders, store
from xfactor.errors import UserError
from xfactor.evaluation import probe, probe_network
from xfactor.inference import latent, restore
from xfactor.metrics import poses
from xfactor.training import build

QUICK = probe_network.Config(steps=1000)


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


@pytest.mark.slow
@pytest.mark.parametrize(('scale', 'reference'), [(1.0, 0), (250.0, 2)])
def test_recovers_poses_that_latents_hold(scale, reference):
  train, motion = clips(0, 1000, scale=scale, reference=reference)
  rows = probe_network.training_rows(
    entangle(motion), train, reference=reference
  )
  trained = probe_network.fit(*rows, QUICK)
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


@pytest.mark.slow
def test_latents_that_hold_nothing_score_as_chance_does():
  rng = np.random.default_rng(0)
  train, _ = clips(0, 1000)
  test, motion = clips(1, 200)
  noise = rng.normal(size=(1200, 5, 32)).astype(np.float32)
  trained = probe_network.fit(
    *probe_network.training_rows(noise[:1000], train), QUICK
  )
  got = probe.score(trained, noise[1000:], test)
  another_clips = poses.score(test, np.roll(test, 1, axis=0))
  assert auc(got) < auc(another_clips) + 0.05
  assert auc(got) < 0.2


@pytest.mark.slow
def test_the_same_seed_gives_the_same_probe():
  rows = probe_network.training_rows(entangle(clips(0, 20)[1]), clips(0, 20)[0])
  config = probe_network.Config(steps=20, warmup_steps=5)
  one, same = probe_network.fit(*rows, config), probe_network.fit(*rows, config)
  other = probe_network.fit(
    *rows, probe_network.Config(steps=20, warmup_steps=5, seed=1)
  )
  x = rows[0][:3]
  np.testing.assert_array_equal(one.predict(x), same.predict(x))
  assert np.abs(one.predict(x) - other.predict(x)).max() > 1e-3


@pytest.mark.slow
def test_training_longer_helps():
  motion = clips(0, 200)[1]
  rows = probe_network.training_rows(entangle(motion), clips(0, 200)[0])
  few, more = (
    probe_network.fit(
      *rows, probe_network.Config(steps=steps, warmup_steps=5)
    ).loss
    for steps in (20, 300)
  )
  assert more < few / 3


def test_sizes_are_those_of_the_public_code():
  rows = np.zeros((4, 256), np.float32), np.tile(np.eye(3, 4), (4, 1, 1))
  trained = probe_network.fit(
    *rows, probe_network.Config(steps=2, warmup_steps=1)
  )
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
  trained = probe_network.fit(
    *probe_network.training_rows(entangle(motion), train),
    probe_network.Config(steps=10, warmup_steps=1),
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
  got, relative = probe_network.training_rows(
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
    probe_network.fit(latents[:1], relative[:1])
  with pytest.raises(UserError, match='some latent poses .* are not finite'):
    probe_network.fit(latents + np.nan, relative)
  relative[2, 1, 3] = np.inf
  with pytest.raises(UserError, match='some camera poses .* are not finite'):
    probe_network.fit(latents, relative)


TRAIN, TEST, LENGTH, SIZE = 60, 20, 30, 8
WINDOW, TARGETS = 8, 5
BRIEF = probe_network.Config(steps=600, batch=64, warmup_steps=50)


def walk(clip, still=False):
  """Motion [n, 6] of a camera that turns and moves on the ground."""
  rng = np.random.default_rng(clip)
  time = np.linspace(-1, 1, LENGTH)[:, None]
  motion = np.zeros((LENGTH, 6))
  motion[:, [1, 3, 5]] = time * rng.normal(0, 2, 3)
  motion[:, [1, 3, 5]] += rng.normal(0, 0.05, (LENGTH, 3))
  motion[:, 3:] *= not still
  return motion


@functools.cache
def cameras(clip, still=False):
  motion = walk(clip, still)
  rotation = rotations(motion[:, :3])
  return np.concatenate([rotation, motion[:, 3:, None]], -1)


@dataclasses.dataclass(frozen=True)
class Walks(sources.Source):
  """Pictures whose red is the number of the clip and green of the frame."""

  name = 'walks'
  description = 'Walks.'
  unknown: tuple[int, ...] = ()
  lost: tuple[int, ...] = ()
  still: tuple[int, ...] = ()
  count: int = TRAIN + TEST

  def items(self):
    return [
      sources.Item(f'{i:02d}', i, split='train' if i < TRAIN else 'test')
      for i in range(TRAIN + TEST - self.count, TRAIN + TEST)
    ]

  def clips(self, item):
    i = item.payload
    known = np.float32(cameras(i, i in self.still))
    if i in self.lost:
      known[:, 0, 0] = np.nan
    frames = [
      images.encode_png(np.tile(np.uint8([i, j, 0]), (SIZE, SIZE, 1)))
      for j in range(LENGTH)
    ]
    yield sources.Clip(
      item.id,
      frames,
      SIZE,
      SIZE,
      world_to_camera=None if i in self.unknown else known,
    )


class Surveyor(latent.Model):
  """A model whose latents hold the poses of `Walks`, or nothing."""

  def __init__(self, noise=False):
    self.image_size = SIZE
    self.batches = []
    self._said = set()
    self._noise = noise

  def encode_pairs(self, references, frames):
    self.batches.append(len(frames))
    if self._noise:
      rng = np.random.default_rng(len(self.batches))
      return np.float32(rng.normal(size=(len(frames), 32)))
    here, there = (
      np.array([cameras(i)[j] for i, j in x[:, 0, 0, :2].tolist()])
      for x in (frames, references)
    )
    rotation = here[..., :3] @ there[..., :3].mT
    motion = np.zeros((len(frames), 6))
    motion[:, 1] = np.arctan2(rotation[:, 0, 2], rotation[:, 0, 0])
    motion[:, 3:] = here[..., 3]
    motion[:, 3:] -= np.einsum('nij,nj->ni', rotation, there[..., 3])
    return entangle(motion)


def splits(folder, **options):
  convert_run.convert(Walks(**options), folder, workers=0, quiet=True)
  return [store.open_split(folder, 'walks', s) for s in ('train', 'test')]


@pytest.fixture(scope='module')
def walks(tmp_path_factory):
  return splits(tmp_path_factory.mktemp('data'))


def evaluate(model, stores, **options):
  options = {'targets': TARGETS, 'window': WINDOW, 'config': BRIEF} | options
  return probe.evaluate(model, *stores, **options)


@pytest.fixture(scope='module')
def results(walks):
  return {
    'poses': evaluate(Surveyor(), walks),
    'noise': evaluate(Surveyor(noise=True), walks),
  }


def aucs(result):
  return {row: s.means['auc@30'].value for row, s in result.summaries.items()}


def test_poses_that_latents_hold_are_told_and_others_are_not(results):
  got = aucs(results['poses'])
  assert tuple(got) == probe.ROWS
  assert got['probe'] > 0.8
  assert got['shuffled'] < 0.2
  assert got['mean motion'] < 0.2
  loss = results['poses'].losses
  assert loss['probe'] < loss['shuffled'] / 3
  noise = aucs(results['noise'])
  assert noise['probe'] < max(noise['shuffled'], noise['mean motion']) + 0.05


def test_what_is_learnt_from_and_tested_on(results):
  result = results['poses']
  windows = TRAIN * (LENGTH // WINDOW)
  assert result.train == probe.Side(
    'walks/train', TRAIN, windows, windows * (TARGETS - 1), 0
  )
  assert result.test == probe.Side(
    'walks/test', TEST, TEST, TEST * (TARGETS - 1), 0
  )
  summary = result.summaries['probe']
  assert (summary.num_pairs, summary.acceptance_rate) == (TEST, 1)


@pytest.mark.slow
def test_windows_are_fixed_and_batches_full(walks, results):
  model = Surveyor()
  again = evaluate(model, walks)
  for row in probe.ROWS:
    np.testing.assert_array_equal(
      again.scores[row].rotation_degrees,
      results['poses'].scores[row].rotation_degrees,
    )
  rows = (TARGETS - 1) * np.array([64, 64, TRAIN * 3 - 128, TEST])
  assert model.batches == rows.tolist()


def test_windows_of_a_clip_share_no_frame(walks):
  chosen = probe._choose(walks[0], TARGETS, WINDOW, 1000)
  for clip_id in walks[0].clip_ids():
    windows = [frames for i, frames in chosen if i == clip_id]
    assert windows[0] == [1, 2, 4, 6, 8]
    assert windows[1:] == [[n + k for n in windows[0]] for k in (10, 20)]
  few = [clip_id for clip_id, _ in probe._choose(walks[0], TARGETS, WINDOW, 7)]
  assert few == sorted(walks[0].clip_ids(), key=files.unit_hash)[:7]
  # The middle one, as the transfer test has it.
  (_, frames), *_ = probe._choose(walks[1], TARGETS, WINDOW, None)
  assert frames == views_lib.eval_frames(LENGTH, TARGETS, WINDOW).tolist()


@pytest.mark.slow
def test_clips_without_cameras_are_left_out_and_still_ones_told(tmp_path):
  last = TRAIN + TEST - 1
  stores = splits(
    tmp_path, unknown=(0, 1, last), lost=(2,), still=(last - 1, last - 2)
  )
  config = probe_network.Config(steps=2, warmup_steps=1)
  result = evaluate(Surveyor(), stores, max_windows=TRAIN, config=config)
  assert (result.train.clips, result.train.without_cameras) == (TRAIN - 3, 3)
  assert (result.test.clips, result.test.without_cameras) == (TEST - 1, 1)
  summary = result.summaries['probe']
  assert summary.num_without_translation == 2
  assert summary.means['rra@20'].count == TEST - 1
  assert summary.means['auc@20'].count == TEST - 3
  assert '2 paths of a still camera' in probe.table('walks', result)


def test_numbers_on_disk_and_in_a_table(results, tmp_path):
  result = results['poses']
  bad = result.scores['probe'].metrics | {'rta@20': np.full(TEST, np.nan)}
  scores = dataclasses.replace(result.scores['probe'], metrics=bad)
  result = dataclasses.replace(result, scores=result.scores | {'probe': scores})
  probe.write(tmp_path / 'x.json', result)
  saved = json.loads((tmp_path / 'x.json').read_text())
  assert saved['train']['clips'] == TRAIN
  assert set(saved['losses']) == {'probe', 'shuffled'}
  assert set(saved['rows']) == set(probe.ROWS)
  row = saved['rows']['probe']
  assert row['mean']['auc@20']['low'] <= row['mean']['auc@20']['value']
  assert row['each']['rta@20'] == [None] * TEST
  head, columns, *lines = probe.table('walks', result).splitlines()
  assert f'{TRAIN * 12} frames of {TRAIN} clips, tested on {TEST} paths' in head
  assert 'still' not in head
  assert columns.split()[:2] == ['RRA@20', 'RTA@20']
  assert [line[2:16].strip() for line in lines] == list(probe.ROWS)
  value = result.summaries['probe'].means['auc@20'].value
  assert f' {100 * value:.1f} ' in lines[0]
  assert len({len(line) for line in (columns, *lines)}) == 1


@pytest.fixture(scope='module')
def network():
  config = small.recipe('none')
  built = build.build(config)
  restored = restore.Restored(config, 6, built, built.init().params)
  return latent.Model(restored, batch=8, progress=False)


def test_each_frame_is_encoded_with_its_own_reference(network):
  size = network.image_size
  frames = np.random.default_rng(0).integers(0, 256, (11, size, size, 3))
  frames = frames.astype(np.uint8)
  pairs = network.encode_pairs(frames[::-1], frames)
  assert pairs.shape == (11, network.pose_dim)
  for i in (0, 4, 10):
    alone = network.encode_poses(frames[[10 - i, i]])[1]
    np.testing.assert_allclose(pairs[i], alone, atol=1e-6)
  assert np.abs(pairs[0] - pairs[4]).max() > 1e-4
  with pytest.raises(UserError, match='2 references for 11 frames'):
    network.encode_pairs(frames[:2], frames)


def test_a_model_that_diverged_is_said_not_scored(network, walks):
  lost = jax.tree.map(lambda x: x * np.nan, network._params)
  with pytest.raises(UserError, match='poses .* of step 7 .* not finite'):
    evaluate(network.at(7, lost), walks)


def test_data_that_a_probe_cannot_use_is_said(walks, tmp_path):
  model = Surveyor()
  with pytest.raises(UserError, match=r'0 clips of walks/train have 31 frames'):
    evaluate(model, walks, window=31)
  with pytest.raises(UserError, match='cannot hold 5 targets'):
    evaluate(model, walks, window=4)
  numbers = range(TRAIN - 2, TRAIN + TEST)
  stores = splits(tmp_path / 'a', count=TEST + 2, unknown=(*numbers,))
  with pytest.raises(UserError, match=r'no cameras .* of walks/train'):
    evaluate(model, stores)
  stores = splits(tmp_path / 'b', count=TEST + 2, unknown=(TRAIN - 1,))
  with pytest.raises(UserError, match=r'1 clips of walks/train have 8 frames'):
    evaluate(model, stores)
  assert not model.batches
  path = folders.clips_folder(tmp_path / 'b', 'walks', '1.0.0')
  path = path / 'probe_index-train.json'
  path.write_text(path.read_text().replace(f'"{TRAIN - 2}"', '"gone"'))
  with pytest.raises(UserError, match='probe_index-train.json names .* gone'):
    evaluate(model, stores)


def test_nearest_rotation():
  rng = np.random.default_rng(0)
  rotation = rotations(rng.normal(0, 1.5, (64, 3)))
  stretch = rng.normal(size=(64, 3, 3))
  stretch = np.eye(3) + stretch @ np.swapaxes(stretch, -1, -2)
  # The rotation is the one of the polar decomposition.
  got = probe_network.nearest_rotation(
    jnp.asarray(rotation @ stretch, jnp.float32)
  )
  np.testing.assert_allclose(got, rotation, atol=1e-5)
  mirrored = probe_network.nearest_rotation(
    jnp.diag(jnp.array([3.0, 2.0, -1.0]))[None]
  )
  np.testing.assert_allclose(mirrored[0], np.eye(3), atol=1e-6)


def test_gradient_of_nearest_rotation_is_that_of_differences():
  rng = np.random.default_rng(1)
  matrices = rng.normal(size=(6, 3, 3)).astype(np.float32)
  matrices[0] = np.eye(3)  # Equal singular values.
  matrices[1] = -2 * np.eye(3) + 0.5 * matrices[2]
  weight = jnp.asarray(rng.normal(size=(6, 3, 3)), jnp.float32)
  direction = rng.normal(size=(6, 3, 3)).astype(np.float32)

  def f(x):
    return jnp.sum(
      weight * probe_network.nearest_rotation(jnp.asarray(x)), (-2, -1)
    )

  slope = jax.grad(lambda x: f(x).sum())(jnp.asarray(matrices))
  slope = np.sum(slope * direction, axis=(-2, -1))
  step = np.float32(2e-3)
  rise = f(matrices + step * direction) - f(matrices - step * direction)
  np.testing.assert_allclose(slope, rise / (2 * step), rtol=0.03, atol=0.03)


def test_gradient_is_finite_where_no_rotation_is_nearest():
  matrices = jnp.stack([jnp.zeros((3, 3)), -jnp.eye(3)])
  weight = jnp.arange(9.0).reshape(1, 3, 3)
  slope = jax.grad(
    lambda x: jnp.sum(weight * probe_network.nearest_rotation(x))
  )(matrices)
  assert jnp.isfinite(slope).all()
