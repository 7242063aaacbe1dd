"""Cameras that do not fit their pictures are found, others are not."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tests.data.convert import test_run
from xfactor.data import epipolar, findings, images, sources, verify
from xfactor.data.records import codec, store
from xfactor.geometry import cameras

SIDE, FRAMES = 160, 4
INTRINSICS = np.array([1.1, 1.1, 0.52, 0.47])


def texture(seed):
  noise = np.random.default_rng(seed).random((300, 300, 3))
  noise = ndimage.gaussian_filter(noise, (2, 2, 0))
  low, high = noise.min(), noise.max()
  return 255 * (noise - low) / (high - low)


def views(count=FRAMES):
  """A walk along two textured walls that meet in a corner."""
  walls = [
    # Normal, distance, and the axes of the texture.
    (np.array([1.0, 0.0, 1.0]) / 2**0.5, 3.0, texture(0)),
    (np.array([-1.0, 0.0, 1.0]) / 2**0.5, 3.0, texture(1)),
  ]
  steps = np.linspace(-0.8, 0.8, count)
  eyes = np.stack([steps, 0.3 * steps, 0.5 * steps], -1)
  # Forward along z, y down.
  poses = cameras.look_at(
    eyes, np.tile([0.0, 0.0, 4.0], (count, 1)), np.array([0.0, -1.0, 0.0])
  )
  frames = []
  for pose in poses:
    origin, rays = cameras.pixel_rays(INTRINSICS, pose, SIDE, SIDE)
    nearest, rgb = np.full((SIDE, SIDE), np.inf), np.zeros((SIDE, SIDE, 3))
    for normal, distance, colours in walls:
      t = (distance - origin @ normal) / (rays @ normal)
      hit = origin + t[..., None] * rays
      along = np.cross(normal, [0.0, 1.0, 0.0])
      at = [40 * hit[..., 1] % 299, 40 * (hit @ along) % 299]
      colour = np.stack(
        [
          ndimage.map_coordinates(colours[..., c], at, order=1)
          for c in range(3)
        ],
        -1,
      )
      seen = (t > 0) & (t < nearest)
      nearest[seen], rgb[seen] = t[seen], colour[seen]
    frames.append(rgb.clip(0, 255).astype(np.uint8))
  return frames, poses


class Clips(store.FrameStore):
  """A store of one clip."""

  def __init__(self, frames, poses, intrinsics=INTRINSICS):
    self._frames = [images.encode_jpeg(np.ascontiguousarray(f)) for f in frames]
    self._clip = codec.Clip(
      *('a', 0, len(frames), *frames[0].shape[:2]),
      intrinsics=np.tile(intrinsics, (len(frames), 1)).astype(np.float32),
      world_to_camera=np.asarray(poses, np.float32),
    )

  def clip(self, number):
    return self._clip

  def clip_frames(self, number, offsets):
    return [self._frames[i] for i in offsets]


@pytest.fixture(scope='module')
def walk():
  return views()


def test_right_cameras(walk):
  assert epipolar.error(Clips(*walk), 0) < 0.3


@pytest.mark.parametrize(
  'change',
  [
    lambda frames, poses: ([np.rot90(f) for f in frames], poses),
    lambda frames, poses: ([f[:, ::-1] for f in frames], poses),
    lambda frames, poses: (frames, poses[::-1]),
    lambda frames, poses: (frames, cameras.invert_pose(poses)),
  ],
  ids=['turned', 'mirrored', 'backwards', 'inverse'],
)
def test_wrong_cameras(walk, change):
  assert epipolar.error(Clips(*change(*walk)), 0) > epipolar.LIMIT


def test_turned_together(walk):
  """Pictures and cameras turn alike, as when the converter applies EXIF."""
  frames, poses = walk
  turned = [cameras.quarter_turn(INTRINSICS, pose) for pose in poses]
  clips = Clips(
    [np.rot90(f) for f in frames], [p for _, p in turned], turned[0][0]
  )
  assert epipolar.error(clips, 0) < 0.3


def test_nothing_to_match(walk):
  frames, poses = walk
  grey = [np.full_like(frame, 90) for frame in frames]
  assert epipolar.error(Clips(grey, poses), 0) is None
  unrelated = [texture(10 + i)[:SIDE, :SIDE].astype(np.uint8) for i in range(5)]
  assert epipolar.error(Clips(unrelated, poses), 0) is None


def test_cameras_at_one_place():
  """A turn without a movement has no epipolar lines, but points."""
  uv = np.random.default_rng(0).uniform(0.3, 0.7, (30, 2))
  one = cameras.look_at(
    np.zeros(3), np.array([0.0, 0.1, 1.0]), np.array([0.0, -1.0, 0.0])
  )
  two = cameras.look_at(
    np.zeros(3), np.array([0.1, 0.0, 1.0]), np.array([0.0, -1.0, 0.0])
  )
  tiled = np.tile(INTRINSICS, (30, 1))
  _, rays = cameras.rays_through(uv, tiled, np.tile(one, (30, 1, 1)))
  seen, _ = cameras.project(rays, tiled, np.tile(two, (30, 1, 1)))
  both = np.tile(INTRINSICS, (2, 1)), np.stack([one, two])
  size = np.array([256, 256])
  assert epipolar.epipolar_errors(uv, seen, *both, size).max() < 1e-6
  moved = seen + [0, 3 / 256]
  errors = epipolar.epipolar_errors(uv, moved, *both, size)
  np.testing.assert_allclose(errors, 3, rtol=0.2)


@dataclasses.dataclass(frozen=True)
class Walks(test_run.Fake):
  """Clips of a walk, of which the second is turned and its cameras are not."""

  def clips(self, item):
    frames, poses = views()
    if item.payload == 1:
      frames = [np.rot90(frame) for frame in frames]
    yield sources.Clip(
      f'walk-{item.payload}',
      [images.encode_jpeg(np.ascontiguousarray(frame)) for frame in frames],
      *(SIDE, SIDE),
      intrinsics=np.tile(np.float32(INTRINSICS), (len(frames), 1)),
      world_to_camera=poses.astype(np.float32),
    )


def test_verification_names_the_clip(tmp_path):
  test_run.run(Walks(count=2, split='train'), tmp_path)
  report = verify.verify(tmp_path, 0, quiet=True)
  assert dict(report.problems.counts) == {'cameras and pictures': 1}
  text = findings.table(report)
  assert "clip 'walk-1' of train: matched features are" in text
  assert f'{report.rows[0].epipolar:.2f} px' in text
