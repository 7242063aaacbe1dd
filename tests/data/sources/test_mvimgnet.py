"""MVImgNet in miniature: real pictures, models in COLMAP's bytes."""

import shutil

import numpy as np
import pytest
from etils import epath

from tests.data import pictures
from tests.data.formats import test_colmap
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store
from xfactor.data.sources import mvimgnet
from xfactor.errors import UserError
from xfactor.geometry import cameras

HEIGHT, WIDTH, SIZE, FRAMES = 53, 91, 40, 12
FOCAL, CENTRE = 70.0, (44.0, 28.5)
POINT = np.array([0.1, -0.2, 0.3])


def pose(frame):
  """A camera on its way past the point, turned about its axis."""
  angle = 0.1 + 0.02 * frame
  quaternion = (np.cos(angle), 0.0, 0.0, np.sin(angle))
  return quaternion, (0.05 * frame - 0.2, 0.1, 2.0)


def pixel(frame):
  """Where the camera sees the point, by the product of quaternions."""
  quaternion, translation = pose(frame)
  x, y, z = test_colmap.rotate(quaternion, POINT) + translation
  return np.array([FOCAL * x / z + CENTRE[0], FOCAL * y / z + CENTRE[1]])


def picture(frame):
  return pictures.spot(HEIGHT, WIDTH, pixel(frame))


def write_sequence(
  folder, frames=range(FRAMES), registered=None, files=test_colmap.binary_files
):
  (folder / 'images').mkdir(parents=True)
  for frame in frames:
    path = folder / 'images' / f'{frame + 1:03d}.jpg'
    path.write_bytes(images.encode_jpeg(picture(frame)))
  registered = frames if registered is None else registered
  test_colmap.write_model(
    folder / 'sparse' / '0',
    [(1, 'SIMPLE_RADIAL', WIDTH, HEIGHT, (FOCAL, *CENTRE, 0.0))],
    # COLMAP's order is that of registration.
    [
      (i + 1, *pose(frame), 1, f'{frame + 1:03d}.jpg', 5)
      for i, frame in enumerate(reversed(list(registered)))
    ],
    files,
  )


def clip_of(root, id='0/a', **options):
  source = mvimgnet.Source(source=str(root), **{'size': SIZE, **options})
  (item,) = (item for item in source.items() if item.id == id)
  (clip,) = source.clips(item)
  assert clip.id == id
  return clip


def assert_shows(clip, frames):
  """The frames are those, whatever the cameras say."""
  side = min(HEIGHT, WIDTH)
  corner = np.array([(WIDTH - side) // 2, (HEIGHT - side) // 2])
  for jpeg, frame in zip(clip.frames, frames, strict=True):
    expected = (pixel(frame) - corner) / side
    assert abs(pictures.find_spot(jpeg) - expected).max() < 0.3 / SIZE


@pytest.mark.parametrize(
  'files', [test_colmap.binary_files, test_colmap.text_files]
)
def test_cameras_after_the_crop(tmp_path, files):
  write_sequence(tmp_path / '0' / 'a', files=files)
  clip = clip_of(tmp_path)
  assert (clip.height, clip.width) == (SIZE, SIZE)
  assert clip.timestamps is None
  pictures.assert_cameras_see(POINT, clip, FRAMES)
  assert_shows(clip, range(FRAMES))
  # The crop is 53 pixels wide and begins at the 19th.
  np.testing.assert_allclose(
    clip.intrinsics[0],
    [70 / 53, 70 / 53, (44 - 19) / 53, 28.5 / 53],
    rtol=1e-6,
  )


def test_whole_pictures(tmp_path):
  write_sequence(tmp_path / '0' / 'a')
  clip = clip_of(tmp_path, size=None)
  assert (clip.height, clip.width) == (HEIGHT, WIDTH)
  pictures.assert_cameras_see(POINT, clip, FRAMES)
  first = (tmp_path / '0' / 'a' / 'images' / '001.jpg').read_bytes()
  assert clip.frames[0] == first


def test_items_of_both_layouts_and_their_splits(tmp_path):
  expected = {}
  for category, count in (('2', 11), ('10', 3), ('100', 1)):
    for i in range(count):
      id = f'{category}/{i * 7 % 11:02x}ab'
      top = tmp_path / 'flat' / id
      (top / 'images').mkdir(parents=True)
      deep = tmp_path / 'deep' / f'mvi_{i % 3:02d}' / id
      (deep / 'images').mkdir(parents=True)
    train = int(0.9 * count)
    names = sorted(
      path.name for path in (tmp_path / 'flat' / category).iterdir()
    )
    for i, name in enumerate(names):
      expected[f'{category}/{name}'] = 'train' if i < train else 'test'
  for layout in ('flat', 'deep'):
    (tmp_path / layout / 'README.md').write_text('')
    (tmp_path / layout / 'LICENSE').write_text('')
    items = mvimgnet.Source(source=str(tmp_path / layout)).items()
    assert [(item.id, item.split) for item in items] == list(expected.items())
  assert list(expected.values()).count('test') == 2 + 1 + 1
  assert items[0].size == 30 * 30_000


def test_one_sequence_in_two_places(tmp_path):
  for top in ('mvi_00', 'mvi_01'):
    (tmp_path / top / '0' / 'a' / 'images').mkdir(parents=True)
  first, second = mvimgnet.Source(source=str(tmp_path)).items()
  assert (first.id, first.problem) == ('0/a', None)
  assert second.id == 'mvi_01/0/a'
  assert 'mvi_00/0/a in' in second.problem


def test_pictures_of_nested_archives(tmp_path):
  write_sequence(tmp_path / 'mvi_07' / '0' / 'a')
  pictures.assert_cameras_see(POINT, clip_of(tmp_path), FRAMES)


def test_other_names_of_pictures(tmp_path):
  write_sequence(tmp_path / '0' / 'a', registered=[])
  folder = tmp_path / '0' / 'a' / 'images'
  shutil.copy(folder / '001.jpg', folder / '001_mask.jpg')
  (folder / '._002.jpg').write_text('')
  clip = clip_of(tmp_path)
  assert_shows(clip, range(FRAMES))
  assert clip.notes['pictures ignored next to NNN.jpg'] == 1
  (folder / '001_mask.jpg').unlink()
  for frame in range(FRAMES):
    path = folder / f'{frame + 1:03d}.jpg'
    path.rename(folder / f'frame_{frame}.JPG')
  assert_shows(clip_of(tmp_path), range(FRAMES))


@pytest.mark.parametrize('left', ['nothing', 'sparse', 'sparse/0'])
def test_without_a_model(tmp_path, left):
  write_sequence(tmp_path / '0' / 'a')
  shutil.rmtree(tmp_path / '0' / 'a' / 'sparse')
  if left != 'nothing':
    (tmp_path / '0' / 'a' / left).mkdir(parents=True)
  clip = clip_of(tmp_path)
  assert len(clip.frames) == FRAMES
  assert clip.intrinsics is None
  assert clip.world_to_camera is None


def test_more_than_999_frames(tmp_path):
  folder = tmp_path / '0' / 'a'
  write_sequence(folder)
  for frame in range(FRAMES):
    path = folder / 'images' / f'{frame + 1:03d}.jpg'
    shutil.copy(path, path.with_name(f'{frame + 991}_mask.jpg'))
    path.rename(path.with_name(f'{frame + 991}.jpg'))
  test_colmap.write_model(
    folder / 'sparse' / '0',
    [(1, 'SIMPLE_PINHOLE', WIDTH, HEIGHT, (FOCAL, *CENTRE))],
    [(i, *pose(i), 1, f'{i + 991}.jpg', 0) for i in range(FRAMES)],
  )
  pictures.assert_cameras_see(POINT, clip_of(tmp_path), 12)


def test_the_model_has_another_suffix(tmp_path):
  write_sequence(tmp_path / '0' / 'a')
  for path in (tmp_path / '0' / 'a' / 'images').iterdir():
    path.rename(path.with_suffix('.JPEG'))
  pictures.assert_cameras_see(POINT, clip_of(tmp_path), FRAMES)


def test_the_model_is_of_other_pictures(tmp_path):
  write_sequence(tmp_path / '0' / 'a')
  for path in (tmp_path / '0' / 'a' / 'images').iterdir():
    path.rename(path.with_name(f'IMG_{path.name}'))
  clip = clip_of(tmp_path)
  assert clip.world_to_camera is None
  assert clip.notes == {
    'cameras without a picture': 12,
    'clips without cameras: a COLMAP model that does not fit': 1,
  }


def test_damaged_model(tmp_path):
  write_sequence(tmp_path / '0' / 'a')
  path = tmp_path / '0' / 'a' / 'sparse' / '0' / 'images.bin'
  path.write_bytes(path.read_bytes()[:-1])
  clip = clip_of(tmp_path)
  assert_shows(clip, range(FRAMES))
  assert clip.intrinsics is None


def test_partly_registered(tmp_path):
  some, few = [0, 1, 2, 5, 7, 8, 11], [0, 3, 4]
  write_sequence(tmp_path / '0' / 'a', registered=some)
  write_sequence(tmp_path / '0' / 'b', registered=few)
  clip = clip_of(tmp_path, '0/a', min_length=7)
  pictures.assert_cameras_see(POINT, clip, len(some))
  assert_shows(clip, some)
  clip = clip_of(tmp_path, '0/b')
  assert clip.intrinsics is None
  assert_shows(clip, range(FRAMES))


def test_damaged_picture(tmp_path):
  write_sequence(tmp_path / '0' / 'a')
  path = tmp_path / '0' / 'a' / 'images' / '004.jpg'
  path.write_bytes(path.read_bytes()[:300])
  rest = [frame for frame in range(FRAMES) if frame != 3]
  clip = clip_of(tmp_path)
  pictures.assert_cameras_see(POINT, clip, len(rest))
  assert_shows(clip, rest)


def test_a_category_that_cannot_be_listed(tmp_path, monkeypatch):
  write_sequence(tmp_path / '0' / 'a')
  (tmp_path / '1').mkdir()
  cls = type(epath.Path(tmp_path))
  listed = cls.iterdir

  def iterdir(path):
    if path.name == '1':
      raise PermissionError(13, 'Permission denied', str(path))
    return listed(path)

  monkeypatch.setattr(cls, 'iterdir', iterdir)
  first, second = mvimgnet.Source(source=str(tmp_path)).items()
  assert (first.id, first.problem) == ('0/a', None)
  assert 'Permission denied' in second.problem


def test_wrong_folders(tmp_path):
  with pytest.raises(UserError, match='no folder .*nowhere'):
    mvimgnet.Source(source=str(tmp_path / 'nowhere')).items()
  (tmp_path / 'apple' / 'x').mkdir(parents=True)
  with pytest.raises(UserError, match='holds apple; expected CATEGORY/ID'):
    mvimgnet.Source(source=str(tmp_path)).items()


def test_conversion(tmp_path):
  for i in range(11):
    write_sequence(tmp_path / 'raw' / '5' / f'{i:03d}', range(10 + i % 2))
  shutil.rmtree(tmp_path / 'raw' / '5' / '004' / 'images')
  source = mvimgnet.Source(source=str(tmp_path / 'raw'), size=SIZE)
  summary = convert_run.convert(source, tmp_path, workers=0, quiet=True)
  ((skipped, reason),) = summary.skipped
  assert skipped == '5/004'
  assert '5/004/images' in reason
  train = store.open_split(tmp_path, 'mvimgnet', 'train')
  test = store.open_split(tmp_path, 'mvimgnet', 'test')
  # Missing ones count, as in the public code: nine are for training.
  assert train.clip_ids() == [f'5/{i:03d}' for i in range(9) if i != 4]
  assert test.clip_ids() == ['5/009', '5/010']
  assert test.num_frames.tolist() == [11, 10]
  clip = test.clip(1)
  seen, _ = cameras.project(POINT, clip.intrinsics[9], clip.world_to_camera[9])
  (frame,) = test.clip_frames(1, [9])
  assert abs(seen - pictures.find_spot(frame)).max() < 0.3 / SIZE
