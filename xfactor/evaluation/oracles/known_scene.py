"""Poses of pictures of a scene whose geometry is known, without learning.

Each picture is localised by itself against the clip's own frames, cameras and
depth, so nothing need move inside the clip of pictures: SIFT features (Lowe
2004; RootSIFT of Arandjelovic and Zisserman 2012) give points in the world,
perspective-n-point inside RANSAC a pose, and direct alignment with the nearest
frames (as in Engel et al., "Direct Sparse Odometry") a better one, above all of
smooth pictures, whose features are few and coarse.
"""

import dataclasses
import functools
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from xfactor.data import images, records
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.geometry import cameras

try:
  import cv2
except ImportError:  # An optional dependency; `Oracle` says so.
  cv2 = None

# As in the data sources that have depth.
_DEPTHS_PER_UNIT = 1000
# Lengths below are in pixels of a picture with this many, and grow with it.
_SIDE = 128
# References are blurred so as well: renders lack fine detail.
_BLURS = (0.0, 1.5, 3.0)
_CONTRAST = 0.004  # SIFT's default, 0.04, leaves too little of smooth pictures.
_RATIO = 0.85  # Of a match's distance to that of the best elsewhere.
_ELSEWHERE = 4.0
_ERROR = 2.0  # Of an inlier's reprojection.
_TRIALS = 1000
# Direct alignment: coarse to fine, the nearest references, their pixels.
_SIGMAS = (3.0, 1.5, 0.75)
_EXTRA_BLURS = (0.0, 1.0, 2.0, 3.0)
_NEAREST = 3
_PIXELS = 1500
_STEPS = 12
_IN_VIEW = 0.1  # Least share of the pixels, or there is no telling.
_SLACK = 0.01  # By which the correlation may fall.
_DEPTH_EDGE = 0.05  # Relative difference between neighbours.


class Oracle(oracles.SceneOracle):
  """Localises pictures in a data set with cameras and depth; its scale.

  A frame is ok if at least `min_inliers` different points of the picture match
  points of the scene that project to within 2/128 of the picture's side. A clip
  is if all of its frames are; no frame is where the first, the origin, is lost.
  The pictures are taken to have the intrinsics of the clip's first frame. The
  frames that they claim to be help no search.

  Args:
    hold_out: Whether to leave `Scene.frames` out of the references, as one must
      to learn how good the oracle is from real frames: each would find itself.
    references: Most frames of the clip to localise against, spread evenly.
    min_inliers: See above.
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
    self, images: oracles.Images, scene: oracles.Scene | None = None
  ) -> oracles.PoseResult:
    oracles.check_images(images)
    if scene is None:
      raise UserError(
        'the known_scene oracle localises pictures of converted data sets '
        'alone; choose another oracle: learned, colmap, vggt'
      )
    start = time.perf_counter()
    world = _world(
      scene.store,
      int(scene.clip),
      self._choose(scene),
      *images.shape[1:3],
    )
    # A camera that is frozen gives one picture again and again.
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
    return oracles.guarded(
      oracles.from_poses(
        absolute,
        np.tile(world.intrinsics, (len(images), 1)),
        reasons=lost,
        inliers=[x.inliers for x in found],
        reprojection_pixels=[x.error for x in found],
        correlation=[x.correlation for x in found],
        seconds=time.perf_counter() - start,
      )
    )

  def _choose(self, scene: oracles.Scene) -> tuple[int, ...]:
    """Returns which frames of the clip to localise against."""
    frames = np.arange(scene.store.num_frames[scene.clip])
    if self._hold_out:
      frames = np.setdiff1d(frames, scene.frames)
    count = min(self._references, len(frames))
    places = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return tuple(frames[places].tolist())

  def _localise(self, picture: np.ndarray, world: '_World') -> '_Found':
    size = max(picture.shape) / _SIDE
    grey = _grey(picture)
    places, descriptors = _features(grey, (0.0,), size)
    matches = [_match(descriptors, x, size) for x in world.references]
    here = places[np.concatenate([a for a, _ in matches])]
    there = np.concatenate(
      [x.points[b] for x, (_, b) in zip(world.references, matches, strict=True)]
    )
    pose = _solve(here, there, world.matrix, _ERROR * size)
    if pose is None:
      return _Found(np.full((3, 4), np.nan), 0, None, None)
    correlation = None
    if self._refine:
      error = _reprojection(here, there, pose, world.matrix)
      votes = np.split(
        error < _ERROR * size, np.cumsum([len(a) for a, _ in matches])[:-1]
      )
      nearest = np.argsort([-x.sum() for x in votes], kind='stable')
      pose, correlation = _align(
        grey,
        [world.references[i] for i in nearest[:_NEAREST]],
        pose,
        world.matrix,
        size,
      )
    error = _reprojection(here, there, pose, world.matrix)
    inlier = error < _ERROR * size
    # Points found in several references or orientations count once.
    count = len(np.unique(here[inlier], axis=0))
    median = float(np.median(error[inlier])) if count else None
    return _Found(pose, count, median, correlation)


@dataclasses.dataclass(frozen=True)
class _Found:
  """Where a picture was taken: world-to-camera [3, 4], and how surely."""

  pose: np.ndarray
  inliers: int
  error: float | None
  correlation: float | None


# ==============================================================================
# What is known of the scene
# ==============================================================================


@dataclasses.dataclass(frozen=True)
class _Reference:
  """A frame: its grey levels, geometry and features.

  Attributes:
    grey: float32 [h, w], 0 to 1.
    surface: float64 [h, w, 3], the world's point at each pixel; NaN unknown.
    smooth: bool [h, w], where depth is known and has no edge.
    points: float64 [n, 3], the world's points of the features.
    places: float32 [n, 2], where they are in the frame, in pixels.
    descriptors: float32 [n, 128], of unit length.
  """

  grey: np.ndarray
  surface: np.ndarray
  smooth: np.ndarray
  points: np.ndarray
  places: np.ndarray
  descriptors: np.ndarray


@dataclasses.dataclass(frozen=True)
class _World:
  """A clip as pictures of a size show it."""

  references: tuple[_Reference, ...]
  intrinsics: np.ndarray
  matrix: np.ndarray


# The rows of an evaluation ask for the same few clips again and again.
@functools.lru_cache(maxsize=4)
def _world(
  store: records.FrameStore,
  number: int,
  frames: tuple[int, ...],
  height: int,
  width: int,
) -> _World:
  """Reads a clip.

  Raises:
    UserError: If it has no cameras or no depth.
  """
  clip = store.clip(number)
  name = f'clip {clip.id} of {store.name}/{store.split}'
  if clip.world_to_camera is None or clip.intrinsics is None:
    raise UserError(
      f'{name} has no cameras, which the known_scene oracle needs; choose '
      'another oracle: learned, colmap, vggt'
    )
  intrinsics = clip.intrinsics.astype(np.float64)
  # Pictures are whole frames or their central squares.
  if height == width:
    intrinsics = cameras.crop_intrinsics(intrinsics, clip.height, clip.width)
  frames = np.array(frames, int)
  frames = frames[oracles.rigid(clip.world_to_camera)[frames]]
  if not len(frames):
    raise UserError(
      f'{name} leaves the known_scene oracle no frame with a camera to '
      'localise against; evaluate fewer of its frames or turn hold_out off'
    )
  references = []
  for frame in frames:
    try:
      data = store.depth(clip.first_frame + int(frame))
    except ValueError as error:
      raise UserError(
        f'{name} has no depth, which the known_scene oracle needs; convert it '
        'with depth or choose another oracle: learned, colmap, vggt'
      ) from error
    with Image.open(io.BytesIO(data)) as file:
      depth = np.asarray(file).astype(np.float64) / _DEPTHS_PER_UNIT
    picture = images.decode(store.frame(clip.first_frame + int(frame)))
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
) -> _Reference:
  height, width = depth.shape
  size = max(height, width) / _SIDE
  depth = np.where(depth > 0, depth, np.nan)
  grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
  rays = _rays(grid, matrix)
  around = np.ones((3, 3))
  known = np.isfinite(depth).astype(np.float64)
  filled = np.nan_to_num(depth)
  low, high = cv2.erode(filled, around), cv2.dilate(filled, around)
  smooth = (cv2.erode(known, around) > 0) & (high - low < _DEPTH_EDGE * high)
  grey = _grey(picture)
  places, descriptors = _features(grey, _BLURS, size)
  x, y = np.rint(places).astype(int).T
  distance = depth[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
  seen = np.isfinite(distance)
  local = _rays(places[seen], matrix) * distance[seen, None]
  return _Reference(
    grey=grey,
    surface=_to_world(rays * depth[..., None], pose),
    smooth=smooth,
    points=_to_world(local, pose),
    places=places[seen],
    descriptors=descriptors[seen],
  )


def _matrix(intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
  """OpenCV's camera matrix: there, the first pixel's centre is at 0."""
  fx, fy, cx, cy = intrinsics * [width, height, width, height]
  return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])


def _rays(places: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Points [..., 3] at depth 1 seen at pixels [..., 2]."""
  xy = (places - matrix[:2, 2]) / np.diag(matrix)[:2]
  return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)


def _to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
  """Points [..., 3] in the camera's axes to the world's."""
  return (points - pose[:, 3]) @ pose[:, :3]


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  if height == width:
    return images.centre_crop_resize(picture, height)
  return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _nearest_pixels(depth: np.ndarray, height: int, width: int) -> np.ndarray:
  """Depth [height, width] where `_resized` has its pixels."""
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


# ==============================================================================
# Features
# ==============================================================================


def _grey(picture: UInt8[np.ndarray, 'h w 3']) -> np.ndarray:
  return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255


def _blur(grey: np.ndarray, sigma: float) -> np.ndarray:
  return cv2.GaussianBlur(grey, (0, 0), sigma) if sigma else grey


def _features(
  grey: np.ndarray, blurs: Sequence[float], size: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns places [n, 2] in pixels and descriptors [n, 128]."""
  # Without the precise upscale all places are off by a quarter of a pixel.
  sift = cv2.SIFT_create(
    contrastThreshold=_CONTRAST, enable_precise_upscale=True
  )
  places, descriptors = [np.zeros((0, 2))], [np.zeros((0, 128), np.float32)]
  for blur in blurs:
    picture = np.rint(255 * _blur(grey, blur * size)).astype(np.uint8)
    found, values = sift.detectAndCompute(picture, None)
    if found:
      places.append(np.array([x.pt for x in found]))
      total = values.sum(1, keepdims=True)
      descriptors.append(np.sqrt(values / np.maximum(total, 1e-6)))
  return np.concatenate(places), np.concatenate(descriptors)


def _match(
  descriptors: np.ndarray, reference: _Reference, size: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns which features of a picture match which of a reference."""
  if not len(descriptors) or not len(reference.descriptors):
    return np.zeros(0, int), np.zeros(0, int)
  alike = descriptors @ reference.descriptors.T
  best = alike.argmax(1)
  rows = np.arange(len(best))
  # The same feature under another blur or orientation is no rival.
  gap = reference.places[best][:, None] - reference.places
  near = np.square(gap).sum(-1) < (_ELSEWHERE * size) ** 2
  rival = np.where(near, -1, alike).max(1)
  good = 1 - alike[rows, best] < _RATIO**2 * (1 - rival)
  return rows[good], best[good]


def _solve(
  here: np.ndarray, there: np.ndarray, matrix: np.ndarray, error: float
) -> np.ndarray | None:
  """Returns world-to-camera [3, 4] from matches of places and points."""
  if len(here) < 4:
    return None
  cv2.setRNGSeed(0)
  found, rotation, translation, inliers = cv2.solvePnPRansac(
    there,
    here,
    matrix,
    None,
    iterationsCount=_TRIALS,
    reprojectionError=error,
    confidence=0.9999,
    flags=cv2.SOLVEPNP_AP3P,
  )
  if not found or inliers is None or len(inliers) < 4:
    return None
  inliers = inliers[:, 0]
  rotation, translation = cv2.solvePnPRefineLM(
    there[inliers], here[inliers], matrix, None, rotation, translation
  )
  pose = np.concatenate([cv2.Rodrigues(rotation)[0], translation], 1)
  return pose if np.isfinite(pose).all() else None


def _project(
  points: np.ndarray, pose: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the points in the camera's axes and their pixels; NaN behind."""
  local = points @ pose[:, :3].T + pose[:, 3]
  depth = np.where(local[:, 2] > 1e-6, local[:, 2], np.nan)
  xy = local[:, :2] / depth[:, None]
  return local, xy * np.diag(matrix)[:2] + matrix[:2, 2]


def _reprojection(
  here: np.ndarray, there: np.ndarray, pose: np.ndarray, matrix: np.ndarray
) -> np.ndarray:
  """Distances in pixels; NaN, never an inlier, behind the camera."""
  return np.linalg.norm(_project(there, pose, matrix)[1] - here, axis=-1)


# ==============================================================================
# Direct alignment
# ==============================================================================


def _align(
  grey: np.ndarray,
  references: Sequence[_Reference],
  pose: np.ndarray,
  matrix: np.ndarray,
  size: float,
) -> tuple[np.ndarray, float]:
  """Returns the pose at which the references look most like the picture.

  Args:
    grey: The picture.
    references: Frames nearby.
    pose: Where to start, and what comes out if no place fits better.
    matrix: Of the picture's camera.
    size: Pixels a pixel of the constants above.

  Returns:
    World-to-camera [3, 4], and the correlation of the picture with the
    references seen from there.
  """

  def layer(sigma: float, extra: float) -> '_Layer':
    return _layer(grey, references, matrix, sigma * size, extra * size)

  def fit(extra: float) -> float:
    return layer(_SIGMAS[-1], extra).correlation(pose)

  # As blurred as the picture is, lest its edges look displaced.
  extra = max(_EXTRA_BLURS, key=fit)
  start = pose
  for sigma in _SIGMAS:
    pose = layer(sigma, extra).descend(pose)
  finest = layer(_SIGMAS[-1], extra)
  before, after = (finest.correlation(x) for x in (start, pose))
  # Not the other way round: what is hidden makes small differences random.
  return (start, before) if after < before - _SLACK else (pose, after)


def _layer(
  grey: np.ndarray,
  references: Sequence[_Reference],
  matrix: np.ndarray,
  sigma: float,
  extra: float,
) -> '_Layer':
  picture = _blur(grey, sigma)
  levels, points = [], []
  for reference in references:
    blurred = _blur(reference.grey, np.hypot(sigma, extra))
    slope = np.hypot(*np.gradient(blurred))
    # Flat places say nothing.
    order = np.argsort(np.where(reference.smooth, -slope, np.inf), axis=None)
    best = order[: min(_PIXELS, reference.smooth.sum())]
    levels.append(blurred.flat[best])
    points.append(reference.surface.reshape(-1, 3)[best])
  return _Layer(
    np.stack([picture, *np.gradient(picture)[::-1]], -1),
    np.concatenate(levels).astype(np.float64),
    np.concatenate(points),
    matrix,
  )


@dataclasses.dataclass(frozen=True)
class _Layer:
  """Direct alignment at one scale.

  Attributes:
    picture: float32 [h, w, 3], grey levels and their slopes in x and y.
    levels: [n], what the points should look like.
    points: [n, 3] in the world.
    matrix: Of the picture's camera.
  """

  picture: np.ndarray
  levels: np.ndarray
  points: np.ndarray
  matrix: np.ndarray

  def look(
    self, pose: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns which points are in view, where from the camera, and `picture`.

    The first bool [n], the others [m, 3]; None if next to nothing is in view.
    """
    local, places = _project(self.points, pose, self.matrix)
    height, width = self.picture.shape[:2]
    seen = ((places >= 0) & (places <= [width - 1, height - 1])).all(-1)
    if seen.sum() <= _IN_VIEW * len(seen):
      return None
    places = places[seen].astype(np.float32)
    there = cv2.remap(
      self.picture, places[:, :1], places[:, 1:], cv2.INTER_LINEAR
    )
    return seen, local[seen], there[:, 0].astype(np.float64)

  def correlation(self, pose: np.ndarray) -> float:
    """Of what is seen from there with what should be; 0 if next to nothing."""
    view = self.look(pose)
    if view is None:
      return 0.0
    seen, _, there = view
    a, b = (x - x.mean() for x in (there[:, 0], self.levels[seen]))
    return float(a @ b / (np.sqrt((a @ a) * (b @ b)) + 1e-12))

  def descend(self, pose: np.ndarray) -> np.ndarray:
    """Gauss-Newton on the pose, with gain and offset of the grey levels."""
    fx, fy = np.diag(self.matrix)[:2]
    gain, offset = 1.0, 0.0
    for _ in range(_STEPS):
      view = self.look(pose)
      if view is None:
        break
      seen, local, there = view
      want = self.levels[seen]
      value, dx, dy = there.T
      x, y, z = local.T
      force = np.stack(
        [dx * fx / z, dy * fy / z, -(dx * fx * x + dy * fy * y) / z**2], -1
      )
      # Of (translation, rotation) from the left, gain and offset.
      jacobian = np.concatenate(
        [
          force,
          np.cross(local, force),
          -want[:, None],
          -np.ones((len(want), 1)),
        ],
        -1,
      )
      residual = value - gain * want - offset
      # Cauchy's weights: what is hidden from here is no surprise.
      spread = 1.4826 * np.median(np.abs(residual)) + 1e-6
      weighted = jacobian / (1 + (residual / spread) ** 2)[:, None]
      normal = weighted.T @ jacobian
      normal += 1e-6 * np.diag(np.diag(normal)) + 1e-12 * np.eye(8)
      step = -np.linalg.solve(normal, weighted.T @ residual)
      turn = cv2.Rodrigues(step[3:6])[0]
      pose = np.concatenate(
        [turn @ pose[:, :3], (turn @ pose[:, 3] + step[:3])[:, None]], 1
      )
      gain, offset = gain + step[6], offset + step[7]
      if np.abs(step[:6]).max() < 1e-5:
        break
    return pose
