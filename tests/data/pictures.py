"""Pictures that several tests draw, and where they see a point."""

import numpy as np

from xfactor.data import images, sources
from xfactor.geometry import cameras


def waves(height: int, width: int, seed: int) -> np.ndarray:
  """The test image of the golden files of SRT's data sets, see their notes."""
  y, x = np.mgrid[:height, :width].astype(np.float64)
  return np.stack(
    [
      127.5 * (1 + np.sin(0.21 * x + 0.15 * y + seed)),
      127.5 * (1 + np.cos(0.17 * y - 0.13 * x + 2 * seed)),
      (x * 3 + y * 5 + 17 * seed) % 256,
    ],
    axis=-1,
  ).astype(np.uint8)


def opengl(world_to_camera: np.ndarray) -> np.ndarray:
  """Camera-to-world [4, 4] of transforms.json: y up and z back."""
  to_world = np.eye(4)
  to_world[:3] = cameras.invert_pose(world_to_camera)
  to_world[:3, 1:3] *= -1
  return to_world


def spot(height: int, width: int, at: np.ndarray) -> np.ndarray:
  """A bright spot at (x, y) pixels, which need not be a pixel's centre."""
  y, x = np.mgrid[:height, :width] + 0.5
  light = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 8)
  return np.repeat((250 * light).astype(np.uint8)[..., None], 3, -1)


def find_spot(jpeg: bytes) -> np.ndarray:
  """Where the spot is in a frame, (x, y) from 0 to 1."""
  light = images.decode_jpeg(jpeg)[..., 0].astype(float)
  light[light < 25] = 0
  y, x = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
  centre = np.array([(x * light).sum(), (y * light).sum()]) / light.sum()
  return centre / light.shape[::-1]


def assert_cameras_see(
  point: np.ndarray, clip: sources.Clip, count: int, pixels: float = 0.3
) -> None:
  """The clip's cameras see a point of the world where its frames' spots are."""
  assert len(clip.frames) == len(clip.intrinsics) == count
  for frame, intrinsics, pose in zip(
    clip.frames, clip.intrinsics, clip.world_to_camera, strict=True
  ):
    seen, depth = cameras.project(point, intrinsics, pose)
    assert depth > 0
    difference = (seen - find_spot(frame)) * (clip.width, clip.height)
    assert abs(difference).max() < pixels
