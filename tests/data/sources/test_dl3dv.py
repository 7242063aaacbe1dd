"""DL3DV's folders become posed clips, the benchmark being the test split."""

import json

import numpy as np
import pytest
from absl import logging
from etils import epath
from PIL import Image

from tests.data import pictures
from tests.data.sources.test_re10k import (
  HEIGHT,
  INTRINSICS,
  SIZE,
  WIDTH,
  check_cameras,
  draw,
  poses,
)
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.formats import camera_files
from xfactor.data.records import store
from xfactor.data.sources import dl3dv
from xfactor.errors import UserError

IDS = [f'{number:x}' * 64 for number in range(10)]
FACTOR = 4  # Of the full pictures, which only transforms.json knows.
APPLIED = [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [-0.0, -0.0, -1.0, -0.0]]


def write_transforms(file, count, **changes):
  """Writes cameras as nerfstudio does, frames in the order of the disk."""
  frames = []
  for i, pose in enumerate(poses(count)):
    frames.append(
      {
        'file_path': f'images/frame_{i + 1}.png',
        'transform_matrix': pictures.opengl(pose).tolist(),
        'colmap_im_id': i,
      }
    )
  pixels = INTRINSICS * np.tile([WIDTH, HEIGHT], 2) * FACTOR
  meta = {
    **dict(zip(('fl_x', 'fl_y', 'cx', 'cy'), pixels, strict=True)),
    **{'w': WIDTH * FACTOR, 'h': HEIGHT * FACTOR},
    **{'k1': 0.01, 'k2': -0.002, 'p1': 0.0001, 'p2': 0.0},
    **{'camera_model': 'OPENCV', 'applied_transform': APPLIED},
    'frames': frames[::-1],
  }
  file.write_text(json.dumps(meta | changes))


def write_sequence(folder, count=12, names=('images_4',), base='.', scale=1):
  """Writes the pictures of a sequence; the larger the name, the smaller."""
  for name in names:
    (folder / base / name).mkdir(parents=True)
    for i, pose in enumerate(poses(count)):
      picture = draw(pose, HEIGHT * scale, WIDTH * scale)
      Image.fromarray(picture).save(folder / base / name / f'frame_{i + 1}.png')
  write_transforms(folder / base / 'transforms.json', count)


def make(root, **options):
  return dl3dv.Source(source=str(root), size=SIZE, **options)


@pytest.fixture
def warnings(monkeypatch):
  """Collects what is logged as a warning."""
  found = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: found.append(text % args)
  )
  return found


def test_conversion(tmp_path):
  root = tmp_path / 'DL3DV-10K'
  write_sequence(root / '1K' / IDS[3])
  write_sequence(root / '1K' / IDS[1], base='nerfstudio')
  write_sequence(root / '11K' / IDS[2], 13, base='colmap')
  (root / '2K' / IDS[4]).mkdir(parents=True)
  write_sequence(root / '2K' / IDS[5], 9)
  (root / '2K' / f'{IDS[6]}.zip').write_bytes(b'')
  (root / '.cache').mkdir()
  (root / 'benchmark-meta.csv').write_text(
    f'idx,hash,indoor\n0,{IDS[7]},1\n1,{IDS[1]},0\n'
  )
  source = make(root)
  items = source.items()
  assert [(item.id, item.split) for item in items] == [
    (IDS[1], 'test'),
    *((IDS[number], 'train') for number in (2, 3, 4, 5)),
  ]
  for item, count in ((items[0], 12), (items[1], 13), (items[2], 12)):
    (clip,) = source.clips(item)
    assert clip.id == item.id
    assert clip.timestamps is None
    # Frame 10 comes after frame 9.
    check_cameras(clip, poses(count))
  # The crop is square in pixels, so the focal lengths become equal.
  np.testing.assert_allclose(
    clip.intrinsics,
    [[0.8 * 160 / 90, 1.4, (0.52 * 160 - 35) / 90, 0.46]] * 12,
    rtol=1e-6,
  )
  summary = convert_run.convert(source, tmp_path, workers=0, quiet=True)
  train = store.open_split(tmp_path, 'dl3dv', 'train')
  assert train.clip_ids() == [IDS[2], IDS[3]]
  np.testing.assert_allclose(
    train.clip(1).world_to_camera, poses(12), atol=1e-5
  )
  test = store.open_split(tmp_path, 'dl3dv', 'test')
  assert test.clip_ids() == [IDS[1]]
  skipped = dict(summary.skipped)
  assert 'has no images_4 or images_8' in skipped[IDS[4]]
  assert 'has 9 usable frames and min_length=10' in skipped[IDS[5]]


def test_a_sequence_in_two_parts(tmp_path, monkeypatch):
  """It is the same one whatever the order of the folder."""
  for part in ('1K', '2K'):
    (tmp_path / part / IDS[1]).mkdir(parents=True)
  cls = type(epath.Path(tmp_path))
  listed, found = cls.iterdir, set()
  for reverse in (False, True):

    def iterdir(path, reverse=reverse):
      return iter(sorted(listed(path), reverse=reverse))

    monkeypatch.setattr(cls, 'iterdir', iterdir)
    (item,) = make(tmp_path).items()
    found.add(item.payload)
  assert len(found) == 1


def test_portrait_pictures_of_any_scale(tmp_path):
  folder = tmp_path / IDS[0]
  folder.joinpath('images_8').mkdir(parents=True)
  intrinsics = np.array([1.4, 0.8, 0.46, 0.52])
  for i, pose in enumerate(poses(12)):
    picture = draw(pose, 2 * WIDTH + 1, 2 * HEIGHT, intrinsics)
    Image.fromarray(picture).save(folder / 'images_8' / f'frame_{i + 1}.png')
  pixels = intrinsics * [1080, 1920, 1080, 1920]
  write_transforms(
    folder / 'transforms.json',
    12,
    **dict(zip(('fl_x', 'fl_y', 'cx', 'cy'), pixels, strict=True)),
    **{'w': 1080, 'h': 1920},
  )
  source = make(tmp_path)
  (clip,) = source.clips(source.items()[0])
  check_cameras(clip, poses(12))


def test_missing_cameras_and_pictures(tmp_path, warnings):
  write_sequence(tmp_path / IDS[0])
  folder = tmp_path / IDS[0] / 'images_4'
  extra = Image.open(folder / 'frame_4.png')
  extra.save(folder / 'frame_0.png')
  (folder / 'frame_12.png').unlink()
  (folder / 'frame_3.png').write_bytes(b'\x89PNG cut')
  (folder / '.frame_1.png').write_bytes(b'thumbnail')
  write_sequence(tmp_path / IDS[1])
  (tmp_path / IDS[1] / 'transforms.json').unlink()
  source = make(tmp_path, min_length=9)
  first, second = source.items()
  assert first.split is None
  assert warnings.pop().startswith(f'{tmp_path} has no benchmark-meta.csv')
  (clip,) = source.clips(first)
  check_cameras(clip, np.delete(poses(12), [2, 11], 0))
  assert '1 cameras have no picture' in warnings[0]
  assert 'of 12 frames 1 cannot be read and 1 have no camera' in warnings[1]
  (clip,) = source.clips(second)
  assert len(clip.frames) == 12
  assert clip.world_to_camera is None
  assert clip.intrinsics is None


def test_a_third_of_the_frames_has_cameras(tmp_path):
  write_sequence(tmp_path / IDS[0], 15)
  file = tmp_path / IDS[0] / 'transforms.json'
  meta = json.loads(file.read_text())
  meta['frames'] = meta['frames'][10:]
  file.write_text(json.dumps(meta))
  source = make(tmp_path)
  (clip,) = source.clips(source.items()[0])
  assert len(clip.frames) == 15
  assert clip.world_to_camera is None
  assert clip.notes == {
    'clips without cameras: fewer frames than min_posed have one': 1
  }
  source = make(tmp_path, min_posed=0.3, min_length=5)
  (clip,) = source.clips(source.items()[0])
  check_cameras(clip, poses(15)[:5])
  assert clip.notes == {'frames skipped: have no camera': 10}


def test_resolution(tmp_path):
  """The pixels count: these are 27, 54 and 108 high."""
  folder = tmp_path / IDS[0]
  for name, level in (('images_8', 8), ('images_4', 4), ('images_2', 2)):
    (folder / name).mkdir(parents=True)
    for i in range(10):
      side = 216 // level
      picture = np.full((side, 2 * side, 3), 20 * level, np.uint8)
      Image.fromarray(picture).save(folder / name / f'frame_{i}.png')

  def level(size, resolution=None):
    source = dl3dv.Source(
      source=str(tmp_path), size=size, resolution=resolution
    )
    (clip,) = source.clips(source.items()[0])
    assert clip.height == size or size is None
    return round(images.decode(clip.frames[0]).mean() / 20)

  assert [level(size) for size in (20, 27, 28, 55, 200)] == [8, 8, 4, 2, 2]
  assert level(None) == 2
  assert level(64, 4) == 4
  with pytest.raises(UserError, match=r'has no images with pictures, neither'):
    level(64, 1)
  with pytest.raises(UserError, match='resolution=3 is none of'):
    level(64, 3)


@pytest.mark.parametrize('form', ['csv', 'json', 'txt', 'folder', 'inside'])
def test_benchmark(tmp_path, form):
  root, place = tmp_path / 'data', tmp_path / f'list.{form}'
  for number in (0, 1, 2):
    write_sequence(root / '1K' / IDS[number])
  ids = [IDS[1], IDS[3]]
  expected = [(IDS[0], 'train'), (IDS[1], 'test'), (IDS[2], 'train')]
  if form in ('folder', 'inside'):
    if form == 'inside':
      place = root / 'benchmark'
    write_sequence(place / IDS[3], base='nerfstudio')
    (place / IDS[1]).mkdir()
    expected.append((IDS[3], 'test'))
  else:
    text = json.dumps(ids) if form == 'json' else '\n'.join(ids)
    place.write_text(text)
  option = {} if form == 'inside' else {'benchmark': str(place)}
  source = make(root, **option)
  items = source.items()
  assert [(item.id, item.split) for item in items] == expected
  for item in items:
    # Those in both are read from the parts.
    (clip,) = source.clips(item)
    check_cameras(clip, poses(12))


def test_wrong_benchmarks(tmp_path):
  write_sequence(tmp_path / IDS[0])
  with pytest.raises(UserError, match='there is no benchmark'):
    make(tmp_path, benchmark=str(tmp_path / 'nowhere')).items()
  (tmp_path / 'list.txt').write_text('scene_1\n')
  with pytest.raises(UserError, match=r'list\.txt names no sequence'):
    make(tmp_path, benchmark=str(tmp_path / 'list.txt')).items()


def test_wrong_folders(tmp_path):
  with pytest.raises(UserError, match='there is no folder'):
    make(tmp_path / 'nowhere').items()
  (tmp_path / 'scene').mkdir()
  with pytest.raises(UserError, match='holds scene; expected .* 64 hexa'):
    make(tmp_path).items()


def test_frames_override_the_intrinsics_of_the_file(tmp_path):
  file = tmp_path / 'transforms.json'
  write_transforms(file, 3)
  meta = json.loads(file.read_text())
  meta['frames'][1] |= {'fl_x': 300.0, 'w': 600, 'k1': -0.5}
  file.write_text(json.dumps(meta))
  frames = camera_files.read_transforms(file)
  assert [frame.path for frame in frames] == [
    f'images/frame_{i}.png' for i in (3, 2, 1)
  ]
  np.testing.assert_allclose(frames[0].camera.intrinsics, INTRINSICS)
  assert frames[1].camera.intrinsics[0] == 0.5
  assert [f.camera.distortion[0] for f in frames] == [0.01, -0.5, 0.01]
  for frame, pose in zip(frames, poses(3)[::-1], strict=True):
    np.testing.assert_allclose(frame.world_to_camera, pose, atol=1e-12)


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'fl_x': None}, 'NoneType'),
    ({'w': 0}, 'no camera for images/frame_3'),
    ({'cx': float('nan')}, 'no camera for images/frame_3'),
    ({'w': float('inf')}, 'infinity'),
    ({'frames': [{'file_path': 'a.png'}]}, "lacks 'transform_matrix'"),
    ({'frames': [{'file_path': 'a', 'transform_matrix': [[1]]}]}, 'reshape'),
  ],
)
def test_bad_transforms(tmp_path, change, reason):
  file = tmp_path / 'transforms.json'
  write_transforms(file, 3, **change)
  with pytest.raises(UserError, match=rf'transforms\.json is not .*{reason}'):
    camera_files.read_transforms(file)
