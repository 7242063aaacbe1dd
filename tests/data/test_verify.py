"""Whatever is wrong with converted data has a name in the verdict."""

import dataclasses
import io
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.convert.test_run import Fake, run
from xfactor.data import files, findings, verify
from xfactor.data.convert import part as convert_part
from xfactor.data.records import codec, eval_index, store
from xfactor.data.records import shards as shards_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras


@dataclasses.dataclass(frozen=True)
class Good(Fake):
  """Noise seen by cameras on an arc; clip i is changed by `changes[i]`."""

  changes: tuple = ()

  def clips(self, item):
    for clip in super().clips(item):
      angle = np.linspace(0, 1, len(clip.frames))
      eye = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
      up = np.array([0.0, 0.0, 1.0])
      poses = cameras.look_at(eye, np.zeros_like(eye), up)
      own = {
        'intrinsics': np.tile(np.float32([1, 1, 0.5, 0.5]), (len(eye), 1)),
        'world_to_camera': poses.astype(np.float32),
      }
      clip = dataclasses.replace(clip, **own)
      change = dict(self.changes).get(item.payload)
      yield change(clip) if change else clip


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch):
  """Spares the disk: most of a small conversion's time is its flushes."""
  monkeypatch.setattr(os, 'fsync', lambda _: None)


@pytest.fixture(scope='module')
def converted(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('converted')
  run(Good(frames=20), folder, test_fraction=0.3)
  return folder


@pytest.fixture
def data(converted, tmp_path) -> pathlib.Path:
  """A data set to damage: 6 clips of 20 to 25 frames, one a shard."""
  shutil.copytree(converted, tmp_path / 'data')
  return tmp_path / 'data'


def judge(folder: pathlib.Path, workers: int = 0) -> findings.Report:
  return verify.verify(folder, workers, quiet=True)


def counts(folder: pathlib.Path) -> dict[str, int]:
  """Returns how often each problem was found; the table must tell them all."""
  report = judge(folder)
  text = findings.table(report)
  found = report.problems
  assert report.ok == (not found.counts)
  for kind, count in found.counts.items():
    assert f'{kind}: {count} (' in text
    for example in found.examples[kind]:
      assert f'  {example}' in text
  return dict(found.counts)


def shards(folder: pathlib.Path, config: str = 'frames') -> list[pathlib.Path]:
  return sorted((folder / 'fake' / config / '1.0.0').glob('fake-train*'))


def edit(folder: pathlib.Path, file: str, change) -> None:
  """Changes a JSON file of the data set in place."""
  path = folder / 'fake' / file
  value = files.read_json(path)
  change(value)
  files.write_json(path, value)


def test_a_clean_data_set(data):
  report = judge(data)
  assert report.ok
  rows = {row.split: row for row in report.rows}
  assert set(rows) == {'train', 'test'}
  assert sum(row.clips for row in rows.values()) == 6
  assert sum(row.frames for row in rows.values()) == sum(range(20, 26))
  assert all(row.posed == row.clips for row in rows.values())
  head, *lines = findings.table(report).splitlines()
  assert head.split()[:4] == ['data', 'set', 'version', 'split']
  assert [line.split()[0] for line in lines] == ['fake', 'fake', 'no']
  one = judge(data / 'fake')
  assert findings.table(one) == findings.table(report)


def test_processes_find_the_same(data):
  flip(shards(data)[1])
  assert findings.table(judge(data, workers=2)) == findings.table(judge(data))


def test_a_clean_data_set_without_cameras(tmp_path):
  run(Fake(count=3, cameras=False), tmp_path)
  assert counts(tmp_path) == {}
  assert ' no ' in findings.table(judge(tmp_path))


def test_all_versions_are_read(data):
  for config in ('frames', 'clips'):
    folder = data / 'fake' / config
    shutil.copytree(folder / '1.0.0', folder / '0.9.0')
  path = data / 'fake/frames/0.9.0' / shards(data)[0].name
  path.unlink()
  report = judge(data)
  assert [(row.version, len(row.problems)) for row in report.rows] == [
    ('0.9.0', 0),
    ('0.9.0', 1),
    ('1.0.0', 0),
    ('1.0.0', 0),
  ]


def test_unfinished_conversions_are_noted(data):
  (data / 'fake/.incomplete-1.1.0').mkdir()
  report = judge(data)
  assert report.ok
  assert '.incomplete-1.1.0 is an unfinished conv' in findings.table(report)


@pytest.mark.parametrize('made', ['', 'empty', 'empty/fake/.incomplete-1.0.0'])
def test_nothing_to_read(tmp_path, made):
  (tmp_path / made).mkdir(parents=True, exist_ok=True)
  expected = (
    'holds no converted data set; expected NAME' if made else 'there is'
  )
  with pytest.raises(UserError, match=expected):
    judge(tmp_path / 'empty')


def flip(path: pathlib.Path) -> None:
  """Flips a bit of the first picture of a shard."""
  image = codec.decode_frame(next(shards_lib.read_shard(path)))
  content = bytearray(path.read_bytes())
  content[content.index(image) + 50] ^= 1
  path.write_bytes(content)


def test_flipped_bit(data):
  flip(shards(data)[1])
  assert counts(data) == {'checksum': 1, 'unreadable record': 1}
  (example,) = judge(data).problems.examples['unreadable record']
  assert f'{shards(data)[1]}: record 0: ' in example


@pytest.mark.parametrize('config', ['frames', 'clips'])
def test_truncated_file(data, config):
  path = shards(data, config)[0]
  path.write_bytes(path.read_bytes()[:-100])
  found = counts(data)
  assert found.pop('damaged file') == 1
  # Without clips, neither frames nor the table are of known clips.
  assert set(found) == (set() if config == 'frames' else {*OF_CLIPS})


@pytest.mark.parametrize('config', ['frames', 'clips'])
def test_missing_file(data, config):
  shards(data, config)[0].unlink()
  found = counts(data)
  assert found.pop('missing file') == 1
  assert set(found) == (set() if config == 'frames' else {*OF_CLIPS})


OF_CLIPS = ('clip order', 'clip index')


def test_swapped_files(data):
  a, b = shards(data)[:2]
  a.rename(data / 'kept')
  b.rename(a)
  (data / 'kept').rename(b)
  found = counts(data)
  assert found['checksum'] == found['record count'] == 2
  (first, second) = judge(data).problems.examples['damaged file']
  assert first == f'{a}: has the content of {b.name}'
  assert second == f'{b}: has the content of {a.name}'


def test_files_that_are_equal_by_right_are_whole(tmp_path):
  same = next(iter(Good().clips(Good().items()[0])))
  changes = tuple(
    (i, lambda clip: dataclasses.replace(same, id=clip.id)) for i in (0, 1)
  )
  run(Good(count=3, changes=changes), tmp_path, test_fraction=0)
  assert counts(tmp_path) == {'repeated frames': 1}


def test_edited_index(data):
  path = data / 'fake/clips/1.0.0/clips-train.index.npz'
  with np.load(path) as columns:
    columns = dict(columns)
  columns['num_frames'][1] += 1
  np.savez(path, **columns)
  assert counts(data) == {'clip index': 2}
  checksum, row = judge(data).problems.examples['clip index']
  assert 'sha256' in checksum
  ids = store.open_split(data, 'fake', 'test').clip_ids()
  ids = [f'clip-{i:03d}' for i in range(6) if f'clip-{i:03d}' not in ids]
  frames = int(ids[1][-3:]) + 20
  assert f"has clip '{ids[1]}' of {frames + 1} frames" in row
  assert f"instead of clip '{ids[1]}' of {frames} frames" in row
  path.unlink()
  assert counts(data) == {'clip index': 1}


def test_wrong_counts_in_the_manifest(data):
  def count(manifest):
    manifest['splits']['train']['clips'] += 1

  edit(data, 'clips/1.0.0/manifest.json', count)
  # The two manifests differ, and so do the entry and its shards.
  assert counts(data) == {'manifest': 2}
  edit(data, 'frames/1.0.0/manifest.json', count)
  assert counts(data) == {'manifest': 1}


def test_wrong_records_in_the_manifest(data):
  def count(manifest):
    manifest['splits']['train']['shards'][0]['records'] -= 1

  edit(data, 'frames/1.0.0/manifest.json', count)
  assert counts(data) == {
    'TFDS metadata': 1,
    'manifest': 2,  # The digest and the sum.
    'record count': 1,
    'clip order': 1,  # The clips reach beyond the frames.
  }


@pytest.mark.parametrize('config', ['frames', 'clips'])
@pytest.mark.parametrize('text', [None, '{', '{"format": 99}', '{"format": 1}'])
def test_useless_manifest(data, config, text):
  path = data / 'fake' / config / '1.0.0/manifest.json'
  path.write_text(text) if text else path.unlink()
  assert counts(data) == {'manifest': 1}
  assert str(path) in findings.table(judge(data))


def test_tfds_metadata(data):
  (data / 'fake/frames/1.0.0/features.json').unlink()
  (data / 'fake/clips/1.0.0/dataset_info.json').write_text('{}')
  assert counts(data) == {'TFDS metadata': 2}


@pytest.mark.parametrize(
  ('entries', 'what'),
  [
    ({'views=2,window=20': [['gone', [0, 19]]]}, 'no such clip'),
    ({'views=2,window=20': [['CLIP', [0, 20]]]}, 'not within 20'),
    ({'views=2,window=99': [['CLIP', [0, 40]]]}, 'of the 2. frames'),
    ({'views=2,window=20': [['CLIP', [5, 5]]]}, 'not 2 frames in order'),
    ({'views=3,window=20': [['CLIP', [0, 5]]]}, 'not 3 frames in order'),
    ({'views=2,window=20,cameras': [['CLIP', [5, 0]]]}, 'frames in order'),
    (
      {'views=3,window=20,random': [['CLIP', [5, 0, 5]]]},
      'not 3 different frames',
    ),
    (
      {'views=2,window=20,random,cameras': [['CLIP', [20, 0]]]},
      'not within 20',
    ),
    ({'views': [['CLIP', [0, 5]]]}, 'not views=N,window=M'),
    ([1], 'cannot be used'),
  ],
)
def test_evaluation_index(data, entries, what):
  clip = store.open_split(data, 'fake', 'test').clip_id(0)
  path = data / 'fake/clips/1.0.0/eval_index-test.json'
  assert path.exists()
  files.write_json(path, entries)
  path.write_text(path.read_text().replace('CLIP', clip))
  assert counts(data) == {'evaluation index': 1}
  (example,) = judge(data).problems.examples['evaluation index']
  assert re.search(what, example)


def test_random_evaluation_index(data):
  for posed in (False, True):
    index = eval_index.eval_index(
      data, 'fake', 'test', 4, 10, ordered=False, cameras=posed
    )
    assert (np.diff(index.frames) < 0).any()
  assert counts(data) == {}


def test_evaluation_index_of_no_split(data):
  files.write_json(data / 'fake/clips/1.0.0/eval_index-val.json', {})
  assert counts(data) == {'evaluation index': 1}


def convert_with(folder, change, **options) -> pathlib.Path:
  """Converts three clips to `folder`, clip 1 changed."""
  source = Good(count=3, changes=((1, change),), **options)
  run(source, folder, test_fraction=0)
  return folder


def changed(key: str, index, value):
  """Returns a change of one number of clip 1."""

  def change(clip):
    array = getattr(clip, key).copy()
    array[index] = value
    return dataclasses.replace(clip, **{key: array})

  return change


@pytest.mark.parametrize(
  ('key', 'index', 'value', 'kind', 'what'),
  [
    (
      'world_to_camera',
      (3, 0, 0),
      2,
      'camera',
      'frame 3 has an invalid rotation',
    ),
    (
      'world_to_camera',
      (3, 0),
      -1,
      'camera',
      'frame 3 has an invalid rotation',
    ),
    ('world_to_camera', (4, 1, 3), np.nan, 'camera', 'frame 4 is not finite'),
    ('intrinsics', (5, 0), 0.01, 'camera', 'frame 5 has the focal length'),
    ('intrinsics', (5, 1), 500, 'camera', 'focal length 1, 500, outside'),
    ('intrinsics', (5, 1), -1, 'camera', 'focal length 1, -1, outside'),
    ('intrinsics', (6, 2), 128, 'camera', 'frame 6 has the principal point'),
    ('intrinsics', (6, 2), np.inf, 'camera', 'frame 6 is not finite'),
    ('timestamps', 7, 0.1, 'timestamps', 'frame 7 is not later'),
    ('timestamps', 7, np.nan, 'timestamps', 'frame 7 is not finite'),
  ],
)
def test_cameras_and_times(tmp_path, key, index, value, kind, what):
  convert_with(tmp_path, changed(key, index, value))
  assert counts(tmp_path) == {kind: 1}
  (example,) = judge(tmp_path).problems.examples[kind]
  assert f"clip 'clip-001': {key}: " in example
  assert what in example


@pytest.mark.parametrize(
  ('scale', 'determinant'), [((-1, 1, 1), '-1'), ((2, 0.5, 1), '1')]
)
def test_mirrored_and_stretched_cameras(tmp_path, scale, determinant):
  scale = np.diag(np.float32(scale))

  def change(clip):
    poses = scale @ clip.world_to_camera
    return dataclasses.replace(clip, world_to_camera=poses)

  convert_with(tmp_path, change)
  assert counts(tmp_path) == {'camera': 1}
  assert f'determinant is {determinant}\n' in findings.table(judge(tmp_path))


def test_picture_cut_short(tmp_path):
  def change(clip):
    frames = [*clip.frames]
    frames[2] = frames[2][:-100]
    return dataclasses.replace(clip, frames=frames)

  convert_with(tmp_path, change)
  assert counts(tmp_path) == {'frame': 1}
  assert "record 2, frame 2 of clip 'clip-001'" in findings.table(
    judge(tmp_path)
  )


def test_other_size_than_the_clip_says(tmp_path, monkeypatch):
  monkeypatch.setattr(convert_part, '_check_clip', lambda *_: None)
  convert_with(tmp_path, lambda clip: dataclasses.replace(clip, width=8))
  assert counts(tmp_path) == {'frame size': 11}
  text = findings.table(judge(tmp_path))
  assert '16 x 16 instead of 16 x 8 pixels' in text
  assert '... and 8 more' in text


@pytest.mark.parametrize(
  ('mode', 'size', 'bad'),
  [('I;16', 16, 0), ('I;16', 8, 1), ('L', 16, 1), (None, 16, 1)],
)
def test_depth(tmp_path, monkeypatch, mode, size, bad):
  def png(mode, size):
    out = io.BytesIO()
    Image.new(mode, (size, size)).save(out, 'PNG')
    return out.getvalue()

  original = Good.clips
  odd = png(mode, size) if mode else b'no PNG'

  def clips(self, item):
    for clip in original(self, item):
      depth = [png('I;16', 16)] * len(clip.frames)
      yield dataclasses.replace(clip, depth=[odd, *depth[1:]])

  monkeypatch.setattr(Good, 'clips', clips)
  run(Good(count=1), tmp_path)
  assert counts(tmp_path) == ({'depth': 1} if bad else {})


def glue(folder: pathlib.Path, other: pathlib.Path) -> None:
  """Adds the splits of one data set to those of another."""
  for config in ('frames', 'clips'):
    a, b = (f / 'fake' / config / '1.0.0' for f in (folder, other))
    for path in b.iterdir():
      if not (a / path.name).exists():
        shutil.copy(path, a)
    for file in ('manifest.json', 'dataset_info.json'):
      own, added = files.read_json(a / file), files.read_json(b / file)
      if file == 'manifest.json':
        own['splits'] |= added['splits']
      else:
        own['splits'] += added['splits']
      files.write_json(a / file, own)


def test_the_same_clips_in_two_splits(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  run(Good(count=3, split='train'), a)
  run(Good(count=2, split='test'), b)
  glue(a, b)
  assert counts(a) == {'repeated clip id': 2, 'frames in two splits': 2}
  text = findings.table(judge(a))
  assert "clip 'clip-001' is in test and in train" in text
  assert "'clip-001' of train and clip 'clip-001' of test show the same" in text


@pytest.mark.parametrize(('taken', 'repeated'), [(10, 1), (5, 1), (4, 0)])
def test_pictures_under_another_id(tmp_path, taken, repeated):
  """Clip 2 takes frames of clip 0; a few may be the same by chance."""
  stolen = next(iter(Good().clips(Good().items()[0]))).frames[:taken]

  def change(clip):
    return dataclasses.replace(clip, frames=stolen + clip.frames[taken:])

  run(
    Good(count=3, frames=10, changes=((2, change),)), tmp_path, test_fraction=0
  )
  # Clip 0 has 10 frames.
  assert counts(tmp_path) == ({'repeated frames': 1} if repeated else {})
  both = "clip 'clip-002' of train and clip 'clip-000' of train show the same"
  assert (both in findings.table(judge(tmp_path))) == repeated
