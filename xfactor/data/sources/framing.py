"""Fits a picture and its camera to the frames of a data set."""

import io
from typing import NamedTuple

import numpy as np

from xfactor.data import images
from xfactor.data.formats import lens
from xfactor.geometry import cameras


class CameraError(Exception):
  """Raised if a camera is not that of its picture."""


class Framed(NamedTuple):
  """A frame with its camera.

  Attributes:
    picture: The frame.
    intrinsics: float64 [4] of the frame, normalised, or None if unknown.
    world_to_camera: float64 [3, 4], or None if unknown.
    undistorted: Whether the distortion of the lens was undone.
    turned: Whether the camera was turned, because EXIF turns the picture.
  """

  picture: images.Fitted
  intrinsics: np.ndarray | None = None
  world_to_camera: np.ndarray | None = None
  undistorted: bool = False
  turned: bool = False


def frame(
  data: bytes,
  camera: lens.Camera | None,
  world_to_camera: np.ndarray | None,
  *,
  size: int | None,
  quality: int,
  max_megapixels: int,
  undistort: bool | None,
) -> Framed:
  """Returns the frame of a picture, and the camera of the frame.

  Cameras are those of the stored pixels, as COLMAP reads them: if EXIF turns a
  picture, its camera is turned, too. If only the sides of the turned picture
  are those of the camera, the camera is taken for that of the turned picture.
  A picture that EXIF mirrors is kept as it is stored, for no camera sees the
  mirrored one. A picture may be larger or smaller than its camera says, but not
  of another shape.

  Args:
    data: Encoded picture.
    camera: Its camera, or None if unknown. A width of 0 fits any picture.
    world_to_camera: Its pose, or None if unknown.
    size: Side of the central square, or None for the whole picture.
    quality: Quality of re-encoded JPEGs.
    max_megapixels: Maximum size of the picture.
    undistort: Whether to undo the distortion of lenses; None does so for
      fisheye lenses.

  Raises:
    ImageError: If the picture cannot be read.
    CameraError: If the camera is of pictures of another shape.
  """
  options = {'max_megapixels': max_megapixels}
  if camera is None or world_to_camera is None:
    return Framed(images.fit(data, size, quality, **options))
  height, width, orientation = images.stored_form(io.BytesIO(data))
  stored = _fits(camera, height, width)
  if not stored and not (orientation > 4 and _fits(camera, width, height)):
    raise CameraError(
      f'its camera is of {camera.width} x {camera.height} pixels and the '
      f'picture has {width} x {height}'
    )
  upright = not (stored and orientation in images.MIRRORED)
  turns = images.TURNS[orientation] if stored and upright else 0
  intrinsics, pose = camera.intrinsics, world_to_camera
  if undo := camera.distorted and (
    camera.fisheye if undistort is None else undistort
  ):
    file = io.BytesIO(data)
    rgb = images.read_image(file, upright=not stored, **options)
    rgb, intrinsics = lens.undistort(rgb, camera, size)
    rgb = np.rot90(rgb, turns)
    encoded = (
      images.encode_png(np.ascontiguousarray(rgb))
      if size is None
      else images.encode_jpeg(rgb, quality)
    )
    picture = images.Fitted(encoded, *rgb.shape[:2], *rgb.shape[:2])
  else:
    picture = images.fit(data, size, quality, upright=upright, **options)
  for _ in range(turns):
    intrinsics, pose = cameras.quarter_turn(intrinsics, pose)
  if size is not None:
    intrinsics = cameras.crop_intrinsics(
      np.asarray(intrinsics, np.float64),
      picture.source_height,
      picture.source_width,
    )
  return Framed(picture, intrinsics, pose, undo, turns > 0)


def _fits(camera: lens.Camera, height: int, width: int) -> bool:
  """Returns whether a picture is one of the camera, perhaps rescaled."""
  if not camera.width:
    return True
  # Rescaled sides are rounded.
  low = max((width - 1) / camera.width, (height - 1) / camera.height)
  high = min((width + 1) / camera.width, (height + 1) / camera.height)
  return low <= high
