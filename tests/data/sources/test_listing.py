"""Which videos and folders of pictures are found, and what they are called."""

import os
import pathlib

import numpy as np
import pytest

from xfactor.data import images, sources
from xfactor.data.sources import listing, pyramid


def items(root, size=16):
  return listing.items(str(root), ('.mp4', '.mov'), ('.jpg',), size)


def ids(root):
  return {item.id: item.payload for item in items(root)}


def touch(root, *paths):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text('')


def pictures(folder, side, count=3, wide=2):
  folder.mkdir(parents=True)
  for i in range(count):
    rgb = np.full((side, side * wide, 3), 80, np.uint8)
    (folder / f'{i}.jpg').write_bytes(images.encode_jpeg(rgb))


def test_equal_names_get_their_suffixes(tmp_path):
  touch(tmp_path, 'IMG_1.MOV', 'IMG_1.mp4', 'IMG_2.mp4', 'a b.mp4', 'a_b/1.jpg')
  assert ids(tmp_path) == {
    'IMG_1.MOV': 'IMG_1.MOV',
    'IMG_1.mp4': 'IMG_1.mp4',
    'IMG_2': 'IMG_2.mp4',
    'a_b.mp4': 'a b.mp4',
    'a_b': 'a_b',
  }
  # They may show the same, so one hash decides for both.
  groups = {item.id: item.group for item in items(tmp_path)}
  assert groups['IMG_1.MOV'] == groups['IMG_1.mp4'] == 'IMG_1'


def test_other_letters_are_kept(tmp_path):
  touch(tmp_path, '日本.mp4', '東京.mp4')
  assert list(ids(tmp_path)) == ['日本', '東京']


def test_links(tmp_path):
  """Loops end, what is found twice is one, what is gone is still named."""
  touch(tmp_path, 'z/sub/v.mp4', 'z/frames/1.jpg')
  (tmp_path / 'z' / 'loop').symlink_to('..')
  (tmp_path / 'z' / 'self').symlink_to('self')
  (tmp_path / 'a').symlink_to('z/frames')
  (tmp_path / 'b.mp4').symlink_to('z/sub/v.mp4')
  (tmp_path / 'gone.mp4').symlink_to('/nonexistent/x.mp4')
  elsewhere = tmp_path.parent / f'{tmp_path.name}-other'
  touch(elsewhere, 'film.mp4', 'walk/1.jpg')
  (tmp_path / 'c.mp4').symlink_to(elsewhere / 'film.mp4')
  (tmp_path / 'd').symlink_to(elsewhere / 'walk')
  found = ids(tmp_path)
  assert sorted(found) == ['c', 'd', 'gone', 'z/frames', 'z/sub/v']


def test_ignored_files(tmp_path):
  touch(tmp_path, 'a/1.jpg', 'a/1.HEIC', 'a/2.heic', 'b/v.mp4', 'b/1.jpg')
  touch(tmp_path, 'README', '.hidden.txt', 'b/v.srt')
  assert listing.ignored(str(tmp_path), ('.mp4',), ('.jpg',)) == {
    '.heic': 2,
    '.srt': 1,
    'pictures next to videos': 1,
    'without suffix': 1,
  }


@pytest.mark.parametrize(
  ('name', 'read', 'ignored'),
  [
    ('clevr3d', 'metadata.npz images/img_7_2.png', 'images/mask_7_2.png'),
    ('co3dv2', 'apple/frame_annotations.jgz', 'apple/sequence_annotations.jgz'),
    ('co3dv2', 'apple/1_2_3/images/frame1.jpg', 'apple/1_2_3/masks/frame1.png'),
    ('co3dv2', 'apple/set_lists/set_lists_a.json', 'apple/eval_batches/a.json'),
    ('colmap', 'a/images/b/1.JPG a/sparse/0/images.bin', 'a/sparse/0/rigs.bin'),
    ('colmap', 'input/1.png distorted/sparse/0/cameras.txt', 'input/1.webp'),
    ('dl3dv', '1K/0a/images_4/1.png 1K/0a/transforms.json', '1K/0a/x/1.ply'),
    ('msn', 'msn-test.tfrecord-00000-of-00001', 'features.json'),
    ('mvimgnet', '7/a/images/001.jpg', '7/a/images/001.webp'),
    ('mvimgnet', '7/a/sparse/0/cameras.bin', '7/a/sparse/0/points3D.bin'),
    ('nmr', '02/softras_test.lst 02/1a/image/0000.png', '02/1a/mask/0000.png'),
    ('nmr', '02/1a/cameras.npz', '02/1a/visual_hull.npz'),
    ('obsurf_msn', 'metadata.npz', 'objects.npz'),
    ('re10k', 'train/0.torch test/a.txt', 'train/index.json'),
    ('re10k', 'test/metadata/a.json test/images/a/1.png', 'test/full.zip'),
    ('transforms', 'transforms_train.json train/r_0.png', 'points.ply'),
  ],
)
def test_what_each_data_set_ignores(tmp_path, name, read, ignored):
  touch(tmp_path, *read.split(), ignored)
  source = sources.find(name)(str(tmp_path))
  assert source.ignored() == {pathlib.Path(ignored).suffix: 1}


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
  touch(tmp_path, 'open/v.mp4', 'closed/v.mp4')
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('closed'):
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  problems = {item.id: item.problem for item in items(tmp_path)}
  assert problems.pop('open/v') is None
  assert 'Permission denied' in problems.pop('closed')
  assert not problems


def test_sizes_of_the_same_pictures_are_one_item(tmp_path):
  for name, side in (('images', 64), ('images_2', 32), ('images_4', 16)):
    pictures(tmp_path / 'scene' / name, side)
  # The name is wrong: this is not an eighth.
  pictures(tmp_path / 'scene' / 'images_8', 12)
  for size, name in ((12, '_8'), (13, '_4'), (33, ''), (99, '')):
    (item,) = items(tmp_path, size)
    assert item.id == 'scene/images'
    assert item.payload == f'scene/images{name}'


@pytest.mark.parametrize('same', [True, False])
def test_folders_that_are_no_sizes_of_the_same(tmp_path, same):
  pictures(tmp_path / 'images_1', 16)
  pictures(tmp_path / 'images_2', 16, count=3 if same else 4)
  first, second = items(tmp_path)
  assert (first.id, second.id) == ('images_1', 'images_2')
  # Two cameras at one place: the same names.
  assert (first.group == second.group) == same


def test_level_of_a_size(tmp_path):
  levels = []
  for name, side in (('images_8', 135), ('images_4', 270), ('images', 1080)):
    pictures(tmp_path / name, side, 1)
    levels.append((tmp_path / name, ['0.jpg']))
  for size, name in (
    *((100, 'images_8'), (256, 'images_4'), (271, 'images')),
    *((2000, 'images'), (None, 'images')),
  ):
    assert pyramid.choose(levels, size)[0].name == name
