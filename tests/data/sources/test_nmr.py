"""NMR's scenes become clips whose rays are those of SRT's public code."""

import io

import numpy as np
import pytest

from tests.data import pictures, srt
from tests.golden_tolerance import assert_close
from xfactor import errors
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import nmr

VIEWS = 24


def picture(seed, height=64, width=64):
  return pictures.waves(height, width, seed)


def world_mat(view):
  """The golden file's cameras: around the vertical, which is y, looking in."""
  turn, lift = 2 * np.pi * view / VIEWS, 0.5
  eye = [
    np.cos(lift) * np.sin(turn),
    -np.sin(lift),
    np.cos(lift) * np.cos(turn),
  ]
  forward = -np.array(eye)
  right = np.array([-np.cos(turn), 0.0, np.sin(turn)])
  rotation = np.stack([right, np.cross(forward, right), forward])
  out = np.eye(4)
  out[:3] = np.concatenate([rotation, [[0.0], [0.0], [2.732]]], axis=1)
  return out


CAMERA_MAT = np.diag([1.8660254, 1.8660254, 1.0, 1.0])


def write_scene(folder, shift):
  (folder / 'image').mkdir(parents=True)
  arrays = {}
  for i in range(VIEWS):
    png = images.encode_png(picture(i + shift))
    (folder / 'image' / f'{i:04d}.png').write_bytes(png)
    arrays[f'world_mat_{i}'] = world_mat(i)
    arrays[f'world_mat_inv_{i}'] = np.linalg.inv(world_mat(i))
    arrays[f'camera_mat_{i}'] = CAMERA_MAT
    arrays[f'camera_mat_inv_{i}'] = np.linalg.inv(CAMERA_MAT)
  np.savez(folder / 'cameras.npz', **arrays)


@pytest.fixture
def root(tmp_path):
  """Two categories; scenes A and B are the golden file's."""
  out = tmp_path / 'NMR_Dataset'
  scenes = {
    '02691156': {'train': ['b_A', 'a_B'], 'val': ['v'], 'test': []},
    '02828884': {'train': [], 'val': [], 'test': ['t']},
  }
  for category, splits in scenes.items():
    (out / category).mkdir(parents=True)
    for split, names in splits.items():
      for name in names:
        write_scene(out / category / name, 30 * (name == 'a_B'))
      text = ''.join(f'{name}\n' for name in names)
      (out / category / f'softras_{split}.lst').write_text(text)
  (out / 'metadata.yaml').write_text("'02691156':\n  id: '02691156'\n")
  return out


def convert_root(root, tmp_path, **options):
  source = nmr.Source(source=str(root), **options)
  return convert_run.convert(source, tmp_path / 'out', workers=0, quiet=True)


def test_items(root):
  items = nmr.Source(source=str(root)).items()
  assert [(item.id, item.split) for item in items] == [
    ('02691156/b_A', 'train'),
    ('02691156/a_B', 'train'),
    ('02691156/v', 'val'),
    ('02828884/t', 'test'),
  ]


def test_the_test_cameras_are_the_golden_ones(golden):
  arrays = golden('srt_datasets')
  for scene in ('sceneA', 'sceneB'):
    for i in (0, 5):
      key = f'nmr_cam/{scene}/world_mat_{i}'
      assert_close(world_mat(i), arrays[key])
      key = f'nmr_cam/{scene}/camera_mat_{i}'
      assert_close(CAMERA_MAT, arrays[key])


def test_rays_and_pixels_are_those_of_srt(root, tmp_path, golden):
  summary = convert_root(root, tmp_path)
  assert {k: v.clips for k, v in summary.splits.items()} == {
    'train': 2,
    'val': 1,
    'test': 1,
  }
  assert not summary.skipped
  store = store_lib.open_split(tmp_path / 'out', 'nmr', 'train')
  number = store.clip_ids().index('02691156/a_B')
  clip = store.clip(number)
  assert (clip.num_frames, clip.height, clip.width) == (VIEWS, 64, 64)
  assert clip.intrinsics.dtype == clip.world_to_camera.dtype == np.float32
  frames = store.clip_frames(number, range(VIEWS))
  pixels = np.stack([images.decode(frame) for frame in frames])
  np.testing.assert_array_equal(pixels, [picture(i + 30) for i in range(VIEWS)])

  arrays = golden('srt_datasets')
  view = 5
  # What the public code does after the golden file's np.random.seed(0).
  chosen = np.random.RandomState(0).choice(23 * 64 * 64, 96, replace=False)
  others = [i for i in range(VIEWS) if i != view]

  def select(origins, rays):
    return {
      'input_rays': rays[view][None],
      'input_camera_pos': origins[view, :1, 0],
      'target_rays': rays[others].reshape(-1, 3)[chosen],
      'target_camera_pos': origins[others].reshape(-1, 3)[chosen],
      'target_pixels': pixels[others].reshape(-1, 3)[chosen] / 255,
    }

  srt.check_rays(arrays, 'nmr', clip, view, select)


def test_cropped_frames(root, tmp_path):
  convert_root(root, tmp_path, size=32)
  store = store_lib.open_split(tmp_path / 'out', 'nmr', 'test')
  assert (store.height[0], store.width[0]) == (32, 32)
  # The camera of the whole square does not change with its size.
  whole, _ = nmr.camera_of(world_mat(3), CAMERA_MAT, 64, 64)
  np.testing.assert_allclose(store.clip(0).intrinsics[3], whole, atol=1e-6)


def test_axes_are_turned_to_opencv():
  flipped = np.diag([1.0, -1.0, 1.0, 1.0])
  world = world_mat(3)
  world[:3, 3] = [0.1, 0.2, 3]
  expected = nmr.camera_of(world, CAMERA_MAT, 64, 64)
  got = nmr.camera_of(flipped @ world, CAMERA_MAT @ flipped, 64, 64)
  np.testing.assert_allclose(got[0], expected[0])
  np.testing.assert_allclose(got[1], expected[1])
  with pytest.raises(ValueError, match='not a rotation'):
    nmr.camera_of(flipped @ world, CAMERA_MAT, 64, 64)


def test_unusable_scenes_are_skipped(root, tmp_path):
  scene = root / '02691156'
  (scene / 'v' / 'image' / '0007.png').unlink()
  data = (scene / 'b_A' / 'cameras.npz').read_bytes()
  (scene / 'b_A' / 'cameras.npz').write_bytes(data[:500])
  path = root / '02828884' / 't' / 'image' / '0003.png'
  path.write_bytes(path.read_bytes()[:900])
  summary = convert_root(root, tmp_path)
  assert sum(split.clips for split in summary.splits.values()) == 1
  reasons = dict(summary.skipped)
  assert 'cameras.npz is not a readable' in reasons['02691156/b_A']
  assert 'view 7 of' in reasons['02691156/v']
  assert '0003.png' in reasons['02828884/t']
  assert len(reasons) == 3


def test_unlisted_matrices(root):
  path = root / '02691156' / 'v' / 'cameras.npz'
  out = io.BytesIO()
  np.savez(out, other=np.eye(4))
  path.write_bytes(out.getvalue())
  source = nmr.Source(source=str(root))
  item = next(item for item in source.items() if item.id.endswith('/v'))
  with pytest.raises(errors.UserError, match='no world_mat_0'):
    list(source.clips(item))


def test_wrong_folders(tmp_path):
  with pytest.raises(errors.UserError, match='no folder .*nowhere'):
    nmr.Source(source=str(tmp_path / 'nowhere')).items()
  (tmp_path / 'NMR_Dataset').mkdir()
  with pytest.raises(errors.UserError, match='holds NMR_Dataset; expected'):
    nmr.Source(source=str(tmp_path)).items()
