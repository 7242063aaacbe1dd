"""COLMAP projects as people have them become posed clips in one split each."""

import numpy as np
import pytest

from tests.data import pictures
from tests.data.convert.test_run import bucket  # noqa: F401
from tests.data.formats import test_colmap
from tests.data.sources.test_mvimgnet import (
  CENTRE,
  FOCAL,
  HEIGHT,
  POINT,
  SIZE,
  WIDTH,
  picture,
  pose,
)
from xfactor.data import images
from xfactor.data.sources import colmap
from xfactor.errors import UserError

COUNT = 10


def write_pictures(folder, count=COUNT, scale=1, suffix='jpg', sub=''):
  (folder / sub).mkdir(parents=True, exist_ok=True)
  for frame in range(count):
    rgb = np.kron(picture(frame), np.ones((scale, scale, 1), np.uint8))
    path = folder / sub / f'{frame + 1}.{suffix}'
    path.write_bytes(images.encode_jpeg(rgb))


def write_model(folder, names, files=test_colmap.binary_files, **camera):
  camera = {'width': WIDTH, 'height': HEIGHT} | camera
  test_colmap.write_model(
    folder,
    [(1, 'SIMPLE_RADIAL', *camera.values(), (FOCAL, *CENTRE, 0.0))],
    [(i, *pose(i % COUNT), 1, name, 3) for i, name in enumerate(names)],
    files,
  )


def names(count=COUNT, form='{}.jpg'):
  return [form.format(i + 1) for i in range(count)]


def items_of(root, **options):
  source = colmap.Source(source=str(root), **{'size': SIZE, **options})
  return source, {item.id: item for item in source.items()}


def clips_of(root, id, **options):
  source, items = items_of(root, **options)
  return list(source.clips(items[id]))


@pytest.mark.parametrize(
  ('model', 'folder', 'files'),
  [
    ('sparse/0', 'images', test_colmap.binary_files),
    ('sparse', 'images', test_colmap.text_files),
    ('.', 'images_2', test_colmap.text_files),
    ('colmap/sparse/0', 'images', test_colmap.binary_files),
    ('distorted/sparse/0', 'input', test_colmap.binary_files),
  ],
)
def test_layouts(tmp_path, model, folder, files):
  write_pictures(tmp_path / 'my' / 'room' / folder)
  write_model(tmp_path / 'my' / 'room' / model, names(), files)
  (clip,) = clips_of(tmp_path, 'my/room')
  assert clip.id == 'my/room'
  # `10` comes after `9`.
  pictures.assert_cameras_see(POINT, clip, COUNT)
  # The project itself may be given.
  (clip,) = clips_of(tmp_path / 'my' / 'room', 'room')
  assert len(clip.frames) == COUNT


def test_frames_without_a_camera_are_left_out(tmp_path):
  write_pictures(tmp_path / 'a' / 'images')
  write_model(tmp_path / 'a' / 'sparse' / '0', names(4))
  (clip,) = clips_of(tmp_path, 'a', min_length=4)
  pictures.assert_cameras_see(POINT, clip, 4)
  assert clip.notes == {'frames skipped: have no camera': 6}
  (clip,) = clips_of(tmp_path, 'a', min_posed=0.5)
  assert clip.world_to_camera is None
  assert len(clip.frames) == COUNT


def test_cameras_without_a_picture_are_counted(tmp_path):
  write_pictures(tmp_path / 'a' / 'images')
  write_model(tmp_path / 'a' / 'sparse' / '0', names())
  for path in sorted((tmp_path / 'a' / 'images').iterdir())[:2]:
    path.unlink()
  (clip,) = clips_of(tmp_path, 'a', min_length=4)
  assert clip.notes == {'cameras without a picture': 2}


def test_sizes_and_suffixes_that_differ(tmp_path):
  """The model was made of PNGs of twice the size."""
  write_pictures(tmp_path / 'a' / 'images_2')
  write_pictures(tmp_path / 'a' / 'images', scale=4)
  write_model(tmp_path / 'a' / 'sparse' / '0', names(form='{}.PNG'))
  (clip,) = clips_of(tmp_path, 'a')
  pictures.assert_cameras_see(POINT, clip, COUNT)
  (clip,) = clips_of(tmp_path, 'a', size=None)
  assert (clip.height, clip.width) == (4 * HEIGHT, 4 * WIDTH)


def test_the_cameras_of_a_rig_are_clips_of_one_split(tmp_path):
  for side in ('left', 'right'):
    write_pictures(tmp_path / 'a' / 'images', sub=side)
  write_model(
    tmp_path / 'a' / 'sparse' / '0',
    [*names(form='left/{}.jpg'), *names(8, form='right/{}.jpg')],
  )
  source, items = items_of(tmp_path)
  first = source.clips(items['a'])
  left = next(first)
  assert left.id == 'a/left'
  assert items['a'].group == 'a'
  pictures.assert_cameras_see(POINT, left, COUNT)
  # Eight frames are too few, which does not hurt the others.
  with pytest.raises(UserError, match=r'1 of 2 .*a/right has 8 usable frames'):
    next(first)


def test_the_best_of_several_models(tmp_path):
  write_pictures(tmp_path / 'a' / 'images')
  write_model(tmp_path / 'a' / 'sparse' / '0', names(2))
  write_model(tmp_path / 'a' / 'sparse' / '1', names())
  # COLMAP's undistorted copy is not another capture.
  write_pictures(tmp_path / 'a' / 'dense' / 'images')
  write_model(tmp_path / 'a' / 'dense' / 'sparse', names())
  _, items = items_of(tmp_path)
  assert list(items) == ['a']
  (clip,) = clips_of(tmp_path, 'a')
  assert len(clip.frames) == COUNT


def test_models_that_are_not_whole(tmp_path):
  write_pictures(tmp_path / 'good' / 'images')
  write_model(tmp_path / 'good' / 'sparse' / '0', names())
  (tmp_path / 'empty' / 'sparse').mkdir(parents=True)
  write_model(tmp_path / 'half' / 'sparse' / '0', names())
  (tmp_path / 'half' / 'sparse' / '0' / 'images.bin').unlink()
  _, items = items_of(tmp_path)
  assert items['good'].problem is None
  for id in ('empty', 'half'):
    assert 'has no model: it needs cameras and images' in items[id].problem


def test_names_that_fit_no_picture(tmp_path):
  write_pictures(tmp_path / 'a' / 'images')
  write_model(tmp_path / 'a' / 'sparse', names(form='IMG_{}.jpg'))
  with pytest.raises(UserError, match=r'names IMG_1\.jpg.* picture is 1\.jpg'):
    clips_of(tmp_path, 'a')


def test_cameras_of_other_pictures_are_refused(tmp_path):
  write_pictures(tmp_path / 'a' / 'images')
  write_model(tmp_path / 'a' / 'sparse', names(), width=HEIGHT, height=WIDTH)
  with pytest.raises(
    UserError, match='10 have the camera of another size.* 53 x 91 .* 91 x 53'
  ):
    clips_of(tmp_path, 'a')


def test_wrong_folders(tmp_path):
  (tmp_path / 'walk').mkdir()
  with pytest.raises(UserError, match='holds walk; expected COLMAP projects'):
    items_of(tmp_path)


def test_projects_in_a_bucket(bucket):  # noqa: F811
  write_pictures(bucket / 'captures' / 'a' / 'images')
  write_model(bucket / 'captures' / 'a' / 'sparse' / '0', names())
  (clip,) = clips_of('gs://captures', 'a')
  pictures.assert_cameras_see(POINT, clip, COUNT)
