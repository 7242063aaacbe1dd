"""RealEstate10K becomes posed clips, whichever form it comes in."""

import collections
import fractions
import io
import json
import os
import pickle
import shutil
import sys
import types
import zipfile
from unittest import mock

import av
import numpy as np
import pytest
from absl import logging
from PIL import Image

from tests.conftest import GOLDEN
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.formats import video as video_lib
from xfactor.data.records import store
from xfactor.data.sources import re10k
from xfactor.errors import UserError
from xfactor.geometry import cameras

HEIGHT, WIDTH, SIZE = 90, 160, 64
INTRINSICS = np.array([0.8, 1.4, 0.52, 0.46])
POINTS = np.array([[0.0, 0.3, 0.3], [0.1, -0.4, -0.3], [-0.2, 0.4, -0.4]])


def poses(count):
  """Cameras that walk around the three points."""
  angles = np.linspace(-0.4, 0.4, count)
  eyes = np.stack([3 * np.cos(angles), 3 * np.sin(angles), 0.5 * angles], -1)
  return cameras.look_at(eyes, np.zeros_like(eyes), np.array([0.0, 0.0, 1.0]))


def draw(pose, height=HEIGHT, width=WIDTH, intrinsics=INTRINSICS):
  """A picture in which the first point is red, the next green and blue."""
  repeat = (3, 1)
  uv, _ = cameras.project(
    POINTS, np.tile(intrinsics, repeat), np.tile(pose, (3, 1, 1))
  )
  y, x = np.mgrid[:height, :width]
  at = uv * [width, height] - 0.5
  squares = (x[..., None] - at[:, 0]) ** 2 + (y[..., None] - at[:, 1]) ** 2
  radius = height / 25
  return (20 + 220 * np.exp(-squares / (2 * radius**2))).astype(np.uint8)


def encoded(rgb, kind='JPEG'):
  out = io.BytesIO()
  Image.fromarray(rgb).save(out, kind, quality=95)
  return out.getvalue()


def check_cameras(clip, expected):
  """The points are in the frames where the clip's cameras say."""
  np.testing.assert_allclose(clip.world_to_camera, expected, atol=1e-5)
  for frame, intrinsics, pose in zip(
    clip.frames, clip.intrinsics, clip.world_to_camera, strict=True
  ):
    rgb = images.decode_jpeg(frame).astype(float)
    assert rgb.shape == (SIZE, SIZE, 3)
    uv, depth = cameras.project(
      POINTS, np.tile(intrinsics, (3, 1)), np.tile(pose, (3, 1, 1))
    )
    assert (depth > 0).all()
    for colour in range(3):
      others = np.delete(rgb, colour, -1).max(-1)
      weight = (rgb[..., colour] - others - 40).clip(0)
      y, x = np.mgrid[:SIZE, :SIZE] + 0.5
      found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
      np.testing.assert_allclose(found, uv[colour] * SIZE, atol=0.4)


def torch_save(path, value):
  """Writes arrays as torch.save writes tensors."""
  modules = {name: types.ModuleType(name) for name in ('torch', 'torch._utils')}

  def stand_in(module, name):
    made = type(name, (), {'__module__': module})
    setattr(modules[module], name, made)
    return made

  rebuild = stand_in('torch._utils', '_rebuild_tensor_v2')
  kinds = {
    np.dtype(dtype): stand_in('torch', name)
    for dtype, name in (
      (np.uint8, 'ByteStorage'),
      (np.int64, 'LongStorage'),
      (np.float32, 'FloatStorage'),
    )
  }
  Storage = collections.namedtuple('Storage', ['array'])
  stored = []

  class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
      if not isinstance(obj, Storage):
        return None
      stored.append(obj.array.tobytes())
      kind = kinds[obj.array.dtype]
      return ('storage', kind, str(len(stored) - 1), 'cpu', obj.array.size)

    def reducer_override(self, obj):
      if not isinstance(obj, np.ndarray):
        return NotImplemented
      strides = tuple(s // obj.itemsize for s in obj.strides)
      hooks = collections.OrderedDict()
      return rebuild, (Storage(obj), 0, obj.shape, strides, False, hooks)

  data = io.BytesIO()
  with mock.patch.dict(sys.modules, modules):
    Pickler(data, 2).dump(value)
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('chunk/data.pkl', data.getvalue())
    for number, content in enumerate(stored):
      archive.writestr(f'chunk/data/{number}', content)


def rows(count):
  """The 18 numbers of each camera."""
  head = np.tile([*INTRINSICS, 0, 0], (count, 1))
  return np.concatenate([head, poses(count).reshape(count, 12)], 1)


def scene(key, count=12, height=HEIGHT, width=WIDTH):
  return {
    'url': 'https://www.youtube.com/watch?v=abc',
    'timestamps': np.arange(count) * 33367 + 52553000,
    'cameras': rows(count).astype(np.float32),
    'key': key,
    'images': [
      np.frombuffer(encoded(draw(pose, height, width)), np.uint8)
      for pose in poses(count)
    ],
  }


def test_chunks(tmp_path):
  root = tmp_path / 're10k'
  short = scene('c1', 9)
  broken = scene('d1', 12)
  broken['images'][3] = broken['images'][3][:200]
  lacking = scene('e1', 12)
  del lacking['cameras']
  torch_save(
    root / 'train' / '000000.torch',
    [scene('a1'), short, scene('b1', 14, 45, 80), lacking],
  )
  torch_save(root / 'train' / '000001.torch', [broken])
  torch_save(root / 'test' / '000000.torch', [scene('f1')])
  for split in ('train', 'test'):
    (root / split / 'index.json').write_text('{}')
    (root / split / '._000000.torch').write_bytes(b'hidden')
  source = re10k.Source(source=str(root), size=SIZE)
  items = source.items()
  assert [(i.id, i.split, i.bundle) for i in items] == [
    ('train/000000', 'train', True),
    ('train/000001', 'train', True),
    ('test/000000', 'test', True),
  ]
  (clip,) = source.clips(items[2])
  assert clip.id == 'f1'
  check_cameras(clip, poses(12))
  np.testing.assert_allclose(
    clip.timestamps, np.arange(12) * 0.033367 + 52.553, rtol=0, atol=1e-9
  )
  # The crop is square in pixels, so the focal lengths become equal.
  np.testing.assert_allclose(
    clip.intrinsics[0],
    [0.8 * 160 / 90, 1.4, (0.52 * 160 - 35) / 90, 0.46],
    rtol=1e-6,
  )
  summary = convert_run.convert(source, tmp_path, workers=0, quiet=True)
  train = store.open_split(tmp_path, 're10k', 'train')
  assert train.clip_ids() == ['a1', 'b1', 'd1']
  assert [train.clip(i).num_frames for i in range(3)] == [12, 14, 11]
  assert store.open_split(tmp_path, 're10k', 'test').clip_ids() == ['f1']
  ((where, why),) = summary.skipped
  assert where == 'train/000000'
  assert '2 of 4 sequences of' in why
  assert 'c1 has 9 usable frames and min_length=10' in why


def test_damaged_chunk_is_skipped(tmp_path):
  root = tmp_path / 're10k'
  torch_save(root / 'train' / '000000.torch', [scene('a1')])
  torch_save(root / 'train' / '000001.torch', {'not': 'a list'})
  (root / 'train' / '000002.torch').write_bytes(b'PK\3\4cut')
  torch_save(root / 'train' / '000003.torch', [{'key': 'b1'}, 7])
  source = re10k.Source(source=str(root), size=SIZE)
  summary = convert_run.convert(source, tmp_path, workers=0, quiet=True)
  assert sum(split.clips for split in summary.splits.values()) == 1
  whys = [why for _, why in summary.skipped]
  assert '000001.torch is not a chunk' in whys[0]
  assert '000002.torch is not a valid file' in whys[1]
  assert 'sequence 0 is not in the format of pixelSplat' in whys[2]
  assert "(KeyError: 'images')" in whys[2]


def test_chunk_of_pytorch(tmp_path):
  # Written by PyTorch itself; see test_torch_file.
  folder = tmp_path / 'train'
  folder.mkdir()
  shutil.copy(os.path.join(GOLDEN, 'torch', 'chunk.torch'), folder)
  source = re10k.Source(source=str(tmp_path), size=None, min_length=3)
  clips = list(source.clips(source.items()[0]))
  assert [clip.id for clip in clips] == ['5aca87f95a9412c0', '5aca87f95a9412c1']
  assert [len(clip.frames) for clip in clips] == [3, 4]
  numbers = 18 * np.arange(3)[:, None] / 8
  np.testing.assert_allclose(
    clips[0].intrinsics, numbers + np.arange(4) / 8, rtol=1e-6
  )
  np.testing.assert_allclose(
    clips[0].world_to_camera.reshape(3, 12), numbers + np.arange(6, 18) / 8
  )
  np.testing.assert_allclose(
    clips[0].timestamps, [52.553, 52.586367, 52.619734], rtol=1e-12
  )


def test_whole_pictures_are_copied(tmp_path):
  chunk = [scene('a1')]
  torch_save(tmp_path / 'train' / '0.torch', chunk)
  source = re10k.Source(source=str(tmp_path), size=None)
  (clip,) = source.clips(source.items()[0])
  assert (clip.height, clip.width) == (HEIGHT, WIDTH)
  assert clip.frames == [data.tobytes() for data in chunk[0]['images']]
  np.testing.assert_allclose(clip.intrinsics, [INTRINSICS] * 12, rtol=1e-6)


def write_lvsm(folder, id, count=12):
  (folder / 'images' / id).mkdir(parents=True)
  (folder / 'metadata').mkdir(exist_ok=True)
  frames = []
  for i, pose in enumerate(poses(count)):
    data = encoded(draw(pose), 'PNG')
    (folder / 'images' / id / f'{i:05d}.png').write_bytes(data)
    pixels = INTRINSICS * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    frames.append(
      {
        'image_path': f'/elsewhere/{folder.name}/images/{id}/{i:05d}.png',
        'fxfycxcy': pixels.tolist(),
        'w2c': [*pose.tolist(), [0, 0, 0, 1]],
      }
    )
  meta = {'scene_name': id, 'frames': frames}
  (folder / 'metadata' / f'{id}.json').write_text(json.dumps(meta))


def test_lvsm(tmp_path):
  root = tmp_path / 'lvsm'
  write_lvsm(root / 'train', 'b1')
  write_lvsm(root / 'train', 'a1', 13)
  write_lvsm(root / 'test', 'c1')
  (root / 'train' / 'full_list.txt').write_text('/elsewhere/a1.json\n')
  broken = root / 'train' / 'images' / 'b1' / '00004.png'
  broken.write_bytes(broken.read_bytes()[:100])
  (root / 'train' / 'images' / 'b1' / '00006.png').unlink()
  (root / 'test' / 'metadata' / 'd1.json').write_text('{"frames": [{}]}')
  source = re10k.Source(source=str(root), size=SIZE)
  items = source.items()
  assert [(i.id, i.split, i.bundle) for i in items] == [
    ('a1', 'train', False),
    ('b1', 'train', False),
    ('c1', 'test', False),
    ('d1', 'test', False),
  ]
  (clip,) = source.clips(items[0])
  assert clip.timestamps is None
  check_cameras(clip, poses(13))
  (clip,) = source.clips(items[1])
  check_cameras(clip, np.delete(poses(12), [4, 6], 0))
  summary = convert_run.convert(source, tmp_path, workers=0, quiet=True)
  train = store.open_split(tmp_path, 're10k', 'train')
  assert train.clip_ids() == ['a1', 'b1']
  ((where, why),) = summary.skipped
  assert where == 'd1'
  assert 'd1.json is not a metadata file of LVSM' in why


def write_cameras(file, times, video='abc-_9'):
  file.parent.mkdir(parents=True, exist_ok=True)
  lines = [f'https://www.youtube.com/watch?v={video}']
  for time, row in zip(times, rows(len(times)), strict=True):
    lines.append(f'{time} ' + ' '.join(f'{x:.9f}' for x in row))
  file.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize(
  ('below', 'suffix', 'option'),
  [('', 'png', {}), ('frames', 'jpg', {}), ('../far', 'png', {'frames': 1})],
)
def test_folders_of_frames(tmp_path, below, suffix, option):
  root = tmp_path / 'original'
  # Without leading zeros, so that the order must be that of the numbers.
  times = 900_000 + 33_333 * np.arange(12)
  for split, id in (('train', 'b1'), ('train', 'a1'), ('validation', 'c1')):
    write_cameras(root / split / f'{id}.txt', times)
    folder = root / below / split / id
    folder.mkdir(parents=True)
    for time, pose in zip(times, poses(12), strict=True):
      Image.fromarray(draw(pose)).save(folder / f'{time}.{suffix}', quality=95)
  (root / below / 'train' / 'b1' / f'{times[5]}.{suffix}').unlink()
  write_cameras(root / 'train' / 'd1.txt', times, 'gone')
  (root / 'train' / 'e1.txt').write_text('https://x\n1 2 3\n')
  if option:
    option = {'frames': str(root / below)}
  source = re10k.Source(source=str(root), size=SIZE, **option)
  items = source.items()
  assert [(i.id, i.split) for i in items] == [
    *((id, 'train') for id in ('a1', 'b1', 'd1', 'e1')),
    ('c1', 'val'),
  ]
  (clip,) = source.clips(items[0])
  check_cameras(clip, poses(12))
  np.testing.assert_allclose(clip.timestamps, times / 1e6)
  (clip,) = source.clips(items[1])
  check_cameras(clip, np.delete(poses(12), 5, 0))
  summary = convert_run.convert(source, tmp_path, workers=0, quiet=True)
  train = store.open_split(tmp_path, 're10k', 'train')
  assert train.clip_ids() == ['a1', 'b1']
  assert store.open_split(tmp_path, 're10k', 'val').clip_ids() == ['c1']
  skipped = dict(summary.skipped)
  assert sorted(skipped) == ['d1', 'e1']
  assert 'neither a folder train/d1 of frames nor a video gone' in skipped['d1']
  assert 'e1.txt is not a camera file of RealEstate10K' in skipped['e1']


def write_video(path, frames, rate=25, gop=12):
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=rate)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.bit_rate = 8_000_000
    stream.codec_context.gop_size = gop
    stream.codec_context.time_base = fractions.Fraction(1, rate)
    for i, rgb in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(rgb, 'rgb24')
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def tour(count, first):
  """Frames without points, but for the cameras from `first` on."""
  grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
  shown = [draw(pose) for pose in poses(12)]
  rest = [grey] * (count - first - 12)
  return [grey] * first + shown + rest


@pytest.mark.parametrize(
  ('name', 'first'),
  [('abc-_9.mp4', 40), ('train/abc-_9.mkv', 40), ('a1.mp4', 0)],
)
def test_videos(tmp_path, name, first):
  root = tmp_path / 'original'
  # Up to a third of a frame late, as rounded timestamps are.
  times = 1_600_000 + 40_000 * np.arange(12) + [0, 12_000, -12_000] * 4
  write_cameras(root / 'train' / 'a1.txt', times)
  write_video(root / 'videos' / name, tour(first + 20, first))
  source = re10k.Source(source=str(root), size=SIZE)
  (item,) = source.items()
  (clip,) = source.clips(item)
  check_cameras(clip, poses(12))
  np.testing.assert_allclose(clip.timestamps, times / 1e6)
  again = re10k.Source(source=str(root), size=SIZE, videos=str(root / 'videos'))
  (same,) = again.clips(item)
  assert same.frames == clip.frames
  whole = re10k.Source(source=str(root), size=None)
  (clip,) = whole.clips(item)
  assert (clip.height, clip.width) == (HEIGHT, WIDTH)
  np.testing.assert_allclose(clip.intrinsics, [INTRINSICS] * 12, rtol=1e-6)
  for frame, pose in zip(clip.frames, poses(12), strict=True):
    difference = images.decode(frame).astype(int) - draw(pose)
    assert np.abs(difference).mean() < 4


def test_timestamps_beyond_the_video(tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: warnings.append(text % args)
  )
  times = 1_600_000 + 40_000 * np.arange(12)
  write_cameras(tmp_path / 'train' / 'a1.txt', times)
  path = tmp_path / 'videos' / 'abc-_9.mp4'
  write_video(path, tour(60, 40)[:50])
  source = re10k.Source(source=str(tmp_path), size=SIZE)
  (clip,) = source.clips(source.items()[0])
  check_cameras(clip, poses(12)[:10])
  assert warnings == [f'{path} has no frame at 2 of 12 timestamps']
  path.write_bytes(b'no video')
  with pytest.raises(UserError, match=r'abc-_9\.mp4 is no video'):
    list(source.clips(source.items()[0]))


def test_only_what_is_needed_of_a_video_is_decoded(tmp_path, monkeypatch):
  path = tmp_path / 'a.mp4'
  write_video(path, tour(300, 250))
  decoded = []
  spans = video_lib._spans

  def counted(*args):
    for span in spans(*args):
      decoded.append(span)
      yield span

  monkeypatch.setattr(video_lib, '_spans', counted)
  found = list(
    video_lib.read_frames(re10k.epath.Path(path), 10.0 + np.arange(3))
  )
  assert [index for index, _ in found] == [0, 1]
  decoded.clear()
  times = (250 + np.arange(12)) / 25
  found = dict(video_lib.read_frames(re10k.epath.Path(path), times))
  assert list(found) == list(range(12))
  assert len(decoded) < 12 + 2 * 12
  difference = found[3].astype(int) - draw(poses(12)[3])
  assert np.abs(difference).mean() < 4


def test_turned_video(tmp_path):
  frames = [draw(pose) for pose in poses(12)]
  path = tmp_path / 'a.mp4'
  write_video(path, frames)
  data = bytearray(path.read_bytes())
  # The display matrix of the track header: a quarter turn clockwise.
  at = data.index(b'tkhd') + 44
  matrix = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], '>i4')
  data[at : at + 36] = matrix.tobytes()
  path.write_bytes(data)
  ((_, rgb),) = video_lib.read_frames(re10k.epath.Path(path), np.array([0.08]))
  difference = rgb.astype(int) - np.rot90(frames[2], -1)
  assert np.abs(difference).mean() < 4


def test_wrong_folders(tmp_path):
  with pytest.raises(UserError, match='there is no folder'):
    re10k.Source(source=str(tmp_path / 'nowhere')).items()
  (tmp_path / 'train').mkdir()
  (tmp_path / 'notes.md').write_text('')
  with pytest.raises(UserError, match='holds notes.md, train; expected train/'):
    re10k.Source(source=str(tmp_path)).items()
