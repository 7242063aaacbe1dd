"""Poses by structure from motion: COLMAP's global mapper, GLOMAP.

SIFT features, exhaustive matching, then global mapping: incremental mapping
registers every frame of small pictures with forward motion, and is wrong. So
may GLOMAP be, and registering all frames says little; a second run from half
of the points tells. How far it lies from the first has about the distribution
of the first run's own error (the delete-half jackknife; Shao and Wu, A General
Theory for Jackknife Variance Estimation, 1989).
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
_MIN_FRAMES = 3  # Of a track of GLOMAP, and so of a model.
_WORKER = pathlib.Path(__file__).with_name('worker.py')
# By which normalised intrinsics of one camera may differ between frames.
_SAME_CAMERA = 1e-3


# What Python says where pycolmap's functions are other than expected.
_WRONG_VERSION = ('AttributeError', 'ImportError', 'TypeError')


class Failure(Exception):
  """COLMAP has no poses for a clip; the message says why."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A model of COLMAP: m of the frames, p points, seen n times.

  Attributes:
    frames: Which frames it has.
    world_to_camera: Of these, in any world and scale.
    focal: (fx, fy) in pixels.
    principal: (cx, cy) in pixels; the first pixel's centre is (0.5, 0.5).
    points: In the world.
    observations: Frame and point, as a number of a row above.
    pixels: Where in the frame.
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
  """What the poses must keep to; see `Oracle`."""

  max_rotation: float
  max_translation: float
  max_reprojection: float
  min_angle: float
  min_points: int


class Oracle(PoseOracle):
  """GLOMAP with one camera without distortion for all frames.

  Its intrinsics are those of the scene, where the pictures have these, or else
  a focal length that is estimated. Frames are not `ok` which COLMAP does not
  register, which see too few points, with an error or an angle beyond the
  limits, or which the two runs place differently; the clip is `ok` if all
  frames are and the runs agree.
  Results repeat to the bit on one kind of machine.

  Args:
    focal: Focal length divided by the pictures' width, for instance where the
      model may give renders the intrinsics of other scenes; None takes the
      scene's intrinsics.
    estimate_focal: Whether to ignore what is known of the camera.
    max_rotation: Largest difference between the two runs' relative rotations in
      degrees, the median over all pairs of frames; over the pairs with any one
      frame it may be twice as large.
    max_translation: The same for directions of translation.
    max_reprojection: Largest mean distance between points and features, in
      pixels.
    min_angle: Least triangulation angle in degrees, the median over a frame's
      points; it is the largest between two frames that see the point.
    min_points: Least number of points that a frame sees.
    time_limit: Seconds for a clip.
    seed: Of RANSAC, the mapper and the choice of points.
    workers: Clips at the same time, each in one thread; as many as there are
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
      raise UserError(f'the colmap oracle needs pycolmap: {_INSTALL}')
    if focal is not None and (estimate_focal or not 0 < focal < np.inf):
      raise UserError(
        f'the colmap oracle was given focal={focal}; give a positive number '
        'and no estimate_focal, or leave it out'
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
    camera: See `colmap_worker.main`.
    time_limit: Seconds.

  Raises:
    Failure: If there is none, it takes longer, or COLMAP crashes.
    UserError: If this version of pycolmap is another than is expected.
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
    # By its path, so that it does not import this package; -P: nor takes its
    # neighbours for other packages.
    done = subprocess.run(
      [sys.executable, '-P', _WORKER, folder],
      timeout=time_limit,
      capture_output=True,
      text=True,
      errors='replace',
      # Threads of BLAS gain nothing here, and clips run side by side.
      env=os.environ | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'},
    )
  except subprocess.TimeoutExpired as error:
    raise Failure(f'COLMAP took over {time_limit:g} seconds') from error
  if not done.returncode:
    return
  if done.returncode == -signal.SIGKILL:
    raise UserError(
      'COLMAP was killed, most likely because memory ran out: give the colmap '
      'oracle fewer workers'
    )
  message = (done.stderr.strip().splitlines() or ['no message'])[-1]
  if message.startswith(_WRONG_VERSION):
    raise UserError(
      f'pycolmap {importlib.metadata.version("pycolmap")} is not the version '
      f'that the colmap oracle needs ({message}): {_INSTALL}'
    )
  raise Failure(f'COLMAP failed with status {done.returncode}: {message}')


def judge(runs: Sequence[Run], num_frames: int, limits: Limits) -> PoseResult:
  """Returns the poses of the first of two runs, `ok` where they can be trusted.

  Args:
    runs: The result, and another to compare it with.
    num_frames: Of the clip.
    limits: What `ok` asks for.
  """
  first, second = (_all_poses(run, num_frames) for run in runs)
  rotation, translation = _differences(first, second)
  points, reprojection, angle = _support(runs[0], num_frames)
  # A comparison with NaN is false: what cannot be told is not ok.
  checks = {
    'are not registered': np.isfinite(first).all((1, 2)),
    f'see less than {limits.min_points} points': points >= limits.min_points,
    f'have a mean reprojection error over {limits.max_reprojection:g} pixels': (
      reprojection <= limits.max_reprojection
    ),
    f'have a median triangulation angle below {limits.min_angle:g} degrees': (
      angle >= limits.min_angle
    ),
    f'are turned by over {2 * limits.max_rotation:g} degrees between runs': (
      _medians(rotation) <= 2 * limits.max_rotation
    ),
    f'are moved by over {2 * limits.max_translation:g} degrees between runs': (
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
  """Returns NaN where a frame is not registered."""
  out = np.full((num_frames, 4, 4), np.nan)
  out[run.frames, :3] = run.world_to_camera
  out[run.frames, 3] = [0, 0, 0, 1]
  return out


def _differences(
  a: Float[np.ndarray, 'v 4 4'], b: Float[np.ndarray, 'v 4 4']
) -> tuple[Float[np.ndarray, 'v v'], Float[np.ndarray, 'v v']]:
  """Degrees between the relative poses of all pairs; NaN where there is none.

  Unlike the metrics' angles those of translations have a sign.
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
  """Median of each row without its NaN; NaN where nothing is left."""
  rows = [row[np.isfinite(row)] for row in x]
  return np.array([np.median(row) if row.size else np.nan for row in rows])


def _support(
  run: Run, num_frames: int
) -> tuple[
  Int[np.ndarray, 'v'], Float[np.ndarray, 'v'], Float[np.ndarray, 'v']
]:
  """What each frame sees: points, their mean error, their median angle.

  Errors are in pixels, angles of triangulation in degrees; NaN without points.
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
