"""The on-disk format: what is written is read, by us and by TFDS."""

import dataclasses
import os
import pathlib
import pickle
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg

from tests.data.convert.test_run import Fake, run
from xfactor.data import files, sources
from xfactor.data.convert import options
from xfactor.data.records import codec, eval_index, folders, shards
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch):
  """Spares the disk: most of a small conversion's time is its flushes."""
  monkeypatch.setattr(os, 'fsync', lambda _: None)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> pathlib.Path:
  """A folder with the data set `fake`: 12 clips, split by hash."""
  folder = tmp_path_factory.mktemp('data')
  run(Fake(count=12), folder, test_fraction=0.3)
  return folder


@pytest.fixture
def copy(data, tmp_path) -> pathlib.Path:
  """A copy of `data` to damage."""
  shutil.copytree(data, tmp_path / 'data')
  return tmp_path / 'data'


def expected_clip(clip_id: str):
  """Returns what `Fake` made under an id."""
  number = int(clip_id[-3:])
  item = Fake(count=12).items()[number]
  (clip,) = Fake(count=12).clips(item)
  return clip


def test_store_gives_back_what_the_source_made(data):
  found = []
  for split in ('train', 'test'):
    store = store_lib.open_split(data, 'fake', split)
    assert store.clip_ids() == [store.clip_id(i) for i in range(len(store))]
    next_frame = 0
    for i, clip_id in enumerate(store.clip_ids()):
      found.append(clip_id)
      want, got = expected_clip(clip_id), store.clip(i)
      n = len(want.frames)
      assert (got.id, got.num_frames, got.first_frame) == (
        clip_id,
        n,
        next_frame,
      )
      assert (store.num_frames[i], store.first_frame[i]) == (n, next_frame)
      assert (store.height[i], store.width[i]) == (16, 16)
      assert got.replaced == want.replaced
      for key in ('timestamps', 'intrinsics', 'world_to_camera'):
        a, b = getattr(got, key), getattr(want, key)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
      assert store.clip_frames(i, range(n)) == want.frames
      assert store.frame(next_frame) == want.frames[0]
      next_frame += n
  assert sorted(found) == [f'clip-{i:03d}' for i in range(12)]


def test_offsets_stay_inside_the_clip(data):
  store = store_lib.open_split(data, 'fake', 'train')
  for offset in (-1, int(store.num_frames[1])):
    with pytest.raises(IndexError, match='of a clip of'):
      store.clip_frames(1, [0, offset])


def test_store_survives_pickling(data):
  store = store_lib.open_split(data, 'fake', 'train')
  store.frame(0)
  again = pickle.loads(pickle.dumps(store))
  assert again.clip_frames(2, [3, 1]) == store.clip_frames(2, [3, 1])
  assert again.clip_ids() == store.clip_ids()


def test_unknown_cameras_are_none(tmp_path):
  run(Fake(count=2, cameras=False), tmp_path)
  clip = store_lib.open_split(tmp_path, 'fake', 'train').clip(0)
  assert clip.timestamps is None
  assert clip.intrinsics is None
  assert clip.world_to_camera is None


def test_depth(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  original = Fake.clips
  png = _grey_png(np.arange(256, dtype=np.uint16).reshape(16, 16) * 200)

  def clips(self, item):
    for clip in original(self, item):
      yield dataclasses.replace(clip, depth=[png] * len(clip.frames))

  monkeypatch.setattr(Fake, 'clips', clips)
  run(Fake(count=2), tmp_path)
  store = store_lib.open_split(tmp_path, 'fake', 'train')
  assert store.depth(3) == png
  folder = tmp_path / 'fake/frames/1.0.0'
  source = tfds.builder_from_directory(folder).as_data_source('train')
  np.testing.assert_array_equal(
    source[3]['depth'][..., 0], np.arange(256).reshape(16, 16) * 200
  )


def _grey_png(image: np.ndarray) -> bytes:
  """Encodes uint16 [H, W] as a greyscale PNG."""
  import struct
  import zlib

  def chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', check)

  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in image)
  height, width = image.shape
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, 0, 0, 0, 0))
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


def test_asking_for_depth_that_is_not_there(data):
  with pytest.raises(ValueError, match='no depth'):
    store_lib.open_split(data, 'fake', 'train').depth(0)


def test_tfds_reads_both_data_sets(data):
  import tensorflow_datasets as tfds

  for split in ('train', 'test'):
    store = store_lib.open_split(data, 'fake', split)
    builder = tfds.builder_from_directory(data / 'fake/frames/1.0.0')
    assert builder.info.full_name == 'fake/frames/1.0.0'
    frames = builder.as_data_source(split)
    assert len(frames) == store.num_frames.sum()
    for i in (0, len(frames) // 2, len(frames) - 1):
      # TFDS decodes with another library; the JPEG standard leaves it a level.
      ours = simplejpeg.decode_jpeg(store.frame(i)).astype(int)
      assert np.abs(frames[i]['image'] - ours).max() <= 1

    clips = tfds.builder_from_directory(
      data / 'fake/clips/1.0.0'
    ).as_data_source(split)
    assert len(clips) == len(store)
    for i, clip in enumerate(clips):
      want = store.clip(i)
      assert clip['id'].decode() == want.id
      for key in ('first_frame', 'num_frames', 'height', 'width', 'replaced'):
        assert clip[key] == getattr(want, key)
      for key in ('timestamps', 'intrinsics', 'world_to_camera'):
        np.testing.assert_array_equal(clip[key], getattr(want, key))


def test_tfds_reads_clips_without_cameras(tmp_path):
  import tensorflow_datasets as tfds

  run(Fake(count=2, cameras=False), tmp_path)
  builder = tfds.builder_from_directory(tmp_path / 'fake/clips/1.0.0')
  clip = builder.as_data_source('train')[0]
  assert clip['timestamps'].shape == (0,)
  assert clip['world_to_camera'].shape == (0, 3, 4)


def test_our_messages_are_those_of_tfds():
  from tensorflow_datasets.proto import tf_example_pb2

  record = codec.encode_frame(b'jpeg', b'png')
  example = tf_example_pb2.Example.FromString(record)
  theirs = {
    k: list(v.bytes_list.value) for k, v in example.features.feature.items()
  }
  assert theirs == {'image': [b'jpeg'], 'depth': [b'png']}
  assert codec.decode_frame(example.SerializeToString(), 'depth') == b'png'
  with pytest.raises(ValueError, match='not a frame record'):
    codec.decode_frame(b'\xff' * 10)


def test_no_tensorflow_anywhere(tmp_path):
  code = (
    'import sys\n'
    'from tests.data.convert.test_run import Fake, run\n'
    'from xfactor.data.records import store\n'
    'for early in ("tensorflow", "tensorflow_datasets", "jax"):\n'
    '  assert early not in sys.modules, early\n'
    'run(Fake(count=2), sys.argv[1])\n'
    'store.open_split(sys.argv[1], "fake", "train").frame(0)\n'
    'import tensorflow_datasets as tfds\n'
    'folder = sys.argv[1] + "/fake/frames/1.0.0"\n'
    'tfds.builder_from_directory(folder).as_data_source("train")[0]\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run(
    [sys.executable, '-c', code, tmp_path],
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
    check=True,
    capture_output=True,
  )


def test_missing_data_set_names_folder_and_command(data):
  with pytest.raises(UserError) as e:
    store_lib.open_split(data, 'real', 'train')
  text = str(e.value)
  assert f'looked for {data}/real/frames and {data}/real/clips' in text
  assert 'holds fake;' in text
  assert 'there is no converter for real yet; convert your copy with: ' in text
  assert f'--data_dir={data}' in text
  assert '\n' not in text


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('synthetic', ['--dataset=synthetic']),
    ('vizdoom', ['--dataset=vizdoom']),
    ('video', ['--dataset=video', '--source=FOLDER']),
    ('re10k', ['--dataset=re10k', '--source=FOLDER']),
    ('mine', ['--dataset=video', '--name=mine', '--source=FOLDER']),
  ],
)
def test_the_command_for_a_missing_data_set_parses(tmp_path, name, flags):
  with pytest.raises(UserError) as e:
    store_lib.open_split(tmp_path, name, 'train')
  tool = 'python tools/convert_datasets.py '
  found = shlex.split(str(e.value).split(tool)[1])
  assert found == [*flags, f'--data_dir={tmp_path}']
  dataset = flags[0].removeprefix('--dataset=')
  # The other flags are the command's own.
  own = [flag for flag in found if flag.startswith('--source')]
  chosen = options.parse(dataset, own)
  assert sources.make(dataset, **chosen).name == dataset


def test_home_folder_means_the_same_everywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert not run(Fake(), '~/data').already
  assert run(Fake(), '~/data').already
  assert [p.name for p in tmp_path.iterdir()] == ['data']
  for folder in ('~/data', tmp_path / 'data'):
    assert folders.available(folder) == ['fake']
    assert folders.versions(folder, 'fake') == ['1.0.0']
    assert len(store_lib.open_split(folder, 'fake', 'train'))
  assert eval_index.eval_index('~/data', 'fake', 'train', 2, 10).clip_ids
  with pytest.raises(UserError, match=f'looked for {tmp_path}/data/gone'):
    store_lib.open_split('~/data', 'gone', 'train')


@pytest.mark.parametrize('folder', ['', 'fake', 'fake/clips/1.0.0'])
def test_empty_folders(tmp_path, folder):
  (tmp_path / folder).mkdir(parents=True, exist_ok=True)
  with pytest.raises(UserError, match='holds no data set; there is no conv'):
    store_lib.open_split(tmp_path, 'fake', 'train')


def test_missing_split_and_version(data):
  with pytest.raises(UserError, match="no split 'val'; it has test, train"):
    store_lib.open_split(data, 'fake', 'val')
  with pytest.raises(UserError, match="'fake' of version 2.0.0"):
    store_lib.open_split(data, 'fake', 'train', '2.0.0')


def test_newest_version_by_number_not_by_letter(copy):
  for config in ('frames', 'clips'):
    folder = copy / 'fake' / config
    for version in ('1.9.0', '1.10.0'):
      shutil.copytree(folder / '1.0.0', folder / version)
  assert folders.versions(copy, 'fake') == ['1.0.0', '1.9.0', '1.10.0']
  assert store_lib.open_split(copy, 'fake', 'train').version == '1.10.0'
  assert store_lib.open_split(copy, 'fake', 'train', '1.9.0').version == '1.9.0'


def test_missing_and_truncated_files(copy):
  file = sorted((copy / 'fake/frames/1.0.0').glob('fake-train*'))[1]
  content = file.read_bytes()
  file.write_bytes(content[:-100])
  with pytest.raises(UserError, match=f'{file} has {len(content) - 100} bytes'):
    store_lib.open_split(copy, 'fake', 'train')
  file.unlink()
  with pytest.raises(UserError, match=f'{file} is missing'):
    store_lib.open_split(copy, 'fake', 'train')


def test_parts_of_different_conversions(copy, tmp_path):
  run(Fake(count=12, frames=11), tmp_path / 'other', test_fraction=0.3)
  target = copy / 'fake/clips/1.0.0'
  shutil.rmtree(target)
  shutil.copytree(tmp_path / 'other/fake/clips/1.0.0', target)
  with pytest.raises(UserError, match='not from the same conversion'):
    store_lib.open_split(copy, 'fake', 'train')


def test_other_format(copy):
  path = copy / 'fake/frames/1.0.0/manifest.json'
  files.write_json(path, files.read_json(path) | {'format': 99})
  with pytest.raises(UserError, match='format 99, .* reads format 1'):
    store_lib.open_split(copy, 'fake', 'train')


def test_flipped_bit_is_noticed(copy):
  file = sorted((copy / 'fake/frames/1.0.0').glob('fake-train*'))[0]
  content = bytearray(file.read_bytes())
  image = store_lib.open_split(copy, 'fake', 'train').frame(4)
  content[content.index(image) + 50] ^= 1
  file.write_bytes(content)
  store = store_lib.open_split(copy, 'fake', 'train')
  store.frame(3)
  with pytest.raises(RuntimeError, match='hash mismatch'):
    store.frame(4)


def test_digest_follows_the_content(data, tmp_path):
  digest = store_lib.open_split(data, 'fake', 'train').digest
  run(Fake(count=12), tmp_path / 'same', test_fraction=0.3)
  run(Fake(count=12, frames=11), tmp_path / 'other', test_fraction=0.3)
  same = store_lib.open_split(tmp_path / 'same', 'fake', 'train').digest
  other = store_lib.open_split(tmp_path / 'other', 'fake', 'train').digest
  assert same == digest != other


def test_a_file_gets_its_name_only_when_complete(tmp_path):
  writer = shards.ShardWriter(tmp_path / 'a')
  writer.write(b'one')
  writer.write(b'two')
  assert not (tmp_path / 'a').exists()
  shard = writer.close()
  assert (shard.file, shard.records) == ('a', 2)
  assert shard.bytes == (tmp_path / 'a').stat().st_size
  assert list(shards.read_shard(tmp_path / 'a')) == [b'one', b'two']
  aborted = shards.ShardWriter(tmp_path / 'b')
  aborted.write(b'one')
  aborted.abort()
  assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_eval_index_is_fixed_at_first_use(copy):
  path = copy / 'fake/clips/1.0.0/eval_index-train.json'
  first = eval_index.eval_index(copy, 'fake', 'train', 3, 12)
  assert path.exists()
  store = store_lib.open_split(copy, 'fake', 'train')
  assert len(first.clip_ids) == sum(store.num_frames >= 12)
  assert list(first.clip_ids) == sorted(first.clip_ids, key=files.unit_hash)
  for clip_id, clip, frames in zip(
    first.clip_ids, first.clips, first.frames, strict=True
  ):
    assert store.clip_id(int(clip)) == clip_id
    assert frames[-1] - frames[0] == 11
    assert 0 <= frames[0] < frames[1] < frames[2] < store.num_frames[clip]

  # The file, not the rule, decides from now on.
  entries = files.read_json(path)
  entries['views=3,window=12'][0][1] = [0, 1, 2]
  files.write_json(path, entries)
  again = eval_index.eval_index(copy, 'fake', 'train', 3, 12)
  np.testing.assert_array_equal(again.frames[0], [0, 1, 2])
  np.testing.assert_array_equal(again.frames[1:], first.frames[1:])
  eval_index.eval_index(copy, 'fake', 'train', 2, 10)
  assert set(files.read_json(path)) == {
    'views=3,window=12',
    'views=2,window=10',
  }


def test_eval_index_of_a_read_only_data_set(copy, monkeypatch):
  want = eval_index.eval_index(copy, 'fake', 'test', 2, 10)
  path = copy / 'fake/clips/1.0.0/eval_index-test.json'
  path.unlink()

  def fail(*args):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(files, 'write_json', fail)
  got = eval_index.eval_index(copy, 'fake', 'test', 2, 10)
  assert got.clip_ids == want.clip_ids
  np.testing.assert_array_equal(got.frames, want.frames)
  assert not path.exists()


def test_eval_choice_is_capped_and_by_hash(data):
  store = store_lib.open_split(data, 'fake', 'train')
  everything = eval_index.choose_eval(store, 2, 10)
  assert eval_index.choose_eval(store, 2, 10, num_clips=3) == everything[:3]


def test_eval_index_that_cannot_be(copy):
  with pytest.raises(UserError, match='has the 99 frames .* longest has'):
    eval_index.eval_index(copy, 'fake', 'test', 2, 99)
  with pytest.raises(UserError, match='at least two views'):
    eval_index.eval_index(copy, 'fake', 'test', 1, 10)
  with pytest.raises(UserError, match='3 views in 2 frames'):
    eval_index.eval_index(copy, 'fake', 'test', 3, 2)
  path = copy / 'fake/clips/1.0.0/eval_index-test.json'
  files.write_json(path, {'views=2,window=10': [['gone', [0, 1]]]})
  with pytest.raises(UserError, match='for instance gone; delete the file'):
    eval_index.eval_index(copy, 'fake', 'test', 2, 10)


def test_random_eval_index(copy):
  path = copy / 'fake/clips/1.0.0/eval_index-train.json'
  ordered = eval_index.eval_index(copy, 'fake', 'train', 4, 12)
  index = eval_index.eval_index(copy, 'fake', 'train', 4, 12, ordered=False)
  store = store_lib.open_split(copy, 'fake', 'train')
  # Shorter clips than the window, too: the shortest has ten frames.
  assert len(index.clips) == len(store) > len(ordered.clips)
  assert list(index.clip_ids) == sorted(index.clip_ids, key=files.unit_hash)
  for clip_id, clip, frames in zip(
    index.clip_ids, index.clips, index.frames.tolist(), strict=True
  ):
    assert store.clip_id(int(clip)) == clip_id
    assert len(set(frames)) == 4
    assert 0 <= min(frames) <= max(frames) < store.num_frames[clip]
    assert max(frames) - min(frames) < 12
  assert any(frames != sorted(frames) for frames in index.frames.tolist())
  assert len({tuple(np.sort(f) - f.min()) for f in index.frames}) > 1
  # Old entries mean what they did, and this one is fixed by its own key.
  entries = files.read_json(path)
  assert set(entries) == {'views=4,window=12', 'views=4,window=12,random'}
  again = eval_index.eval_index(copy, 'fake', 'train', 4, 12)
  np.testing.assert_array_equal(again.frames, ordered.frames)
  entries['views=4,window=12,random'][0][1] = [3, 2, 1, 0]
  files.write_json(path, entries)
  again = eval_index.eval_index(copy, 'fake', 'train', 4, 12, ordered=False)
  np.testing.assert_array_equal(again.frames[0], [3, 2, 1, 0])


def test_random_eval_frames_depend_on_the_clip_alone(data, tmp_path):
  run(Fake(count=7), tmp_path, test_fraction=0.3)
  chosen = [
    dict(
      eval_index.choose_eval(
        store_lib.open_split(folder, 'fake', 'train'), 3, 8, ordered=False
      )
    )
    for folder in (data, tmp_path)
  ]
  shared = chosen[0].keys() & chosen[1].keys()
  assert len(shared) >= 3
  for clip_id in shared:
    assert chosen[0][clip_id] == chosen[1][clip_id]


def test_random_eval_index_that_cannot_be(data):
  for views, window, match in (
    (99, 100, 'has the 99 frames .*: use fewer views'),
    (5, 4, '5 views in 4 frames'),
  ):
    with pytest.raises(UserError, match=match):
      eval_index.eval_index(data, 'fake', 'test', views, window, ordered=False)


def convert_partly_posed(folder, monkeypatch, without=(2, 3, 5), count=6):
  """Clip 2 has no intrinsics, 3 a pose that is not finite, others nothing."""
  original = Fake.clips

  def clips(self, item):
    for clip in original(self, item):
      changes = {}
      if item.payload in without:
        changes = {'intrinsics': None, 'world_to_camera': None}
        if item.payload == 2:
          changes.pop('world_to_camera')
        elif item.payload == 3:
          poses = clip.world_to_camera.copy()
          poses[4, 1, 1] = np.nan
          changes = {'world_to_camera': poses}
      yield dataclasses.replace(clip, **changes)

  monkeypatch.setattr(Fake, 'clips', clips)
  run(Fake(count=count, split='train'), folder)
  return folder / 'fake/clips/1.0.0/cameras-train.json'


def test_which_clips_have_cameras_is_found_once(tmp_path, monkeypatch):
  monkeypatch.setattr(store_lib, '_CHUNK', 4)
  path = convert_partly_posed(tmp_path, monkeypatch)
  store = store_lib.open_split(tmp_path, 'fake', 'train')
  assert not path.exists()
  want = [i not in (2, 3, 5) for i in range(6)]
  assert store.posed.tolist() == want
  assert files.read_json(path) == {store.digest: [[0, 2], [4, 5]]}
  monkeypatch.setattr(codec, 'decode_clip', None)
  again = store_lib.open_split(tmp_path, 'fake', 'train')
  assert again.posed.tolist() == want
  assert pickle.loads(pickle.dumps(again)).posed.tolist() == want


def test_cameras_of_other_records_are_found_anew(tmp_path, monkeypatch):
  path = convert_partly_posed(tmp_path, monkeypatch)
  files.write_json(path, {'another digest': [[0, 6]]})
  store = store_lib.open_split(tmp_path, 'fake', 'train')
  assert store.posed.sum() == 3


def test_cameras_of_a_read_only_data_set(tmp_path, monkeypatch):
  path = convert_partly_posed(tmp_path, monkeypatch)

  def fail(*args):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(files, 'write_json', fail)
  assert store_lib.open_split(tmp_path, 'fake', 'train').posed.sum() == 3
  assert not path.exists()


def test_a_damaged_clip_record_is_told(tmp_path, monkeypatch):
  convert_partly_posed(tmp_path, monkeypatch)
  store = store_lib.open_split(tmp_path, 'fake', 'train')
  poses = store.clip(4).world_to_camera.tobytes()
  for path in (tmp_path / 'fake/clips/1.0.0').glob('fake-train*'):
    content = bytearray(path.read_bytes())
    if (at := content.find(poses)) >= 0:
      content[at + 5] ^= 1
    path.write_bytes(content)
  store = store_lib.open_split(tmp_path, 'fake', 'train')
  with pytest.raises(UserError, match='cameras of .* cannot be read'):
    _ = store.posed


def test_eval_index_of_clips_with_cameras(tmp_path, monkeypatch):
  path = convert_partly_posed(tmp_path, monkeypatch)
  for ordered in (True, False):
    index = eval_index.eval_index(
      tmp_path, 'fake', 'train', 2, 10, ordered=ordered, cameras=True
    )
    assert sorted(index.clip_ids) == ['clip-000', 'clip-001', 'clip-004']
    everything = eval_index.eval_index(
      tmp_path, 'fake', 'train', 2, 10, ordered=ordered
    )
    assert len(everything.clip_ids) == 6
  key = 'views=2,window=10'
  assert set(files.read_json(path.with_name('eval_index-train.json'))) == {
    key,
    f'{key},random',
    f'{key},cameras',
    f'{key},random,cameras',
  }
  # Clip 5 has 15 frames, but the longest with cameras 14.
  with pytest.raises(UserError, match='with cameras has the 15 .* has 14'):
    eval_index.eval_index(tmp_path, 'fake', 'train', 2, 15, cameras=True)


def test_no_clip_has_cameras(tmp_path):
  run(Fake(count=2, cameras=False, split='train'), tmp_path)
  for _ in range(2):  # The second time from the file.
    with pytest.raises(
      UserError, match='no clip of fake/train has cameras.* convert'
    ):
      eval_index.eval_index(tmp_path, 'fake', 'train', 2, 10, cameras=True)


def test_conversion_writes_the_default_index(tmp_path):
  run(Fake(count=3, frames=25), tmp_path)
  path = tmp_path / 'fake/clips/1.0.0/eval_index-test.json'
  assert list(files.read_json(path)) == ['views=2,window=20']
