"""Poses of pictures of a scene with known geometry, without learning.

Each picture is localised separately against the clip's own frames, cameras and
depth, so the pictures need no motion between them. SIFT features (Lowe 2004;
RootSIFT of Arandjelovic and Zisserman 2012) give points in the world,
perspective-n-point inside RANSAC gives a pose, and direct alignment with the
nearest frames (as in Engel et al., "Direct Sparse Odometry") refines it. The
refinement matters most for smooth pictures, whose features are few and coarse.
"""

import dataclasses
import functools
import time
from typing import Any

import numpy as np

from xfactor.data import depth as depth_lib
from xfactor.data import images as images_lib
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.evaluation.oracles.known_scene import alignment, localisation
from xfactor.geometry import cameras

try:
  import cv2
except ImportError:  # Optional; `Oracle` reports it.
  cv2 = None


_NEAREST = 3  # References of direct alignment.
_DEPTH_EDGE = 0.05  # Relative difference between neighbours.


class Oracle(oracles.SceneOracle):
  """Localises pictures in a data set with cameras and depth, in its scale.

  A frame is ok if at least `min_inliers` different points of the picture match
  points of the scene that project to within 2/128 of the picture's side. A clip
  is ok if all of its frames are; no frame is ok if the first, the origin, is
  lost. All pictures are assumed to have the intrinsics of the clip's first
  frame. `Scene.frames` is not used for localisation.

  Args:
    hold_out: Whether to exclude `Scene.frames` from the references. Required to
      measure the oracle on real frames, which would match themselves.
    references: Maximum number of frames of the clip to localise against, spread
      evenly.
    min_inliers: Minimum number of inliers, see above.
    refine: Whether to align directly after RANSAC.
  """

  name = 'known_scene'
  version = '1'

  def __init__(
    self,
    hold_out: bool = False,
    references: int = 32,
    min_inliers: int = 12,
    refine: bool = True,
  ):
    if cv2 is None:
      raise UserError(
        "the known_scene oracle needs OpenCV; run pip install -e '.[oracles]'"
      )
    self._hold_out, self._references = hold_out, references
    self._min_inliers, self._refine = min_inliers, refine

  def settings(self) -> dict[str, Any]:
    return {
      'hold_out': self._hold_out,
      'references': self._references,
      'min_inliers': self._min_inliers,
      'refine': self._refine,
      'opencv': cv2.__version__,
    }

  def __call__(
    self, images: oracles_base.Images, scene: oracles_base.Scene | None = None
  ) -> oracles_base.PoseResult:
    oracles_base.check_images(images)
    if scene is None:
      raise UserError(
        'the known_scene oracle only localises pictures of converted data '
        'sets; choose another oracle: learned, colmap, vggt'
      )
    start = time.perf_counter()
    world = _world(
      scene.store,
      int(scene.clip),
      self._choose(scene),
      *images.shape[1:3],
    )
    # A static camera repeats one picture: localise it only once.
    different, places = np.unique(images, axis=0, return_inverse=True)
    found = [self._localise(image, world) for image in different]
    found = [found[i] for i in places.tolist()]
    lost = [
      f'frame {i}: {x.inliers} inliers of the {self._min_inliers} needed'
      for i, x in enumerate(found)
      if x.inliers < self._min_inliers
    ]
    absolute = np.stack([x.pose for x in found])
    absolute[[x.inliers < self._min_inliers for x in found]] = np.nan
    return oracles_base.guarded(
      oracles_base.from_poses(
        absolute,
        np.tile(world.intrinsics, (len(images), 1)),
        reasons=lost,
        inliers=[x.inliers for x in found],
        reprojection_pixels=[x.error for x in found],
        correlation=[x.correlation for x in found],
        seconds=time.perf_counter() - start,
      )
    )

  def _choose(self, scene: oracles_base.Scene) -> tuple[int, ...]:
    """Returns the frames of the clip to localise against."""
    frames = np.arange(scene.store.num_frames[scene.clip])
    if self._hold_out:
      frames = np.setdiff1d(frames, scene.frames)
    count = min(self._references, len(frames))
    places = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return tuple(frames[places].tolist())

  def _localise(self, picture: np.ndarray, world: '_World') -> '_Found':
    size = max(picture.shape) / localisation.SIDE
    grey = localisation.grey(picture)
    places, descriptors = localisation.features(grey, (0.0,), size)
    matches = [
      localisation.match(descriptors, x, size) for x in world.references
    ]
    here = places[np.concatenate([a for a, _ in matches])]
    there = np.concatenate(
      [x.points[b] for x, (_, b) in zip(world.references, matches, strict=True)]
    )
    pose = localisation.solve(
      here, there, world.matrix, localisation.ERROR * size
    )
    if pose is None:
      return _Found(np.full((3, 4), np.nan), 0, None, None)
    correlation = None
    if self._refine:
      error = localisation.reprojection(here, there, pose, world.matrix)
      votes = np.split(
        error < localisation.ERROR * size,
        np.cumsum([len(a) for a, _ in matches])[:-1],
      )
      nearest = np.argsort([-x.sum() for x in votes], kind='stable')
      pose, correlation = alignment.align(
        grey,
        [world.references[i] for i in nearest[:_NEAREST]],
        pose,
        world.matrix,
        size,
      )
    error = localisation.reprojection(here, there, pose, world.matrix)
    inlier = error < localisation.ERROR * size
    # Points found in several references or orientations count once.
    count = len(np.unique(here[inlier], axis=0))
    median = float(np.median(error[inlier])) if count else None
    return _Found(pose, count, median, correlation)


@dataclasses.dataclass(frozen=True)
class _Found:
  """Pose of a picture, world-to-camera [3, 4], and its support."""

  pose: np.ndarray
  inliers: int
  error: float | None
  correlation: float | None


@dataclasses.dataclass(frozen=True)
class _World:
  """A clip's references and camera at the size of the pictures."""

  references: tuple[localisation.Reference, ...]
  intrinsics: np.ndarray
  matrix: np.ndarray


# The rows of an evaluation use the same few clips repeatedly.
@functools.lru_cache(maxsize=4)
def _world(
  store: store_lib.FrameStore,
  number: int,
  frames: tuple[int, ...],
  height: int,
  width: int,
) -> _World:
  """Reads a clip's frames, cameras and depth.

  Raises:
    UserError: If the clip has no cameras or no depth.
  """
  clip = store.clip(number)
  name = f'clip {clip.id} of {store.name}/{store.split}'
  if clip.world_to_camera is None or clip.intrinsics is None:
    raise UserError(
      f'{name} has no cameras, but the known_scene oracle needs them; choose '
      'another oracle: learned, colmap, vggt'
    )
  intrinsics = clip.intrinsics.astype(np.float64)
  # Pictures are whole frames or their central squares.
  if height == width:
    intrinsics = cameras.crop_intrinsics(intrinsics, clip.height, clip.width)
  frames = np.array(frames, int)
  frames = frames[oracles_base.rigid(clip.world_to_camera)[frames]]
  if not len(frames):
    raise UserError(
      f'{name} has no frame with a camera left for the known_scene oracle to '
      'localise against; evaluate fewer of its frames or turn hold_out off'
    )
  references = []
  for frame in frames:
    try:
      data = store.depth(clip.first_frame + int(frame))
    except ValueError as error:
      raise UserError(
        f'{name} has no depth, but the known_scene oracle needs it; convert it '
        'with depth or choose another oracle: learned, colmap, vggt'
      ) from error
    depth = depth_lib.decode_depth(data)
    picture = images_lib.decode(store.frame(clip.first_frame + int(frame)))
    references.append(
      _reference(
        _resized(picture, height, width),
        _nearest_pixels(depth, height, width),
        _matrix(intrinsics[frame], height, width),
        clip.world_to_camera[frame].astype(np.float64),
      )
    )
  return _World(
    references=tuple(references),
    intrinsics=intrinsics[0],
    matrix=_matrix(intrinsics[0], height, width),
  )


def _reference(
  picture: np.ndarray, depth: np.ndarray, matrix: np.ndarray, pose: np.ndarray
) -> localisation.Reference:
  height, width = depth.shape
  size = max(height, width) / localisation.SIDE
  depth = np.where(depth > 0, depth, np.nan)
  grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
  rays = _rays(grid, matrix)
  around = np.ones((3, 3))
  known = np.isfinite(depth).astype(np.float64)
  filled = np.nan_to_num(depth)
  low, high = cv2.erode(filled, around), cv2.dilate(filled, around)
  smooth = (cv2.erode(known, around) > 0) & (high - low < _DEPTH_EDGE * high)
  grey = localisation.grey(picture)
  places, descriptors = localisation.features(grey, localisation.BLURS, size)
  x, y = np.rint(places).astype(int).T
  distance = depth[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
  seen = np.isfinite(distance)
  local = _rays(places[seen], matrix) * distance[seen, None]
  return localisation.Reference(
    grey=grey,
    surface=_to_world(rays * depth[..., None], pose),
    smooth=smooth,
    points=_to_world(local, pose),
    places=places[seen],
    descriptors=descriptors[seen],
  )


def _matrix(intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
  """OpenCV's camera matrix, for which the first pixel's centre is at 0."""
  fx, fy, cx, cy = intrinsics * [width, height, width, height]
  return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])


def _rays(places: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Points [..., 3] at depth 1 seen at pixels [..., 2]."""
  xy = (places - matrix[:2, 2]) / np.diag(matrix)[:2]
  return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)


def _to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
  """Transforms points [..., 3] from the camera's axes to the world's."""
  return (points - pose[:, 3]) @ pose[:, :3]


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  if height == width:
    return images_lib.centre_crop_resize(picture, height)
  return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _nearest_pixels(depth: np.ndarray, height: int, width: int) -> np.ndarray:
  """Depth [height, width] at the pixels of `_resized`."""
  rows, columns = depth.shape
  if height == width:
    side = min(rows, columns)
    y, x = (rows - side) // 2, (columns - side) // 2
    depth = depth[y : y + side, x : x + side]
  y, x = (
    ((np.arange(new) + 0.5) * old / new).astype(int)
    for new, old in zip((height, width), depth.shape, strict=True)
  )
  return depth[y[:, None], x]
