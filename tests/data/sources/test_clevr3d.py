"""CLEVR3D and ObSuRF's MultiShapeNet become clips with SRT's rays."""

import numpy as np
import pytest

from tests.data import pictures, srt
from xfactor import errors
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import clevr3d, obsurf_msn
from xfactor.geometry import cameras

HEIGHT, WIDTH = 240, 320


def picture(seed):
  return pictures.waves(HEIGHT, WIDTH, seed)


def write_metadata(folder, positions, objects):
  """Writes the counts of objects as the public files do: shapes, 0 is none."""
  shape = (np.arange(11) < np.array(objects)[:, None]).astype(np.int64)
  np.savez(folder / 'metadata.npz', camera_pos=positions, shape=shape)


@pytest.fixture
def root(tmp_path, golden):
  """Five scenes, the third the golden file's, the second one too full."""
  out = tmp_path / 'clevr3d'
  (out / 'images').mkdir(parents=True)
  positions = np.random.default_rng(0).normal(size=(5, 3, 3)) + [4, 0, 3]
  positions[2] = golden('srt_datasets')['clevr/camera_pos_scene2']
  write_metadata(out, positions, [6, 7, 3, 1, 0])
  for scene in range(5):
    for view in range(3):
      png = images.encode_png(picture(3 * scene + view))
      (out / 'images' / f'img_{scene}_{view}.png').write_bytes(png)
  return out


def convert_root(root, tmp_path, **options):
  source = clevr3d.Source(source=str(root), **options)
  return convert_run.convert(source, tmp_path / 'out', workers=0, quiet=True)


def test_rays_and_pixels_are_those_of_srt(root, tmp_path, golden):
  summary = convert_root(root, tmp_path)
  assert not summary.skipped
  store = store_lib.open_split(tmp_path / 'out', 'clevr3d', 'train')
  assert store.clip_ids() == ['000000', '000002', '000003', '000004']
  number = store.clip_ids().index('000002')
  clip = store.clip(number)
  assert (clip.num_frames, clip.height, clip.width) == (3, HEIGHT, WIDTH)
  frames = store.clip_frames(number, range(3))
  pixels = np.stack([images.decode(frame) for frame in frames])
  np.testing.assert_array_equal(pixels, [picture(6 + i) for i in range(3)])

  arrays = golden('srt_datasets')
  view = 2
  # What the public code does after the golden file's np.random.seed(1).
  chosen = np.random.RandomState(1).choice(
    3 * HEIGHT * WIDTH, 64, replace=False
  )

  def select(origins, rays):
    return {
      'input_rays': rays[view : view + 1, 2::4, 2::4],
      'input_camera_pos': origins[view : view + 1, 0, 0],
      'target_rays': rays.reshape(-1, 3)[chosen],
      'target_camera_pos': origins.reshape(-1, 3)[chosen],
      'target_pixels': pixels.reshape(-1, 3)[chosen] / 255,
    }

  srt.check_rays(arrays, 'clevr', clip, view, select)


def test_cropped_frames(root, tmp_path):
  convert_root(root, tmp_path, size=120)
  store = store_lib.open_split(tmp_path / 'out', 'clevr3d', 'train')
  assert (store.height[1], store.width[1]) == (120, 120)
  clip = store.clip(1)
  # Square pixels, and the picture's height is kept whole.
  np.testing.assert_allclose(
    clip.intrinsics[0], [0.035 / 0.024, 0.035 / 0.024, 0.5, 0.5], rtol=1e-6
  )
  uv, depth = cameras.project(
    np.zeros((3, 3), np.float32), clip.intrinsics, clip.world_to_camera
  )
  np.testing.assert_allclose(uv, 0.5, atol=1e-6)
  assert (depth > 0).all()
  frame = images.decode(store.clip_frames(1, [1])[0])
  expected = images.centre_crop_resize(picture(7), 120)
  assert np.abs(frame.astype(int) - expected).mean() < 3


def test_max_objects(root):
  items = clevr3d.Source(source=str(root), max_objects=0).items()
  assert [scene for scene, _ in items[0].payload] == [4]


@pytest.mark.parametrize(
  ('module', 'edges'),
  [
    (clevr3d, {'train': (0, 70000), 'val': (70000, 75000)}),
    (obsurf_msn, {'train': (0, 80000), 'val': (80000, 80500)}),
  ],
)
def test_splits_and_blocks(tmp_path, module, edges):
  objects = np.zeros(100_000, np.int64)
  objects[[0, 150, *range(300, 400)]] = 7
  write_metadata(tmp_path, np.ones((100_000, 3, 3)), objects)
  items = module.Source(source=str(tmp_path)).items()
  assert all(item.bundle for item in items)
  scenes = {
    split: [s for i in items if i.split == split for s, _ in i.payload]
    for split in ('train', 'val', 'test')
  }
  edges = edges | {
    'test': ({clevr3d: 85000, obsurf_msn: 90000}[module], 100000)
  }
  for split, (begin, end) in edges.items():
    kept = [s for s in range(begin, end) if not objects[s]]
    assert scenes[split] == kept
  assert [item.id for item in items[:4]] == [
    '000000',
    '000100',
    '000200',
    '000400',
  ]
  assert max(len(item.payload) for item in items) == 100


def test_what_is_broken_is_left_out(root, tmp_path):
  path = root / 'images' / 'img_2_1.png'
  path.write_bytes(path.read_bytes()[:5000])
  (root / 'images' / 'img_3_0.png').unlink()
  summary = convert_root(root, tmp_path)
  store = store_lib.open_split(tmp_path / 'out', 'clevr3d', 'train')
  assert store.clip_ids() == ['000000', '000004']
  ((item, reason),) = summary.skipped
  assert item == '000000'
  assert reason.startswith('2 of 4 sequences of the block 000000')
  assert 'img_2_1.png' in reason


def test_a_camera_above_the_origin(root, tmp_path):
  positions = np.ones((5, 3, 3))
  positions[3, 1] = [0, 0, 2]
  write_metadata(root, positions, np.ones(5))
  summary = convert_root(root, tmp_path)
  assert summary.splits['train'].clips == 4
  assert 'scene 3 has a camera' in summary.skipped[0][1]


def test_wrong_folders(tmp_path):
  with pytest.raises(errors.UserError, match='no folder .*nowhere'):
    clevr3d.Source(source=str(tmp_path / 'nowhere')).items()
  with pytest.raises(errors.UserError, match='holds nothing; expected meta'):
    clevr3d.Source(source=str(tmp_path)).items()
  (tmp_path / 'metadata.npz').write_bytes(b'PK\x03\x04 broken')
  with pytest.raises(errors.UserError, match='metadata.npz is not a readable'):
    clevr3d.Source(source=str(tmp_path)).items()
  np.savez(tmp_path / 'metadata.npz', camera_pos=np.ones((1, 3, 3)))
  with pytest.raises(errors.UserError, match='metadata.npz cannot be read'):
    obsurf_msn.Source(source=str(tmp_path)).items()
