"""Localises a picture by matched features and PnP."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

try:
  import cv2
except ImportError:  # Optional; `Oracle` reports it.
  cv2 = None

# Lengths below are in pixels of pictures of this size, and scale with the size.
SIDE = 128
# Blurs of the references: renders lack fine detail.
BLURS = (0.0, 1.5, 3.0)
_CONTRAST = 0.004  # SIFT's default, 0.04, finds too little in smooth pictures.
_RATIO = 0.85  # Of the distances of the best and the second-best match.
_ELSEWHERE = 4.0  # Smallest distance of a rival.
ERROR = 2.0  # Largest reprojection error of an inlier.
_TRIALS = 1000


@dataclasses.dataclass(frozen=True)
class Reference:
  """Grey levels, geometry and features of a frame.

  Attributes:
    grey: float32 [h, w], 0 to 1.
    surface: float64 [h, w, 3], world point at each pixel; NaN if unknown.
    smooth: bool [h, w], where depth is known and has no edge.
    points: float64 [n, 3], world points of the features.
    places: float32 [n, 2], positions of the features in the frame, in pixels.
    descriptors: float32 [n, 128], of unit length.
  """

  grey: np.ndarray
  surface: np.ndarray
  smooth: np.ndarray
  points: np.ndarray
  places: np.ndarray
  descriptors: np.ndarray


def grey(picture: UInt8[np.ndarray, 'h w 3']) -> np.ndarray:
  return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255


def blurred(grey: np.ndarray, sigma: float) -> np.ndarray:
  return cv2.GaussianBlur(grey, (0, 0), sigma) if sigma else grey


def features(
  grey: np.ndarray, blurs: Sequence[float], size: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns places [n, 2] in pixels and descriptors [n, 128]."""
  # Without the precise upscale all positions are off by a quarter of a pixel.
  sift = cv2.SIFT_create(
    contrastThreshold=_CONTRAST, enable_precise_upscale=True
  )
  places, descriptors = [np.zeros((0, 2))], [np.zeros((0, 128), np.float32)]
  for blur in blurs:
    picture = np.rint(255 * blurred(grey, blur * size)).astype(np.uint8)
    found, values = sift.detectAndCompute(picture, None)
    if found:
      places.append(np.array([x.pt for x in found]))
      total = values.sum(1, keepdims=True)
      descriptors.append(np.sqrt(values / np.maximum(total, 1e-6)))
  return np.concatenate(places), np.concatenate(descriptors)


def match(
  descriptors: np.ndarray, reference: Reference, size: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns indices of matching features of a picture and a reference."""
  if not len(descriptors) or not len(reference.descriptors):
    return np.zeros(0, int), np.zeros(0, int)
  alike = descriptors @ reference.descriptors.T
  best = alike.argmax(1)
  rows = np.arange(len(best))
  # The same feature with another blur or orientation is not a rival.
  gap = reference.places[best][:, None] - reference.places
  near = np.square(gap).sum(-1) < (_ELSEWHERE * size) ** 2
  rival = np.where(near, -1, alike).max(1)
  good = 1 - alike[rows, best] < _RATIO**2 * (1 - rival)
  return rows[good], best[good]


def solve(
  here: np.ndarray, there: np.ndarray, matrix: np.ndarray, error: float
) -> np.ndarray | None:
  """Returns world-to-camera [3, 4] from matches of positions and points."""
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


def project(
  points: np.ndarray, pose: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns points in the camera's axes and their pixels; NaN if behind."""
  local = points @ pose[:, :3].T + pose[:, 3]
  depth = np.where(local[:, 2] > 1e-6, local[:, 2], np.nan)
  xy = local[:, :2] / depth[:, None]
  return local, xy * np.diag(matrix)[:2] + matrix[:2, 2]


def reprojection(
  here: np.ndarray, there: np.ndarray, pose: np.ndarray, matrix: np.ndarray
) -> np.ndarray:
  """Reprojection errors in pixels; NaN (never an inlier) behind the camera."""
  return np.linalg.norm(project(there, pose, matrix)[1] - here, axis=-1)
