"""Poses by structure from motion: COLMAP's global mapper, GLOMAP.

SIFT features, exhaustive matching, then global mapping. Incremental mapping
registers every frame of small pictures with forward motion, but wrongly. GLOMAP
may be wrong as well, even if it registers all frames; a second run on half of
the points detects this. Its distance from the first run has approximately the
distribution of the first run's own error (the delete-half jackknife; Shao and
Wu, A General Theory for Jackknife Variance Estimation, 1989).
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from xfactor.data import images as pictures
from xfactor.errors import UserError
from xfactor.evaluation.oracles.base import (
  Images,
  PoseOracle,
  PoseResult,
  Scene,
  check_images,
  from_poses,
  lost,
)
from xfactor.geometry import cameras
from xfactor.metrics import poses

_INSTALL = "pip install -e '.[colmap]'"
_MIN_FRAMES = 3  # Minimum of a GLOMAP track, hence of a model.
_WORKER = pathlib.Path(__file__).with_name('worker.py')
# Largest difference of one camera's normalised intrinsics between frames.
_SAME_CAMERA = 1e-3


# Python's errors if pycolmap has another interface than expected.
_WRONG_VERSION = ('AttributeError', 'ImportError', 'TypeError')


class Failure(Exception):
  """Raised if COLMAP has no poses for a clip; the message says why."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A COLMAP model: m of the frames, p points, n observations.

  Attributes:
    frames: Indices of the registered frames.
    world_to_camera: Poses of these frames, in any world and scale.
    focal: (fx, fy) in pixels.
    principal: (cx, cy) in pixels; the first pixel's centre is (0.5, 0.5).
    points: Points in the world.
    observations: Index of the frame and row of the point.
    pixels: Positions of the observations in their frames.
  """

  frames: Int[np.ndarray, 'm']
  world_to_camera: Float[np.ndarray, 'm 3 4']
  focal: Float[np.ndarray, '2']
  principal: Float[np.ndarray, '2']
  points: Float[np.ndarray, 'p 3']
  observations: Int[np.ndarray, 'n 2']
  pixels: Float[np.ndarray, 'n 2']


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits that poses must meet; see `Oracle`."""

  max_rotation: float
  max_translation: float
  max_reprojection: float
  min_angle: float
  min_points: int


class Oracle(PoseOracle):
  """Runs GLOMAP with one camera without distortion for all frames.

  The intrinsics are those of the scene, if they apply to the pictures, or else
  an estimated focal length. A frame is not `ok` if COLMAP does not register it,
  if it sees too few points, if its error or angle exceeds the limits, or if the
  two runs disagree on it. The clip is `ok` if all frames are and the runs
  agree. Results are bit-exact on machines of the same kind.

  Args:
    focal: Focal length divided by the pictures' width, for instance if the
      model may give renders the intrinsics of other scenes; None uses the
      scene's intrinsics.
    estimate_focal: Whether to ignore known intrinsics.
    max_rotation: Largest difference between the two runs' relative rotations in
      degrees, the median over all pairs of frames. The median over the pairs
      with one frame may be twice as large.
    max_translation: The same for directions of translation.
    max_reprojection: Largest mean distance between points and features, in
      pixels.
    min_angle: Smallest triangulation angle in degrees, the median over a
      frame's points; that of a point is the largest between two frames.
    min_points: Smallest number of points that a frame sees.
    time_limit: Seconds for a clip.
    seed: Seed of RANSAC, the mapper and the choice of points.
    workers: Number of clips at the same time, each in one thread; the number of
      processors if None.
  """

  name = 'colmap'
  version = '1'

  def __init__(
    self,
    focal: float | None = None,
    estimate_focal: bool = False,
    max_rotation: float = 0.5,
    max_translation: float = 1.5,
    max_reprojection: float = 1.0,
    min_angle: float = 1.5,
    min_points: int = 20,
    time_limit: float = 600.0,
    seed: int = 0,
    workers: int | None = None,
  ):
    if importlib.util.find_spec('pycolmap') is None:
      raise UserError(f'the colmap oracle needs pycolmap; run {_INSTALL}')
    if focal is not None and (estimate_focal or not 0 < focal < np.inf):
      raise UserError(
        f'the colmap oracle was given focal={focal}; give a positive number '
        'without estimate_focal, or remove it'
      )
    self._focal, self._estimate_focal = focal, estimate_focal
    self._limits = Limits(
      max_rotation, max_translation, max_reprojection, min_angle, min_points
    )
    self._time_limit, self._seed = time_limit, seed
    self._workers = workers or os.cpu_count()

  def settings(self) -> dict[str, Any]:
    return {
      'pycolmap': importlib.metadata.version('pycolmap'),
      'focal': self._focal,
      'estimate_focal': self._estimate_focal,
      **dataclasses.asdict(self._limits),
      'time_limit': self._time_limit,
      'seed': self._seed,
    }

  def __call__(self, images: Images, scene: Scene | None = None) -> PoseResult:
    return self.batch([(images, scene)])[0]

  def batch(
    self, clips: Sequence[tuple[Images, Scene | None]]
  ) -> list[PoseResult]:
    for images, _ in clips:
      check_images(images)
    with futures.ThreadPoolExecutor(self._workers) as pool:
      return list(pool.map(lambda clip: self._pose(*clip), clips))

  def _pose(self, images: Images, scene: Scene | None) -> PoseResult:
    start = time.perf_counter()
    size = images.shape[2], images.shape[1]
    intrinsics = self._known_intrinsics(images, scene)
    camera = {'model': 'SIMPLE_PINHOLE', 'params': '', 'seed': self._seed}
    if intrinsics is not None:
      params = intrinsics * np.tile(size, 2)
      camera |= {'model': 'PINHOLE', 'params': ','.join(map(str, params))}
    try:
      runs = reconstruct(images, camera, self._time_limit)
    except Failure as failure:
      result = lost(len(images), str(failure))
    else:
      found = np.concatenate([runs[0].focal, runs[0].principal])
      result = dataclasses.replace(
        judge(runs, len(images), self._limits),
        intrinsics=np.tile(found / np.tile(size, 2), (len(images), 1)),
      )
    info = {
      'known_intrinsics': intrinsics is not None,
      'seconds': time.perf_counter() - start,
    }
    return dataclasses.replace(result, info=result.info | info)

  def _known_intrinsics(
    self, images: Images, scene: Scene | None
  ) -> Float[np.ndarray, '4'] | None:
    height, width = images.shape[1:3]
    if self._estimate_focal:
      return None
    if self._focal is not None:
      return np.array([self._focal, self._focal * width / height, 0.5, 0.5])
    if scene is None:
      return None
    clip = scene.store.clip(scene.clip)
    if clip.intrinsics is None:
      return None
    # One camera for all frames; NaN fails too.
    if not np.ptp(clip.intrinsics, 0).max() <= _SAME_CAMERA:
      return None
    # Pictures are whole frames or their central squares.
    known = clip.intrinsics.mean(0, dtype=np.float64)
    if height == width:
      return cameras.crop_intrinsics(known, clip.height, clip.width)
    if (height, width) == (clip.height, clip.width):
      return known
    return None


def reconstruct(
  images: Images, camera: dict[str, Any], time_limit: float
) -> list[Run]:
  """Returns the models of all points and of half of them.

  Args:
    images: Pictures of one camera.
    camera: Settings of the camera, see `worker.main`.
    time_limit: Limit in seconds.

  Raises:
    Failure: If there is no model, the time is exceeded, or COLMAP crashes.
    UserError: If the version of pycolmap is not supported.
  """
  if len(images) < _MIN_FRAMES:
    raise Failure(f'COLMAP needs {_MIN_FRAMES} frames')
  with tempfile.TemporaryDirectory(prefix='xfactor-colmap-') as name:
    folder = pathlib.Path(name)
    (folder / 'pictures').mkdir()
    for i, image in enumerate(images):
      data = pictures.encode_png(image)
      (folder / 'pictures' / f'{i:05d}.png').write_bytes(data)
    (folder / 'camera.json').write_text(json.dumps(camera))
    _run_worker(folder, time_limit)
    runs = []
    for path in sorted(folder.glob('run*.npz')):
      with np.load(path) as arrays:
        runs.append(Run(**arrays))
  if len(runs) < 2:
    points = 'half of the points' if runs else 'the pictures'
    raise Failure(f'COLMAP found no cameras from {points}')
  return runs


def _run_worker(folder: pathlib.Path, time_limit: float) -> None:
  try:
    # Run by path, so that it does not import this package; with -P, so that
    # files next to it do not shadow other packages.
    done = subprocess.run(
      [sys.executable, '-P', _WORKER, folder],
      timeout=time_limit,
      capture_output=True,
      text=True,
      errors='replace',
      # BLAS threads do not help here, and clips run in parallel.
      env=os.environ | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'},
    )
  except subprocess.TimeoutExpired as error:
    raise Failure(f'COLMAP took over {time_limit:g} seconds') from error
  if not done.returncode:
    return
  if done.returncode == -signal.SIGKILL:
    raise UserError(
      'COLMAP was killed, most likely because memory ran out; give the colmap '
      'oracle fewer workers'
    )
  message = (done.stderr.strip().splitlines() or ['no message'])[-1]
  if message.startswith(_WRONG_VERSION):
    raise UserError(
      f'pycolmap {importlib.metadata.version("pycolmap")} is not the version '
      f'that the colmap oracle needs ({message}); run {_INSTALL}'
    )
  raise Failure(f'COLMAP failed with status {done.returncode}: {message}')


def judge(runs: Sequence[Run], num_frames: int, limits: Limits) -> PoseResult:
  """Returns the poses of the first of two runs, `ok` where they can be trusted.

  Args:
    runs: The result and the run to compare it with.
    num_frames: Number of frames of the clip.
    limits: Limits for `ok`.
  """
  first, second = (_all_poses(run, num_frames) for run in runs)
  rotation, translation = _differences(first, second)
  points, reprojection, angle = _support(runs[0], num_frames)
  # Comparisons with NaN are false: unknown values are not ok.
  checks = {
    'are not registered': np.isfinite(first).all((1, 2)),
    f'see fewer than {limits.min_points} points': points >= limits.min_points,
    f'have a mean reprojection error over {limits.max_reprojection:g} pixels': (
      reprojection <= limits.max_reprojection
    ),
    f'have a median triangulation angle below {limits.min_angle:g} degrees': (
      angle >= limits.min_angle
    ),
    f'rotate by over {2 * limits.max_rotation:g} degrees between runs': (
      _medians(rotation) <= 2 * limits.max_rotation
    ),
    f'move by over {2 * limits.max_translation:g} degrees between runs': (
      _medians(translation) <= 2 * limits.max_translation
    ),
  }
  frame_ok = np.ones(num_frames, bool)
  reasons = []
  for what, passed in checks.items():
    if failed := np.flatnonzero(frame_ok & ~passed).tolist():
      reasons.append(f'frames {", ".join(map(str, failed))} {what}')
    frame_ok &= passed
  medians = {}
  for name, values, limit in (
    ('rotation_difference', rotation, limits.max_rotation),
    ('translation_difference', translation, limits.max_translation),
    ('reprojection_error', reprojection, np.inf),
    ('triangulation_angle', angle, np.inf),
    ('points', points.astype(float), np.inf),
  ):
    (median,) = _medians(values.reshape(1, -1))
    medians[name] = float(median) if np.isfinite(median) else None
    if median > limit:
      reasons.append(f'the median {name} is {median:.3g}, over {limit:g}')
  return dataclasses.replace(
    from_poses(first),
    ok=not reasons,
    frame_ok=frame_ok,
    info={'reasons': reasons, 'medians': medians},
  )


def _all_poses(run: Run, num_frames: int) -> Float[np.ndarray, 'v 4 4']:
  """Returns the poses of all frames; NaN where a frame is not registered."""
  out = np.full((num_frames, 4, 4), np.nan)
  out[run.frames, :3] = run.world_to_camera
  out[run.frames, 3] = [0, 0, 0, 1]
  return out


def _differences(
  a: Float[np.ndarray, 'v 4 4'], b: Float[np.ndarray, 'v 4 4']
) -> tuple[Float[np.ndarray, 'v v'], Float[np.ndarray, 'v v']]:
  """Degrees between the relative poses of all pairs; NaN if one is unknown.

  Unlike in the metrics, opposite translations differ by 180 degrees.
  """
  a, b = (x[:, None] @ np.linalg.inv(x) for x in (a, b))
  rotation = poses.rotation_error(a, b)
  a, b = (_direction(x[..., :3, 3]) for x in (a, b))
  # Accurate for small angles, where the arc cosine is not.
  apart, along = (np.linalg.norm(x, axis=-1) for x in (a - b, a + b))
  translation = np.degrees(2 * np.arctan2(apart, along))
  none = ~np.isfinite(translation) | np.eye(len(a), dtype=bool)
  return tuple(np.where(none, np.nan, x) for x in (rotation, translation))


def _direction(x: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(length > 0, length, np.nan)


def _medians(x: np.ndarray) -> np.ndarray:
  """Median of the finite values of each row; NaN without any."""
  rows = [row[np.isfinite(row)] for row in x]
  return np.array([np.median(row) if row.size else np.nan for row in rows])


def _support(
  run: Run, num_frames: int
) -> tuple[
  Int[np.ndarray, 'v'], Float[np.ndarray, 'v'], Float[np.ndarray, 'v']
]:
  """Number of points of each frame, their mean error and median angle.

  Errors are in pixels, triangulation angles in degrees; NaN without points.
  """
  poses_by_frame = _all_poses(run, num_frames)[:, :3]
  frame, point = run.observations.T
  local = cameras.transform(poses_by_frame[frame], run.points[point])
  projected = run.focal * local[:, :2] / local[:, 2:] + run.principal
  error = np.linalg.norm(projected - run.pixels, axis=-1)
  centres = cameras.camera_centre(poses_by_frame)
  rays = _direction(centres[frame] - run.points[point])
  angle = np.empty(len(run.points))
  for i in range(len(angle)):
    cosine = (rays[point == i] @ rays[point == i].T).min(initial=1)
    angle[i] = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
  sees = frame == np.arange(num_frames)[:, None]
  count = sees.sum(1)
  total = np.where(sees, error, 0).sum(1)
  mean = total / np.where(count, count, np.nan)
  return count, mean, _medians(np.where(sees, angle[point], np.nan))
