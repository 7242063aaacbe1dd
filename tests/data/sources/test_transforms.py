"""Captures with transforms.json, in the ways in which people write it."""

import json
import math

import numpy as np
import pytest

from tests.data import pictures
from tests.data.sources.test_re10k import (
  HEIGHT,
  INTRINSICS,
  SIZE,
  WIDTH,
  check_cameras,
  draw,
  encoded,
  poses,
)
from xfactor.data.sources import transforms
from xfactor.errors import UserError

COUNT = 11


def write_pictures(folder, kind='JPEG', intrinsics=INTRINSICS, scale=1):
  folder.mkdir(parents=True)
  suffix = {'JPEG': 'jpg', 'PNG': 'png'}[kind]
  for i, pose in enumerate(poses(COUNT)):
    rgb = draw(pose, HEIGHT * scale, WIDTH * scale, intrinsics)
    (folder / f'r_{i}.{suffix}').write_bytes(encoded(rgb, kind))


def write_file(
  path, form, meta, matrix=lambda to_world: to_world, frame=lambda i: {}
):
  frames = []
  for i, pose in enumerate(poses(COUNT)):
    frames.append(
      {
        'file_path': form.format(i),
        'transform_matrix': matrix(pictures.opengl(pose)).tolist(),
        **frame(i),
      }
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({**meta, 'frames': frames[::-1]}))


def meta(intrinsics=INTRINSICS, scale=1, size=True):
  width, height = WIDTH * scale, HEIGHT * scale
  pixels = intrinsics * [width, height, width, height]
  out = dict(zip(('fl_x', 'fl_y', 'cx', 'cy'), pixels.tolist(), strict=True))
  return out | ({'w': width, 'h': height} if size else {})


def items_of(root, **options):
  source = transforms.Source(source=str(root), **{'size': SIZE, **options})
  return source, {item.id: item for item in source.items()}


def clip_of(root, id, **options):
  source, items = items_of(root, **options)
  (clip,) = source.clips(items[id])
  return clip


@pytest.mark.parametrize(
  'form',
  [
    'images/r_{}.jpg',
    './images/r_{}',
    '/home/someone/room/images/r_{}.png',
    '../data/images/r_{}.jpg',
    'images\\r_{}.jpg',
  ],
)
def test_paths(tmp_path, form):
  write_pictures(tmp_path / 'room' / 'images')
  write_file(tmp_path / 'room' / 'transforms.json', form, meta())
  clip = clip_of(tmp_path, 'room')
  assert clip.id == 'room'
  check_cameras(clip, poses(COUNT))


def test_pictures_beside_the_file(tmp_path):
  write_pictures(tmp_path / 'room')
  write_file(tmp_path / 'room' / 'transforms.json', 'r_{}.jpg', meta())
  check_cameras(clip_of(tmp_path, 'room'), poses(COUNT))


def test_other_sizes(tmp_path):
  """The numbers are those of pictures of which only smaller ones are left."""
  write_pictures(tmp_path / 'room' / 'images_2')
  write_pictures(tmp_path / 'room' / 'images_1', scale=2)
  write_file(
    tmp_path / 'room/transforms.json', 'images/r_{}.png', meta(scale=4)
  )
  check_cameras(clip_of(tmp_path, 'room'), poses(COUNT))


def test_scenes_of_nerf(tmp_path):
  """No size, one angle, and a file for each split."""
  focal = 1.2
  plain = np.array([focal, focal * WIDTH / HEIGHT, 0.5, 0.5])
  angle = {'camera_angle_x': 2 * math.atan(0.5 / focal)}
  for split in ('train', 'test'):
    write_pictures(tmp_path / 'lego' / split, 'PNG', plain)
    write_file(
      tmp_path / 'lego' / f'transforms_{split}.json', f'./{split}/r_{{}}', angle
    )
  _, items = items_of(tmp_path)
  assert list(items) == ['lego/transforms_test', 'lego/transforms_train']
  assert {item.group for item in items.values()} == {'lego'}
  clip = clip_of(tmp_path, 'lego/transforms_train')
  check_cameras(clip, poses(COUNT))


def test_intrinsics_of_each_frame_and_scaled_matrices(tmp_path):
  write_pictures(tmp_path / 'images')
  everything = meta(size=False)

  def scaled(to_world):
    to_world[:3, :3] *= 0.3
    return to_world

  write_file(
    tmp_path / 'transforms.json',
    'images/r_{}.jpg',
    {'fl_x': 1.0, 'w': 7, 'h': 9, 'applied_transform': np.eye(4)[:3].tolist()},
    scaled,
    lambda i: everything | {'w': WIDTH, 'h': HEIGHT},
  )
  check_cameras(clip_of(tmp_path, tmp_path.name), poses(COUNT))


def mirrored(to_world):
  to_world[:3, 0] *= -1
  return to_world


@pytest.mark.parametrize(
  ('options', 'matrix', 'message'),
  [
    ({}, mirrored, 'transform_matrix of images/r_10.jpg is no rotation'),
    ({'camera_model': 'EQUIRECTANGULAR'}, lambda m: m, 'camera_model is EQUI'),
    ({'w': 90, 'h': 160}, lambda m: m, 'camera of another size'),
  ],
)
def test_what_is_refused(tmp_path, options, matrix, message):
  write_pictures(tmp_path / 'images')
  file = tmp_path / 'transforms.json'
  write_file(file, 'images/r_{}.jpg', meta() | options, matrix)
  with pytest.raises(UserError, match=message):
    clip_of(tmp_path, tmp_path.name)


def test_no_pictures(tmp_path):
  write_file(tmp_path / 'transforms.json', 'images/r_{}.jpg', meta())
  with pytest.raises(UserError, match='names pictures in images, and there'):
    clip_of(tmp_path, tmp_path.name)
  with pytest.raises(UserError, match='expected captures: CAPTURE/transforms'):
    items_of(tmp_path.parent / 'nowhere')
