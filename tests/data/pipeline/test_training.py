"""The stream depends on the seed and the step, and on nothing else."""

import dataclasses
import io
import itertools
import pathlib
import re
import shutil
from typing import ClassVar

import grain
import numpy as np
import pytest
from PIL import Image

from tests.data.convert.test_run import Fake, run
from xfactor.data import files, images, sources
from xfactor.data.pipeline import evaluation, fingerprint, reading, training
from xfactor.data.pipeline import order as order_lib
from xfactor.data.pipeline.parts import DataConfig, MixtureEntry
from xfactor.data.pipeline.training import Pipeline
from xfactor.data.records import codec, eval_index, shards
from xfactor.data.records import store as store_lib
from xfactor.data.views import SetViews, Views
from xfactor.errors import UserError
from xfactor.geometry import cameras

VIEWS = Views(num_views=3, window=(3, 9), ramp_steps=40)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> pathlib.Path:
  return make_data(tmp_path_factory.mktemp('data'))


def make_data(folder: pathlib.Path) -> pathlib.Path:
  """Data sets `one` (8 clips in train) and `two` (5)."""
  run(Fake(count=8, split='train'), folder, name='one')
  run(Fake(count=5, split='train', frames=12), folder, name='two')
  return folder


def config(data, **changes) -> DataConfig:
  parts = (
    MixtureEntry('one', VIEWS, weight=0.7),
    MixtureEntry('two', VIEWS, weight=0.3),
  )
  base = DataConfig(
    str(data), parts, batch_size=8, image_size=16, seed=5, threads=0
  )
  return dataclasses.replace(base, **changes)


def take(pipe: Pipeline, count: int, start_step: int = 0):
  batches = pipe.batches(start_step)
  out = list(itertools.islice(batches, count))
  batches.close()
  return out


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      assert x[key].dtype == y[key].dtype
      np.testing.assert_array_equal(x[key], y[key], err_msg=key)


def joined(batches, key):
  return np.concatenate([batch[key] for batch in batches])


def test_batches_hold_the_frames_they_name(data):
  batches = take(Pipeline(config(data)), 6)
  stores = [
    store_lib.open_split(data, name, 'train') for name in ('one', 'two')
  ]
  for step, batch in enumerate(batches):
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
      'images': ((8, 3, 16, 16, 3), 'uint8'),
      'frames': ((8, 3), 'int32'),
      'clip': ((8,), 'int64'),
      'part': ((8,), 'int32'),
      'index': ((8,), 'int64'),
    }
    np.testing.assert_array_equal(batch['index'], np.arange(8) + 8 * step)
    for i in range(8):
      store, clip = stores[batch['part'][i]], int(batch['clip'][i])
      for view, frame in enumerate(batch['frames'][i]):
        (jpeg,) = store.clip_frames(clip, [frame])
        want = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
        assert np.abs(batch['images'][i, view] - want).max() <= 1


def test_other_sizes_are_resized(data):
  (batch,) = take(Pipeline(config(data, image_size=8)), 1)
  assert batch['images'].shape == (8, 3, 8, 8, 3)


@pytest.mark.parametrize(
  ('prob', 'low', 'high'), [(1.0, 1, 1), (0.5, 0.3, 0.7)]
)
def test_examples_are_mirrored_whole_and_are_the_same_otherwise(
  data, prob, low, high
):
  plain = take(Pipeline(config(data)), 12)
  mirrored = take(Pipeline(config(data, mirror_prob=prob)), 12)
  for key in ('frames', 'clip', 'part', 'index'):
    np.testing.assert_array_equal(joined(plain, key), joined(mirrored, key))
  a, b = joined(plain, 'images'), joined(mirrored, 'images')
  same = (a == b).all((1, 2, 3, 4))
  turned = (a[:, :, :, ::-1] == b).all((1, 2, 3, 4))
  assert (same | turned).all()
  assert low <= turned.mean() <= high


def test_mirroring_is_part_of_the_fingerprint(data):
  plain, half = (
    Pipeline(config(data, mirror_prob=p)).fingerprint() for p in (0.0, 0.5)
  )
  assert 'mirror_prob' not in plain
  assert fingerprint.differences(plain, half) == ['mirror_prob: none -> 0.5']


def test_every_clip_comes_once_an_epoch_in_changing_order(data):
  parts = (MixtureEntry('one', VIEWS),)
  clips = joined(take(Pipeline(config(data, parts=parts)), 5), 'clip')
  epochs = clips.reshape(5, 8)
  for epoch in epochs:
    assert sorted(epoch) == list(range(8))
  assert len({tuple(epoch) for epoch in epochs}) > 1


def test_parts_may_start_later():
  order = order_lib.Order(3, [0.7, 0.3, 1.0], [5, 4, 3], [0, 20, 20])
  before = [order[i] for i in range(20)]
  assert {part for part, _ in before} == {0}
  after = [order[i] for i in range(20, 420)]
  parts = [part for part, _ in after]
  assert [parts.count(i) for i in range(3)] == [140, 60, 200]
  # Each part goes on through its permutations, without a gap.
  for part, rows in enumerate([5, 4, 3]):
    seen = [row for x, row in before + after if x == part]
    for epoch in range(0, len(seen) - rows, rows):
      assert sorted(seen[epoch : epoch + rows]) == list(range(rows))


def test_a_mixture_without_starts_is_what_it_was():
  plain = order_lib.Order(3, [0.7, 0.3], [5, 4])
  zero = order_lib.Order(3, [0.7, 0.3], [5, 4], [0, 0])
  mixture = order_lib._Mixture([0.7, 0.3])
  assert [plain[i] for i in range(50)] == [zero[i] for i in range(50)]
  assert [plain[i][0] for i in range(50)] == [mixture[i][0] for i in range(50)]


@pytest.mark.parametrize('starts', [(1, 2), (-1, 0)])
def test_one_part_starts_at_zero(data, starts):
  entries = [
    MixtureEntry(name, VIEWS, start=start)
    for name, start in zip(('one', 'two'), starts, strict=True)
  ]
  with pytest.raises(UserError, match='must start at step 0.*one: '):
    Pipeline(config(data, parts=tuple(entries)))


def test_the_fingerprint_has_starts(data):
  entries = (MixtureEntry('one', VIEWS), MixtureEntry('two', VIEWS, start=2))
  found = Pipeline(config(data, parts=entries)).fingerprint()
  assert 'start' not in found['parts'][0]
  assert found['parts'][1]['start'] == 2


@pytest.mark.parametrize(
  ('weights', 'counts'),
  [
    ((0.7, 0.3), (700, 300)),
    ((7, 3), (700, 300)),
    ((1, 1), (500, 500)),
    ((0.005, 0.995), (5, 995)),
    ((3, 1, 1), (600, 200, 200)),
  ],
)
def test_mixture_is_exact(weights, counts):
  mixture = order_lib._Mixture(weights)
  chosen = [mixture[i] for i in range(1000)]
  parts = np.array([part for part, _ in chosen])
  assert tuple(np.bincount(parts)) == counts
  for part, count in enumerate(counts):
    # Each part's own elements in order, none missing ...
    assert [k for p, k in chosen if p == part] == list(range(count))
    # ... and evenly spread: within one of its share at any time.
    share = np.arange(1, 1001) * count / 1000
    assert np.abs(np.cumsum(parts == part) - share).max() <= 1


def test_batches_follow_the_mixture(data):
  parts = joined(take(Pipeline(config(data)), 5), 'part')
  assert tuple(np.bincount(parts)) == (28, 12)


def test_window_ramp_follows_the_step_alone(data):
  def spans(pipe, start):
    frames = joined(take(pipe, 5, start), 'frames')
    return np.ptp(frames, axis=1) + 1

  pipe = Pipeline(config(data))
  assert spans(pipe, 0).max() == 3
  late = spans(pipe, 40)
  assert 7 <= late.max() <= 9
  # The same step means the same, whatever the batch: twice the batch, half the
  # index. At step 20 windows have at most 6 frames.
  for batch_size in (8, 16):
    ramp = spans(Pipeline(config(data, batch_size=batch_size)), 18)
    assert ramp.max() == 6


def test_seed_changes_clips_and_frames(data):
  a, b = (take(Pipeline(config(data, seed=s)), 5, 40) for s in (5, 6))
  assert np.any(joined(a, 'clip') != joined(b, 'clip'))
  assert np.any(joined(a, 'frames') != joined(b, 'frames'))


def as_png(folder: pathlib.Path, name: str) -> None:
  """Makes the frames of a data set PNGs, with the same pixels."""
  rewrite(
    folder,
    name,
    lambda _, frame: images.encode_png(images.decode(frame)),
  )


def test_png_frames_are_the_same_pixels(data, tmp_path):
  shutil.copytree(data, tmp_path / 'data')
  as_png(tmp_path / 'data', 'one')
  want = take(Pipeline(config(data)), 4)
  assert_same(take(Pipeline(config(tmp_path / 'data')), 4), want)


def test_whole_pictures_are_cropped(tmp_path):
  """Wide and tall clips in one data set; their middle is what is read."""
  run(Shapes(), tmp_path)
  parts = (MixtureEntry('shapes', VIEWS),)
  made = Pipeline(config(tmp_path, parts=parts, image_size=24))
  for batch in take(made, 2):
    for clip, views in zip(batch['clip'], batch['images'], strict=True):
      store = store_lib.open_split(tmp_path, 'shapes', 'train')
      height, width = Shapes.shapes[int(store.clip_id(int(clip)))]
      assert (store.height[clip], store.width[clip]) == (height, width)
      np.testing.assert_array_equal(views, np.full_like(views, 200))


@dataclasses.dataclass(frozen=True)
class Shapes(sources.Source):
  """PNG clips of different shapes: bright middles of 24 pixels, dark sides."""

  shapes: ClassVar = ((24, 40), (40, 24), (24, 24))
  name: ClassVar[str] = 'shapes'
  description: ClassVar[str] = 'Shapes.'

  def items(self):
    return [sources.Item(str(i), split='train') for i in range(3)]

  def clips(self, item):
    height, width = self.shapes[int(item.id)]
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = (height - 24) // 2, (width - 24) // 2
    picture[top : top + 24, left : left + 24] = 200
    frames = [images.encode_png(picture)] * 12
    yield sources.Clip(item.id, frames, height, width)


def test_resume_equals_an_uninterrupted_run(data):
  straight = take(Pipeline(config(data)), 12)
  for step in (1, 7, 11):
    assert_same(take(Pipeline(config(data)), 12 - step, step), straight[step:])
  far = take(Pipeline(config(data)), 1, 10_000_000)
  assert far[0]['index'][0] == 80_000_000


def test_threads_do_not_matter(data):
  want = take(Pipeline(config(data)), 10, 3)
  assert_same(take(Pipeline(config(data, threads=4)), 10, 3), want)


def rewrite(folder: pathlib.Path, name: str, change) -> None:
  """Replaces each frame of `train` by `change(number, frame)`."""
  frames = folder / name / 'frames/1.0.0'
  manifest = files.read_json(frames / 'manifest.json')
  number = 0
  for shard in manifest['splits']['train']['shards']:
    path = frames / shard['file']
    writer = shards.ShardWriter(frames / 'new')
    for record in shards.read_shard(path):
      frame = change(number, codec.decode_frame(record))
      writer.write(codec.encode_frame(frame))
      number += 1
    new = writer.close()
    (frames / 'new').rename(path)
    shard.update(bytes=new.bytes, sha256=new.sha256)
  files.write_json(frames / 'manifest.json', manifest)
  clips_manifest = folder / name / 'clips/1.0.0/manifest.json'
  content = files.read_json(clips_manifest)
  content['splits']['train']['frames_digest'] = files.digest(
    manifest['splits']['train']['shards']
  )
  files.write_json(clips_manifest, content)


def truncate(folder: pathlib.Path, name: str, clips: list[int]) -> None:
  """Cuts the frames of some clips short, with checksums that fit.

  Near their ends: decoders that are not strict would fill in the rest.
  """
  store = store_lib.open_split(folder, name, 'train')
  broken = {
    int(store.first_frame[c]) + i
    for c in clips
    for i in range(int(store.num_frames[c]))
  }
  rewrite(
    folder,
    name,
    lambda number, frame: (
      frame[: len(frame) * 9 // 10] if number in broken else frame
    ),
  )


@pytest.fixture
def broken(data, tmp_path) -> pathlib.Path:
  """A copy of `data` in which clips 2 and 5 of `one` are unreadable."""
  shutil.copytree(data, tmp_path / 'data')
  truncate(tmp_path / 'data', 'one', [2, 5])
  return tmp_path / 'data'


def test_truncated_pngs_are_replaced(data, tmp_path):
  shutil.copytree(data, tmp_path / 'data')
  as_png(tmp_path / 'data', 'one')
  truncate(tmp_path / 'data', 'one', [2, 5])
  batches = Pipeline(config(tmp_path / 'data')).batches()
  got = list(itertools.islice(batches, 10))
  assert batches.bad['one'] >= 5
  of_one = joined(got, 'clip')[joined(got, 'part') == 0]
  assert not np.isin(of_one, (2, 5)).any()


def test_frames_of_another_size_than_their_clips_are_replaced(data, tmp_path):
  shutil.copytree(data, tmp_path / 'data')
  small, large = (
    images.encode_jpeg(np.zeros((n, n, 3), np.uint8)) for n in (8, 24)
  )
  first = store_lib.open_split(data, 'one', 'train').first_frame[3]
  rewrite(
    tmp_path / 'data',
    'one',
    lambda number, frame: (
      small if number < 10 else large if number < first else frame
    ),
  )
  batches = Pipeline(config(tmp_path / 'data')).batches()
  got = list(itertools.islice(batches, 5))
  assert batches.bad['one'] >= 3
  assert joined(got, 'clip')[joined(got, 'part') == 0].min() >= 3


def test_truncated_jpegs_are_replaced_and_counted(data, broken, caplog):
  good = take(Pipeline(config(data)), 10)
  batches = Pipeline(config(broken)).batches()
  got = list(itertools.islice(batches, 10))
  bad = (joined(good, 'part') == 0) & np.isin(joined(good, 'clip'), (2, 5))
  assert bad.sum() >= 5
  # Never dropped: all other elements are where they were.
  for key in ('images', 'frames', 'clip'):
    np.testing.assert_array_equal(
      joined(got, key)[~bad], joined(good, key)[~bad]
    )
  np.testing.assert_array_equal(joined(got, 'part'), joined(good, 'part'))
  np.testing.assert_array_equal(joined(got, 'index'), joined(good, 'index'))
  assert not np.isin(joined(got, 'clip')[bad], (2, 5)).any()
  assert batches.bad_count() >= bad.sum()
  assert batches.bad == {'one': batches.bad_count(), 'two': 0}
  assert 'one/train clip clip-002' in caplog.text
  warnings = [r for r in caplog.records if 'Cannot read' in r.getMessage()]
  assert len(warnings) == min(batches.bad_count(), reading._LOGGED)

  # The stand-ins are a function of the seed and the index, too.
  assert_same(take(Pipeline(config(broken, threads=3)), 6, 4), got[4:])


def flip_bits(folder: pathlib.Path, name: str, clip: int) -> None:
  """Damages all frames of a clip, so that no checksum fits."""
  store = store_lib.open_split(folder, name, 'train')
  jpegs = store.clip_frames(clip, range(int(store.num_frames[clip])))
  for path in (folder / name / 'frames/1.0.0').glob('*array_record*'):
    content = bytearray(path.read_bytes())
    for jpeg in jpegs:
      if (at := content.find(jpeg)) >= 0:
        content[at + len(jpeg) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_bits_are_replaced(data, tmp_path):
  shutil.copytree(data, tmp_path / 'data')
  flip_bits(tmp_path / 'data', 'one', 3)
  batches = Pipeline(config(tmp_path / 'data')).batches()
  got = list(itertools.islice(batches, 5))
  assert batches.bad_count() >= 1
  assert not np.any((joined(got, 'part') == 0) & (joined(got, 'clip') == 3))


def test_too_many_unreadable_examples_stop_the_run(broken, monkeypatch):
  monkeypatch.setattr(training, '_MIN_JUDGED', 40)
  with pytest.raises(
    UserError, match=r"of data set 'one' \(train\) could not be read.*1.00%"
  ):
    take(Pipeline(config(broken)), 20)
  take(Pipeline(config(broken, max_bad_fraction=0.9)), 20)


def test_a_wholly_unreadable_data_set_stops_the_run(data, tmp_path):
  shutil.copytree(data, tmp_path / 'data')
  truncate(tmp_path / 'data', 'two', list(range(5)))
  with pytest.raises(UserError, match='two/train.* in a row could not be read'):
    take(Pipeline(config(tmp_path / 'data')), 2)


def test_short_clips_are_left_out(data, caplog):
  caplog.set_level('INFO', logger='absl')
  parts = (MixtureEntry('one', VIEWS),)
  pipe = Pipeline(config(data, parts=parts, min_length=13))
  assert pipe.num_clips == [5]
  assert '3 of 8 clips have fewer than 13 frames' in caplog.text
  clips = joined(take(pipe, 5), 'clip')
  assert set(clips) == {3, 4, 5, 6, 7}
  wide = Views(num_views=16, window=(16, 16))
  assert Pipeline(
    config(data, parts=(MixtureEntry('one', wide),))
  ).num_clips == [2]


def test_no_clip_is_long_enough(data):
  with pytest.raises(UserError, match='none of the 8 clips of one/train has'):
    Pipeline(config(data, min_length=99))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'parts': ()}, 'names no data set'),
    ({'parts': (MixtureEntry('one', VIEWS, weight=0.0),)}, 'greater than 0'),
    (
      {
        'parts': (
          MixtureEntry('one', VIEWS),
          MixtureEntry('two', Views(num_views=2, window=(3, 9))),
        )
      },
      'same number of views, not one: 3, two: 2',
    ),
    ({'batch_size': 9}, '9 examples does not divide evenly among 2'),
    ({'parts': (MixtureEntry('gone', VIEWS),)}, "no data set 'gone'"),
  ],
)
def test_bad_settings(data, changes, message):
  with pytest.raises(UserError, match=message):
    Pipeline(config(data, **changes), 0, 2)


def test_fingerprint_changes_with_the_order_and_nothing_else(data, broken):
  base = Pipeline(config(data)).fingerprint()
  assert base == Pipeline(config(data), 1, 2).fingerprint()
  assert (
    base
    == Pipeline(config(data, threads=3, prefetch=2, workers=1)).fingerprint()
  )
  parts = config(data).parts
  others = [
    config(data, seed=6),
    config(data, batch_size=16),
    config(data, image_size=8),
    config(data, min_length=11),
    config(data, parts=parts[::-1]),
    config(data, parts=(dataclasses.replace(parts[0], weight=1.0), parts[1])),
    config(
      data,
      parts=(
        dataclasses.replace(
          parts[0], views=dataclasses.replace(VIEWS, flip_prob=0.0)
        ),
        parts[1],
      ),
    ),
    config(broken),
  ]
  digests = {Pipeline(c).fingerprint()['sha256'] for c in others}
  assert len(digests | {base['sha256']}) == len(others) + 1


def test_differences_name_what_changed(data, broken):
  base = Pipeline(config(data)).fingerprint()
  one, two = config(data).parts
  slow = dataclasses.replace(VIEWS, ramp_steps=80)
  assert fingerprint.differences(base, base) == []
  cases = {
    'seed: 5 -> 6': {'seed': 6},
    'batch_size: 8 -> 16': {'batch_size': 16},
    'two.views.ramp_steps: 40 -> 80': {
      'parts': (one, dataclasses.replace(two, views=slow))
    },
    "parts: ['one', 'two'] -> ['two', 'one']": {'parts': (two, one)},
  }
  for want, changes in cases.items():
    other = Pipeline(config(data, **changes)).fingerprint()
    assert fingerprint.differences(base, other) == [want]
  (different,) = fingerprint.differences(
    base, Pipeline(config(broken)).fingerprint()
  )
  assert re.fullmatch(r'one\.records: [0-9a-f]{8} -> [0-9a-f]{8}', different)
  fewer = fingerprint.differences(
    base, Pipeline(config(data, parts=(one,))).fingerprint()
  )
  assert "parts: ['one', 'two'] -> ['one']" in fewer
  assert 'two.weight: 0.3 -> none' in fewer


def test_fingerprints_of_older_runs_stay(data):
  """Made before there were widths and cameras."""
  parts = (MixtureEntry('one', VIEWS, version='1.0.0'),)
  base = Pipeline(config(data, parts=parts)).fingerprint()
  assert base.keys() == {
    *('order', 'seed', 'batch_size', 'image_size', 'min_length', 'parts'),
    'sha256',
  }
  same = config(data, parts=parts, image_width=16)
  assert Pipeline(same).fingerprint() == base
  for key, value in (('image_width', 24), ('cameras', True)):
    other = Pipeline(config(data, parts=parts, **{key: value})).fingerprint()
    assert fingerprint.differences(base, other) == [f'{key}: none -> {value}']
    assert other['sha256'] != base['sha256']


def test_fingerprint_survives_json(data, tmp_path):
  base = Pipeline(config(data)).fingerprint()
  files.write_json(tmp_path / 'f.json', base)
  assert files.read_json(tmp_path / 'f.json') == base


def eval_batches(data, index, **changes):
  return list(
    evaluation.eval_batches(
      str(data),
      'one',
      index,
      **{
        'split': 'train',
        'image_size': 16,
        'batch_size': 4,
        'threads': 0,
        **changes,
      },
    )
  )


def test_eval_reads_the_index_and_pads(data):
  index = eval_index.eval_index(data, 'one', 'train', 2, 11)
  store = store_lib.open_split(data, 'one', 'train')
  assert len(index.clips) == 7
  batches = eval_batches(data, index)
  assert [b['images'].shape for b in batches] == [(4, 2, 16, 16, 3)] * 2
  assert joined(batches, 'mask').tolist() == [True] * 7 + [False]
  np.testing.assert_array_equal(joined(batches, 'example')[:7], range(7))
  np.testing.assert_array_equal(joined(batches, 'clip')[:7], index.clips)
  np.testing.assert_array_equal(joined(batches, 'frames')[:7], index.frames)
  pixels = joined(batches, 'images')
  (jpeg,) = store.clip_frames(int(index.clips[2]), index.frames[2][1:])
  want = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
  assert np.abs(pixels[2, 1] - want).max() <= 1
  assert_same(eval_batches(data, index, threads=3), batches)


def test_eval_order_and_processes(data):
  index = eval_index.eval_index(data, 'one', 'train', 2, 11)
  order = [1, 2, 3, 4, 5, 6, 0]
  whole = eval_batches(data, index, order=order)
  assert joined(whole, 'example')[:7].tolist() == [1, 2, 3, 4, 5, 6, 0]
  halves = [
    eval_batches(data, index, order=order, process_index=i, process_count=2)
    for i in range(2)
  ]
  assert [len(h) for h in halves] == [2, 2]
  for step, batch in enumerate(whole):
    for key in ('images', 'mask'):
      got = np.concatenate([half[step][key] for half in halves])
      np.testing.assert_array_equal(got, batch[key])


def test_eval_never_replaces(broken):
  index = eval_index.eval_index(broken, 'one', 'train', 2, 11)
  with pytest.raises(UserError, match='cannot read clip clip-00[25] frames'):
    eval_batches(broken, index)


def test_eval_batch_must_divide(data):
  index = eval_index.eval_index(data, 'one', 'train', 2, 11)
  with pytest.raises(UserError, match='does not divide evenly'):
    eval_batches(data, index, batch_size=3, process_count=2)


def test_stream_is_a_grain_map_dataset(data):
  """Random access: what the order's guarantees rest on."""
  pipe = Pipeline(config(data))
  dataset = pipe.dataset()
  assert isinstance(dataset, grain.MapDataset)
  (want,) = take(pipe, 1, 17)
  np.testing.assert_array_equal(dataset[17]['images'], want['images'])


# Of the marked point, in front of all cameras.
POINT = np.array([0.3, -0.2, 4.0])
SETS = SetViews(3, (8, 8))


@dataclasses.dataclass(frozen=True)
class Marked(sources.Source):
  """Clips of two shapes; a blob where the camera sees `POINT`.

  Clip 2 has no cameras, and clip 5, the longest, neither.
  """

  name: ClassVar[str] = 'marked'
  description: ClassVar[str] = 'A blob.'

  def items(self):
    return [sources.Item(str(i), i, 'train') for i in range(6)]

  def clips(self, item):
    height, width = ((48, 81), (70, 50))[item.payload % 2]
    n = 16 if item.payload == 5 else 12
    rng = np.random.default_rng(item.payload)
    eyes = rng.uniform(-0.2, 0.2, (n, 3))
    targets = POINT + rng.uniform(-0.3, 0.3, (n, 3))
    poses = cameras.look_at(eyes, targets, np.array([0.0, 0.0, 1.0]))
    focal = rng.uniform(60, 70, (n, 1)) / [[width, height]]
    intrinsics = np.hstack([focal, rng.uniform(0.45, 0.55, (n, 2))])
    seen, _ = cameras.project(np.tile(POINT, (n, 1)), intrinsics, poses)
    y, x = np.mgrid[:height, :width] + 0.5
    frames = []
    for u, v in seen:
      distance = (x - u * width) ** 2 + (y - v * height) ** 2
      grey = np.round(255 * np.exp(-distance / (2 * 2**2))).astype(np.uint8)
      frames.append(images.encode_png(np.repeat(grey[..., None], 3, -1)))
    known = item.payload not in (2, 5)
    yield sources.Clip(
      item.id,
      frames,
      height,
      width,
      intrinsics=intrinsics.astype(np.float32) if known else None,
      world_to_camera=poses.astype(np.float32) if known else None,
    )


@pytest.fixture(scope='module')
def marked(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('marked')
  run(Marked(), folder)
  return folder


def posed(folder, **changes) -> DataConfig:
  parts = (MixtureEntry('marked', SETS),)
  return config(folder, parts=parts, cameras=True, **changes)


def assert_blobs_are_where_cameras_see_them(batch):
  pixels = batch['images'][..., 0].astype(float)
  height, width = pixels.shape[2:]
  y, x = np.mgrid[:height, :width] + 0.5
  total = pixels.sum((2, 3))
  assert total.min() > 1000
  found = np.stack(
    [(pixels * x).sum((2, 3)) / total, (pixels * y).sum((2, 3)) / total], -1
  )
  seen, _ = cameras.project(
    np.broadcast_to(POINT.astype(np.float32), (*total.shape, 3)),
    batch['intrinsics'],
    batch['world_to_camera'],
  )
  np.testing.assert_allclose(found, seen * [width, height], atol=0.3)


@pytest.mark.parametrize('size', [(24, None), (24, 36), (40, 28), (48, 81)])
def test_cameras_are_those_of_the_cropped_pictures(marked, size):
  height, width = size[0], size[1] or size[0]
  made = Pipeline(posed(marked, image_size=size[0], image_width=size[1]))
  batches = take(made, 3)
  for batch in batches:
    assert batch['images'].shape == (8, 3, height, width, 3)
    for key, shape in (('intrinsics', (4,)), ('world_to_camera', (3, 4))):
      assert batch[key].shape == (8, 3, *shape)
      assert batch[key].dtype == np.float32
    assert_blobs_are_where_cameras_see_them(batch)
  # Wide ones and tall ones.
  assert set(joined(batches, 'clip')) == {0, 1, 3, 4}


def test_sets_are_read_in_the_order_drawn(marked):
  frames = joined(take(Pipeline(posed(marked)), 4), 'frames')
  assert (np.diff(frames) < 0).any(1).mean() > 0.5
  assert (np.diff(frames) > 0).any(1).mean() > 0.5


@pytest.mark.parametrize('count', [1, 2, 4])
def test_cameras_do_not_depend_on_who_reads(marked, count):
  changes = {'image_size': 24, 'image_width': 36}
  want = take(Pipeline(posed(marked, **changes)), 4, 3)
  shares = [
    take(Pipeline(posed(marked, threads=2, **changes), i, count), 4, 3)
    for i in range(count)
  ]
  whole = [
    {key: np.concatenate([b[key] for b in parts]) for key in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert_same(whole, want)


def test_clips_without_cameras_are_left_out(marked, caplog):
  caplog.set_level('INFO', logger='absl')
  made = Pipeline(posed(marked))
  assert made.num_clips == [4]
  assert 'marked/train: 2 of 6 clips have no cameras' in caplog.text
  # All others read them.
  assert Pipeline(config(marked, parts=made.config.parts)).num_clips == [6]


def test_no_cameras_at_all(data, tmp_path, marked):
  run(Fake(count=2, cameras=False, split='train'), tmp_path)
  with pytest.raises(
    UserError, match='no clip of fake/train has cameras.* convert a data set'
  ):
    Pipeline(
      config(tmp_path, parts=(MixtureEntry('fake', VIEWS),), cameras=True)
    )
  with pytest.raises(UserError, match='both cameras and the 13 .* has 12'):
    Pipeline(posed(marked, min_length=13))


def read_marked(folder, index, **changes):
  return list(
    evaluation.eval_batches(
      str(folder),
      'marked',
      index,
      **{
        'split': 'train',
        'image_size': 24,
        'image_width': 36,
        'cameras': True,
        'batch_size': 4,
        'threads': 0,
        **changes,
      },
    )
  )


def test_eval_with_cameras(marked):
  index = eval_index.eval_index(
    marked, 'marked', 'train', 5, 8, ordered=False, cameras=True
  )
  (batch,) = read_marked(marked, index)
  assert batch['images'].shape == (4, 5, 24, 36, 3)
  assert batch['intrinsics'].shape == (4, 5, 4)
  assert batch['intrinsics'].dtype == batch['world_to_camera'].dtype
  np.testing.assert_array_equal(batch['frames'], index.frames)
  assert_blobs_are_where_cameras_see_them(batch)
  halves = [
    read_marked(marked, index, process_index=i, process_count=2)[0]
    for i in range(2)
  ]
  for key, want in batch.items():
    got = np.concatenate([half[key] for half in halves])
    np.testing.assert_array_equal(got, want)
  without = read_marked(marked, index, cameras=False)[0]
  assert batch.keys() - without.keys() == {'intrinsics', 'world_to_camera'}
  np.testing.assert_array_equal(without['images'], batch['images'])


def test_eval_names_a_clip_without_cameras(marked):
  index = eval_index.eval_index(marked, 'marked', 'train', 5, 8, ordered=False)
  with pytest.raises(UserError, match='clip [25] of .* has no cameras'):
    read_marked(marked, index)
