"""MultiShapeNet's TFRecords become clips with the rays that sunds gives.

`golden/msn` was written by TFDS 4.9.10 and TensorFlow 2.21 with the features of
`sunds.specs`, one file with rays and one without; `rays.npz` holds what
`sunds.tasks.Nerf` makes of them: all origins, and the directions of view 7.
"""

import os
import shutil
import struct
import zlib

import google_crc32c
import numpy as np
import pytest

from tests import conftest
from tests.data import pictures, srt
from tests.golden_tolerance import assert_close
from xfactor import errors
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.formats import tfrecord
from xfactor.data.records import codec
from xfactor.data.records import store as store_lib
from xfactor.data.sources import msn
from xfactor.geometry import cameras

GOLDEN = os.path.join(conftest.GOLDEN, 'msn')
TRAIN = 'multi_shapenet_frames-train.tfrecord-00000-of-00001'
TEST = 'multi_shapenet_frames-test.tfrecord-00000-of-00001'


def masked(data):
  crc = google_crc32c.value(data)
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_tfrecord(path, examples):
  """Writes examples, dictionaries of lists and arrays."""
  with open(path, 'wb') as file:
    for values in examples:
      example = codec.Example()
      for key, value in values.items():
        feature = example.features.feature[key]
        if isinstance(value, list):
          feature.bytes_list.value.extend(value)
        elif value.dtype == np.int64:
          feature.int64_list.value.extend(value.tolist())
        else:
          feature.float_list.value.extend(value.ravel().tolist())
      data = example.SerializeToString()
      length = struct.pack('<Q', len(data))
      file.write(length + masked(length) + data + masked(data))


def convert_root(root, tmp_path, **options):
  source = msn.Source(source=str(root), **options)
  return convert_run.convert(source, tmp_path / 'out', workers=0, quiet=True)


def test_rays_and_pixels_are_those_of_sunds(tmp_path):
  summary = convert_root(GOLDEN, tmp_path)
  assert not summary.skipped
  assert {k: v.clips for k, v in summary.splits.items()} == {
    'train': 2,
    'test': 1,
  }
  with np.load(os.path.join(GOLDEN, 'rays.npz')) as arrays:
    expected = dict(arrays)
  found = []
  for split, (height, width) in {'train': (12, 16), 'test': (6, 8)}.items():
    store = store_lib.open_split(tmp_path / 'out', 'msn', split)
    for i, clip_id in enumerate(store.clip_ids()):
      clip = store.clip(i)
      assert (clip.height, clip.width) == (height, width)
      scene = int(clip_id.removeprefix(f'{split}/scene_'))
      for j, frame in enumerate(store.clip_frames(i, range(10))):
        np.testing.assert_array_equal(
          images.decode(frame), pictures.waves(height, width, 10 * scene + j)
        )
      origins, rays = cameras.pixel_rays(
        clip.intrinsics, clip.world_to_camera, height, width
      )
      assert_close(origins[:, 0, 0], expected[f'{clip_id}/origins'])
      assert_close(rays[7], expected[f'{clip_id}/directions'])
      found.append(clip_id)
  assert found == ['train/scene_17', 'train/scene_3', 'test/scene_4']


def srt_example(arrays):
  """Returns the golden file's scene as a record that holds its rays."""
  out = {'scene_name': [b'scene_17'], 'frame_name': [b'scene_17']}
  for i in range(10):
    key = f'cameras/camera_{i}/'
    out[f'{key}color_image'] = [
      images.encode_png(arrays['msn_raw/color_image'][i])
    ]
    directions = arrays['msn_raw/ray_directions'][i]
    origins = np.broadcast_to(
      arrays['msn_raw/camera_pos'][i].astype(np.float32), directions.shape
    )
    out[f'{key}ray_directions'] = [zlib.compress(directions.tobytes())]
    out[f'{key}ray_origins'] = [zlib.compress(origins.tobytes())]
  return out


def test_rays_are_those_of_srt(tmp_path, golden):
  arrays = golden('srt_datasets')
  root = tmp_path / '2.3.3'
  root.mkdir()
  write_tfrecord(root / TRAIN, [srt_example(arrays)])
  convert_root(root, tmp_path)
  store = store_lib.open_split(tmp_path / 'out', 'msn', 'train')
  clip = store.clip(0)
  frames = store.clip_frames(0, range(10))
  pixels = np.stack([images.decode(frame) for frame in frames])
  # What the public code does after the golden file's np.random.seed(3).
  rng = np.random.RandomState(3)
  views = rng.choice(np.arange(10), size=5, replace=False)
  others = np.array(sorted(set(range(10)) - set(views)))
  chosen = rng.choice(np.arange(5 * 12 * 16), size=64, replace=False)

  def select(origins, rays):
    return {
      'input_rays': rays[views],
      'input_camera_pos': origins[views][:, 0, 0],
      'input_images': pixels[views].transpose(0, 3, 1, 2) / 255,
      'target_rays': rays[others].reshape(-1, 3)[chosen],
      'target_camera_pos': origins[others].reshape(-1, 3)[chosen],
      'target_pixels': pixels[others].reshape(-1, 3)[chosen] / 255,
    }

  srt.check_rays(arrays, 'msn', clip, int(views[0]), select)


def test_cropped_frames(tmp_path):
  convert_root(GOLDEN, tmp_path, size=8)
  store = store_lib.open_split(tmp_path / 'out', 'msn', 'train')
  assert (store.height[0], store.width[0]) == (8, 8)
  # 12 of the 16 columns from the third on: cx is 7.25 - 2 of 12.
  np.testing.assert_allclose(
    store.clip(0).intrinsics[0],
    [17.5 / 12, 16.5 / 12, 5.25 / 12, 6.5 / 12],
    rtol=1e-6,
  )


def rig(seed):
  rng = np.random.default_rng(seed)
  pose = cameras.look_at(
    rng.normal(size=3) * 5, rng.normal(size=3), rng.normal(size=3)
  )
  return rng.uniform([0.5, 0.5, 0.3, 0.3], [2, 2, 0.7, 0.7]), pose


@pytest.mark.parametrize('seed', range(5))
def test_camera_from_rays(seed):
  intrinsics, pose = rig(seed)
  origins, rays = cameras.pixel_rays(intrinsics, pose, 9, 14)
  lengths = np.random.default_rng(seed).uniform(0.5, 2, (9, 14, 1))
  got = msn.camera_from_rays(
    origins.astype(np.float32), (rays * lengths).astype(np.float32)
  )
  np.testing.assert_allclose(got[0], intrinsics, atol=1e-5)
  np.testing.assert_allclose(got[1], pose, atol=1e-5)
  assert np.linalg.det(got[1][:, :3]) == pytest.approx(1)


def test_rays_of_no_pinhole():
  intrinsics, pose = rig(0)
  origins, rays = cameras.pixel_rays(intrinsics, pose, 9, 14)
  for wrong in (
    rays[:, ::-1],  # Mirrored.
    rays**3,
    rays + [0, 0, 1e-3] * (np.arange(14) % 2)[:, None],
    -rays,
  ):
    with pytest.raises(ValueError, match='off those of a pinhole'):
      msn.camera_from_rays(origins, wrong)
  for moved, wrong in (
    (origins + rays, rays),
    (origins, rays * 0),
    (origins, rays * np.nan),
  ):
    with pytest.raises(ValueError, match='no direction or no common origin'):
      msn.camera_from_rays(moved, wrong)


def edit(root, change):
  """Rewrites the training file with its second scene changed."""
  path = os.path.join(GOLDEN, TRAIN)
  one, two = (tfrecord.example(record) for record in tfrecord.read(path))
  change(two)
  root.mkdir()
  write_tfrecord(root / TRAIN, [one, two])


@pytest.mark.parametrize(
  ('key', 'value', 'reason'),
  [
    ('intrinsics/type', [b'FISHEYE'], 'camera_3 of scene_3: not a pin'),
    (
      'intrinsics/distortion/radial',
      np.array([0, 0.1, 0], np.float32),
      'camera_3 of scene_3: not a pinhole',
    ),
    ('color_image', [b'\x89PNG broken'], 'not a JPEG or PNG'),
    ('extrinsics/R', None, 'camera_3 of scene_3: .*extrinsics/R'),
    ('ray_directions', [b'x'], 'camera_3 of scene_3: .*ray_origins'),
  ],
)
def test_unusable_scenes_are_left_out(tmp_path, key, value, reason):
  def change(example):
    if value is None:
      del example[f'cameras/camera_3/{key}']
    else:
      example[f'cameras/camera_3/{key}'] = value

  edit(tmp_path / 'in', change)
  summary = convert_root(tmp_path / 'in', tmp_path)
  assert summary.splits['train'].clips == 1
  ((item, text),) = summary.skipped
  assert item == TRAIN
  assert text.startswith(f'1 of 2 sequences of {TRAIN} are skipped')
  with pytest.raises(errors.UserError, match=reason):
    list(msn.Source(source=str(tmp_path / 'in')).clips(_item(tmp_path / 'in')))


def _item(root):
  (item,) = msn.Source(source=str(root)).items()
  return item


def test_a_missing_picture(tmp_path):
  def change(example):
    png = example['cameras/camera_3/color_image'][0]
    example['cameras/camera_3/color_image'] = [png[:200]]

  edit(tmp_path / 'in', change)
  with pytest.raises(errors.UserError, match='9 usable .*camera_3 of scene_3'):
    list(msn.Source(source=str(tmp_path / 'in')).clips(_item(tmp_path / 'in')))


def test_items(tmp_path):
  names = [
    f'multi_shapenet_frames-{split}.tfrecord-{i:05d}-of-00002'
    for split in ('train', 'validation')
    for i in (1, 0)
  ]
  for name in names:
    (tmp_path / name).write_bytes(bytes(100))
  (tmp_path / 'features.json').write_text('{}')
  items = msn.Source(source=str(tmp_path)).items()
  assert [item.id for item in items] == sorted(names)
  assert [item.split for item in items] == 2 * ['train'] + 2 * ['validation']
  assert all(item.bundle and item.size == 100 for item in items)
  with pytest.raises(errors.UserError, match='no folder .*nowhere'):
    msn.Source(source=str(tmp_path / 'nowhere')).items()
  for name in names:
    os.remove(tmp_path / name)
  with pytest.raises(errors.UserError, match='holds features.json; expected'):
    msn.Source(source=str(tmp_path)).items()


def test_tfrecord_ranges_and_damage(tmp_path):
  path = tmp_path / TRAIN
  shutil.copyfile(os.path.join(GOLDEN, TRAIN), path)
  every = list(tfrecord.read(path))
  assert len(every) == 2
  assert list(tfrecord.read(path, 1)) == every[1:]
  assert list(tfrecord.read(path, 0, 1)) == every[:1]
  with pytest.raises(errors.UserError, match='2 of the 3 records expected'):
    list(tfrecord.read(path, 1, 3))
  with pytest.raises(errors.UserError, match='cannot be read'):
    list(tfrecord.read(tmp_path / 'nothing'))
  data = path.read_bytes()
  for at in (3, 9, 500, len(data) - 1):
    broken = bytearray(data)
    broken[at] ^= 1
    path.write_bytes(broken)
    with pytest.raises(errors.UserError, match='damaged at record [01]; copy'):
      list(tfrecord.read(path))
  for length in (5, 14, 700, len(data) - 2):
    path.write_bytes(data[:length])
    with pytest.raises(errors.UserError, match='damaged at record [01]; copy'):
      list(tfrecord.read(path))
  with pytest.raises(errors.UserError, match='not a tf.train.Example'):
    tfrecord.example(b'\xff\xff\xff')


def test_the_scenes_before_the_damage_are_kept(tmp_path):
  root = tmp_path / 'in'
  root.mkdir()
  with open(os.path.join(GOLDEN, TRAIN), 'rb') as file:
    (root / TRAIN).write_bytes(file.read()[:-100])
  summary = convert_root(root, tmp_path)
  assert summary.splits['train'].clips == 1
  assert 'damaged at record 1' in summary.skipped[0][1]
