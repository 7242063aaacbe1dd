"""The contact sheet shows the clips that are there, and where cameras went."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from tests.data.convert.test_run import Fake, run
from xfactor.data import images, preview
from xfactor.data.records import codec, store
from xfactor.errors import UserError
from xfactor.geometry import cameras

UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch):
  """Spares the disk: most of a small conversion's time is its flushes."""
  monkeypatch.setattr(os, 'fsync', lambda _: None)


@dataclasses.dataclass(frozen=True)
class Flat(Fake):
  """Clips of one colour each, 24 x 16, seen by cameras on an arc."""

  def clips(self, item):
    for clip in super().clips(item):
      rgb = np.zeros((16, 24, 3), np.uint8)
      rgb[..., item.payload % 3] = 255
      n = len(clip.frames)
      angle = np.linspace(0, 1, n)
      eye = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
      poses = cameras.look_at(eye, np.zeros_like(eye), UP).astype(np.float32)
      intrinsics = np.tile(np.float32([1, 1, 0.5, 0.5]), (n, 1))
      yield dataclasses.replace(
        clip,
        frames=[images.encode_png(rgb)] * n,
        height=16,
        width=24,
        intrinsics=intrinsics if self.cameras else None,
        world_to_camera=poses if self.cameras else None,
      )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Data sets with cameras and without, of three clips each."""
  folder = tmp_path_factory.mktemp('data')
  for name, known in (('posed', True), ('unposed', False)):
    source = Flat(count=3, frames=5, cameras=known)
    run(source, folder, name=name, test_fraction=0)
  return folder


def sheet(data, name, num_clips=8):
  return preview.sheet(store.open_split(data, name, 'train'), num_clips)


def count(picture, colour) -> int:
  return int((picture == np.array(colour, np.uint8)).all(-1).sum())


def test_strips_show_the_frames_of_each_clip(data):
  picture = sheet(data, 'unposed')
  # Clips of 5, 6 and 7 frames, each 144 x 96 on the page.
  for channel, frames in enumerate((5, 6, 7)):
    colour = 255 * np.eye(3, dtype=np.uint8)[channel]
    assert count(picture, colour) == frames * 144 * 96
  top, middle, bottom = (
    np.flatnonzero((picture == 255 * np.eye(3)[c]).all(-1).any(1))[0]
    for c in range(3)
  )
  assert top < middle < bottom


def test_only_known_cameras_have_a_path(data):
  posed, unposed = sheet(data, 'posed'), sheet(data, 'unposed')
  width = unposed.shape[1]
  assert posed.shape[1] == width + preview._PATH + 2 * preview._MARGIN
  # The strips are the same, the rest of the page holds the paths.
  assert count(posed[:, :width], (255, 0, 0)) == 5 * 144 * 96
  start = (255 * preview.colours(1)[0]).round()
  right = posed[:, width:]
  assert count(right, start) > 3 * 10
  assert count(right, start) < 3 * 300


def test_number_of_clips(data):
  all_of_them, one = sheet(data, 'posed'), sheet(data, 'posed', 1)
  assert one.shape[1] == all_of_them.shape[1]
  row = preview._LINE + 96 + preview._GAP // 2 + preview._BAR + preview._MARGIN
  assert all_of_them.shape[0] - one.shape[0] == 2 * row
  shown = [count(one, c) > 1000 for c in 255 * np.eye(3, dtype=np.uint8)]
  assert sum(shown) == 1
  np.testing.assert_array_equal(one, sheet(data, 'posed', 1))


def test_upright_long_named_and_short_clips_fit(tmp_path, monkeypatch):
  original = Flat.clips

  def clips(self, item):
    for clip in original(self, item):
      frame = images.encode_png(np.zeros((64, 16, 3), np.uint8))
      yield dataclasses.replace(
        clip,
        id='a' * 300 + clip.id,
        frames=[frame],
        height=64,
        width=16,
        timestamps=clip.timestamps[:1],
        intrinsics=clip.intrinsics[:1],
        world_to_camera=clip.world_to_camera[:1],
      )

  monkeypatch.setattr(Flat, 'clips', clips)
  run(Flat(count=1), tmp_path)
  picture = sheet(tmp_path, 'fake')
  m = preview._MARGIN
  strip = picture[2 * preview._LINE + m + preview._LINE :][:144, m : m + 36]
  assert not strip.any()
  # Neither the id nor the facts reach the margins.
  assert (picture[:, :m] == 255).all()
  assert (picture[:, 2 - m :] == 255).all()  # The path's frame is a line wide.
  assert preview._short('a' * 300 + 'end').endswith('aend')
  assert len(preview._short('a' * 300)) == preview._LONGEST_ID


def test_folder_of_one_data_set_and_the_only_split(data, tmp_path):
  (path,) = preview.write(data / 'posed', out=tmp_path)
  assert path.name == 'posed-preview.png'
  run(Flat(count=1, split='val'), tmp_path / 'data')
  (path,) = preview.write(tmp_path / 'data', out=tmp_path)
  assert path.name == 'fake-preview.png'


def test_cameras_that_are_no_numbers_have_no_path(data, monkeypatch):
  original = codec.decode_clip

  def broken(record):
    clip = original(record)
    if clip.world_to_camera is not None:
      clip.world_to_camera = clip.world_to_camera * np.nan
    return clip

  monkeypatch.setattr(codec, 'decode_clip', broken)
  assert sheet(data, 'posed').shape == sheet(data, 'unposed').shape


@pytest.mark.parametrize('spin', [0.0, 1.0, -2.0])
def test_map_has_the_first_camera_look_up(spin):
  """Walks north-east while looking north, in a world that was turned."""
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
  turn *= np.linalg.det(turn)
  local = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0], [3.0, 5.0, 0.0]])
  cos, sin = np.cos(spin), np.sin(spin)
  yaw = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
  north = np.array([0.0, 1.0, 0.0])
  eye = local @ (turn @ yaw).T
  look = turn @ yaw @ north
  poses = cameras.look_at(eye, eye + look, turn @ UP)
  plane = preview.from_above(poses)
  np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-9)
  np.testing.assert_allclose(eye @ plane.T, local[:, :2], atol=1e-9)


def test_map_of_cameras_that_look_down():
  eye = np.array([[0.0, 0.0, 5.0], [1.0, 0.0, 5.0]])
  north = np.array([0.0, 1.0, 0.0])
  poses = cameras.look_at(eye, eye - UP + 0.01 * north, UP)
  # Their image's up is north; the map is orthogonal to it.
  plane = preview.from_above(poses)
  assert abs(plane @ north).max() < 0.02
  # One of them upside down: no direction is up on average.
  poses[1, :2] *= -1
  assert np.isfinite(preview.from_above(poses)).all()


def test_a_file_for_each_data_set(data, tmp_path):
  out = tmp_path / 'new/folder'
  paths = preview.write(data, num_clips=2, out=out)
  assert [p.name for p in paths] == ['posed-preview.png', 'unposed-preview.png']
  with Image.open(paths[0]) as image:
    np.testing.assert_array_equal(np.asarray(image), sheet(data, 'posed', 2))
  (only,) = preview.write(data, name='unposed', out=tmp_path)
  assert only == tmp_path / 'unposed-preview.png'


def test_what_cannot_be_shown(data, tmp_path):
  with pytest.raises(UserError, match='holds no converted data set'):
    preview.write(tmp_path)
  with pytest.raises(UserError, match="no data set 'gone'"):
    preview.write(data, name='gone', out=tmp_path)
  with pytest.raises(UserError, match="no split 'val'; it has train"):
    preview.write(data, split='val', out=tmp_path)
  with pytest.raises(UserError, match='give 1 or more'):
    preview.write(data, num_clips=0, out=tmp_path)
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot write .*file/.*--out'):
    preview.write(data, out=tmp_path / 'file')
