"""Measures how well cameras fit their pictures, from matched features.

A point of one frame must lie on its epipolar line in another frame. Cameras of
pictures that were turned, mirrored or cropped differently fail this, although
each of them looks valid.
"""

import itertools

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from xfactor.data import files, images
from xfactor.data.records import codec, store

SIDE = 256  # Pixels of the shorter side, to which errors refer.
LIMIT = 2.0  # Maximum median error of good cameras, in these pixels.
_CLIPS = 16  # Per split.
_STARTS = 3  # Frames per clip that are matched with later ones.
_GAPS = (1, 2, 4, 8, 16)  # Frames between the two.
# Median movement in pixels that shows how the camera moves.
_MOVEMENT = 12.0
_CORNERS = 400
_RADIUS = 7  # Samples of a descriptor, to each side.
_STEP = 2  # Pixels between them.
_BORDER = _RADIUS * _STEP + 2
_FEWEST = 20  # Matches that agree with each other.
_AGREE = 1.5  # Pixels.
_TRIALS = 300

Points = Float[np.ndarray, 'n 2']


def chosen(opened: store.FrameStore) -> list[int]:
  """Returns a sample of the clips with cameras of a split."""
  order = sorted(
    range(len(opened)), key=lambda i: files.unit_hash(opened.clip_id(i))
  )

  def usable(number: int) -> bool:
    clip = opened.clip(number)
    return clip.posed and clip.num_frames > 1

  return list(itertools.islice(filter(usable, order[: 8 * _CLIPS]), _CLIPS))


def error(opened: store.FrameStore, number: int) -> float | None:
  """Returns the median error of a clip's cameras in pixels at `SIDE`.

  That is the distance of matched features from their epipolar lines; None if
  too few could be matched.
  """
  clip = opened.clip(number)
  errors = []
  for start in range(_STARTS):
    first = start * (clip.num_frames - 1) // _STARTS
    errors += _errors_from(opened, number, clip, first)
  return float(np.median(errors)) if errors else None


def _errors_from(
  opened: store.FrameStore, number: int, clip: codec.Clip, first: int
) -> list[float]:
  """Returns the errors of a frame's matches in one later frame.

  That is the nearest one after enough movement, or with the most of it.
  """
  errors: list[float] = []
  for gap in _GAPS:
    if first + gap >= clip.num_frames:
      break
    pair = [first, first + gap]
    a, b = (
      _grey(images.decode(data)) for data in opened.clip_frames(number, pair)
    )
    found = match(a, b)
    if found is None:
      break
    scale = np.array([a.shape[1], a.shape[0]])
    errors = list(
      epipolar_errors(
        *(points / scale for points in found),
        clip.intrinsics[pair].astype(np.float64),
        clip.world_to_camera[pair].astype(np.float64),
        scale,
      )
      * (SIDE / min(scale))
    )
    moved = np.linalg.norm(found[0] - found[1], axis=-1)
    if np.median(moved) * SIDE / min(scale) >= _MOVEMENT:
      break
  return errors


def _grey(rgb: np.ndarray) -> np.ndarray:
  """Returns float32 [h, w] of at most about `SIDE` pixels."""
  image = Image.fromarray(rgb).convert('L')
  if (scale := SIDE / min(image.size)) < 1:
    width, height = (round(scale * side) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BOX)
  return np.asarray(image, np.float32)


def epipolar_errors(
  first: Points,
  second: Points,
  intrinsics: Float[np.ndarray, '2 4'],
  world_to_camera: Float[np.ndarray, '2 3 4'],
  scale: np.ndarray,
) -> Float[np.ndarray, 'n']:
  """Returns distances of matches from where the cameras allow them.

  That is the half line of all depths in front of both cameras; for cameras at
  one place, a point. The mean of both directions.

  Args:
    first: Normalised image coordinates in one picture.
    second: Those in the other picture.
    intrinsics: Normalised intrinsics of both.
    world_to_camera: Poses of both.
    scale: Width and height in the unit of the result.
  """
  one, two = world_to_camera
  rotation = two[:, :3] @ one[:, :3].T
  translation = two[:, 3] - rotation @ one[:, 3]
  there = _one_way(first, second, intrinsics, rotation, translation, scale)
  back = _one_way(
    *(second, first, intrinsics[::-1]),
    *(rotation.T, -rotation.T @ translation, scale),
  )
  return (there + back) / 2


def _one_way(
  first: Points,
  second: Points,
  intrinsics: np.ndarray,
  rotation: np.ndarray,
  translation: np.ndarray,
  scale: np.ndarray,
) -> np.ndarray:
  directions = (first - intrinsics[0, 2:]) / intrinsics[0, :2]
  ones = np.ones((len(directions), 1))
  far = np.concatenate([directions, ones], -1) @ rotation.T
  visible = far[:, 2] > 1e-6
  depth = np.where(visible, far[:, 2], 1.0)[:, None]
  start = far[:, :2] / depth
  # How the projection moves as the depth falls from infinity.
  moves = translation[:2] - start * translation[2]
  unit = scale * intrinsics[1, :2]
  off = (second - intrinsics[1, 2:]) * scale - start * unit
  moves = moves * unit
  length = np.linalg.norm(moves, axis=-1, keepdims=True)
  moves = moves / np.maximum(length, 1e-12)
  along = np.maximum((off * moves).sum(-1, keepdims=True), 0)
  errors = np.linalg.norm(off - along * moves, axis=-1)
  return np.where(visible, np.minimum(errors, max(scale)), max(scale))


# ==============================================================================
# Matches
# ==============================================================================


def match(a: np.ndarray, b: np.ndarray) -> tuple[Points, Points] | None:
  """Returns the pixels of the same points in two grey pictures of one scene.

  Only those that agree with one epipolar geometry, whichever it is.

  Args:
    a: float32 [h, w].
    b: float32 [h, w].

  Returns:
    Coordinates (x, y) in both, [n, 2]; None if there are too few.
  """
  smooth = [ndimage.gaussian_filter(x, 1.5) for x in (a, b)]
  points = [_corners(x) for x in smooth]
  if min(map(len, points)) < _FEWEST:
    return None
  features = [_descriptors(x, p) for x, p in zip(smooth, points, strict=True)]
  similar = features[0] @ features[1].T
  to_b, to_a = similar.argmax(1), similar.argmax(0)
  best = similar.max(1)
  second = np.partition(similar, -2, axis=1)[:, -2]
  mutual = to_a[to_b] == np.arange(len(to_b))
  good = np.flatnonzero(mutual & (best > 0.7) & (1 - best < 0.7 * (1 - second)))
  if len(good) < _FEWEST:
    return None
  first = points[0][good].astype(np.float64)
  moved, kept = _refine(*smooth, first, points[1][to_b[good]].astype(float))
  first, moved = first[kept], moved[kept]
  # Pixels' centres are at halves.
  agreeing = _consensus(first, moved)
  if agreeing is None:
    return None
  return first[agreeing] + 0.5, moved[agreeing] + 0.5


def _corners(smooth: np.ndarray) -> np.ndarray:
  """Returns int64 [n, 2], (x, y) of the strongest corners."""
  dy, dx = np.gradient(smooth)
  xx, yy, xy = (
    ndimage.gaussian_filter(p, 2.0) for p in (dx * dx, dy * dy, dx * dy)
  )
  weaker = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
  peak = weaker == ndimage.maximum_filter(weaker, 9)
  inner = np.zeros_like(peak)
  inner[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
  y, x = np.nonzero(peak & inner & (weaker > max(0.005 * weaker.max(), 0.5)))
  order = np.argsort(-weaker[y, x])[:_CORNERS]
  return np.stack([x[order], y[order]], -1)


def _descriptors(smooth: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Returns normalised patches around points, float32 [n, d]."""
  reach = np.arange(-_RADIUS, _RADIUS + 1) * _STEP
  y = points[:, 1, None, None] + reach[:, None]
  x = points[:, 0, None, None] + reach
  patches = smooth[y, x].reshape(len(points), -1)
  patches = patches - patches.mean(1, keepdims=True)
  length = np.linalg.norm(patches, axis=1, keepdims=True)
  return patches / np.maximum(length, 1e-6)


def _refine(
  a: np.ndarray, b: np.ndarray, first: Points, second: Points
) -> tuple[Points, np.ndarray]:
  """Moves points of `b` to fractions of pixels, by Lucas and Kanade's method.

  Returns:
    The moved points, and which of them stayed near.
  """
  reach = np.arange(-6, 7)
  dy, dx = (d.ravel() for d in np.meshgrid(reach, reach, indexing='ij'))

  def sample(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    at = [points[:, 1, None] + dy, points[:, 0, None] + dx]
    return ndimage.map_coordinates(picture, at, order=1, mode='nearest')

  patch = sample(a, first)
  slope_y, slope_x = (sample(slope, first) for slope in np.gradient(a))
  slopes = np.stack([slope_x, slope_y], -1)
  normal = np.einsum('npi,npj->nij', slopes, slopes) + 1e-3 * np.eye(2)
  moved = second.copy()
  for _ in range(6):
    difference = patch - sample(b, moved)
    difference -= difference.mean(1, keepdims=True)
    right = np.einsum('npi,np->ni', slopes, difference)
    moved += np.linalg.solve(normal, right[..., None])[..., 0].clip(-1, 1)
  return moved, np.linalg.norm(moved - second, axis=-1) < 3


def _consensus(first: Points, second: Points) -> np.ndarray | None:
  """Returns which matches agree with the best epipolar geometry of eight."""
  if len(first) < _FEWEST:
    return None
  middle, spread = first.mean(0), first.std() + 1e-9
  x, y = (
    np.concatenate([(p - middle) / spread, np.ones((len(p), 1))], -1)
    for p in (first, second)
  )
  rows = np.einsum('ni,nj->nij', y, x).reshape(len(x), 9)
  rng = np.random.default_rng(0)
  picks = rng.random((_TRIALS, len(x))).argsort(1)[:, :8]
  candidates = np.linalg.svd(rows[picks])[2][:, -1]
  limit = _AGREE / spread
  agree = _distances(candidates, x, y) < limit
  best = agree[agree.sum(1).argmax()]
  for _ in range(2):
    if best.sum() < 8:
      return None
    fitted = np.linalg.svd(rows[best])[2][-1:]
    best = _distances(fitted, x, y)[0] < limit
  return best if best.sum() >= max(_FEWEST, 0.4 * len(x)) else None


def _distances(
  candidates: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
  """Returns the Sampson distances of matches, [candidates, n]."""
  matrix = candidates.reshape(-1, 3, 3)
  lines = np.einsum('cij,nj->cni', matrix, x)
  back = np.einsum('cij,ni->cnj', matrix, y)
  product = np.einsum('cni,ni->cn', lines, y)
  squares = (lines[..., :2] ** 2).sum(-1) + (back[..., :2] ** 2).sum(-1)
  return np.abs(product) / np.sqrt(squares + 1e-12)
