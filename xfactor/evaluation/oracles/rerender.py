"""Poses of blurred pictures of a scene that can be rendered again.

Analysis by synthesis: finds the camera from which a rendering of the scene,
blurred as much as the picture, is most similar to it. Pictures of small models
are too smooth for feature matching, but not for this.

Pictures are compared by the lowest coefficients of their cosine transforms. A
Gaussian blur only scales these, so one rendering covers all of its blurs. The
search starts from cameras scattered around the clip's own and refines the pose
by damped Gauss-Newton steps, each with the best blur (variable projection,
Golub and Pereyra 1973). The derivatives are finite differences, maintained by
Broyden's updates (1965).
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import fft
from scipy.spatial.transform import Rotation

from xfactor.data import images as pictures
from xfactor.data import rerender
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles import base
from xfactor.geometry import cameras

_SIDE = 32  # Pixels at which pictures are compared.
_WAVES = 16  # Coefficients along each side.
# Blurs as shares of the side. The largest leaves little more than colours.
_BLURS = np.geomspace(0.008, 2.0, 33)
# Extra blur of pictures and renderings, coarse to fine.
_COARSE, _FINE = 0.08, 0.02
_COARSE_STEPS, _FINE_STEPS = 4, 15
# Lengths are in units of the distance to the scene and are added to radians.
_SPREAD = np.array([0.15, 0.25, 0.05, 0.15, 0.1, 0.15])  # Initial cameras.
_DELTA = 0.02  # Step of finite differences.
_LONGEST, _SHORTEST = 0.15, 5e-4  # Limits of a step's length.
_SAME, _ELSEWHERE = 0.1, 0.3  # Distances between poses.
_FEWEST = 12  # Minimum number of coefficients to estimate noise.
_ROUNDING = 0.29 / 255 / _SIDE  # Rounding error of a coefficient, for uint8.
# Squared frequency of each coefficient, in half waves per side.
_SQUARES = np.repeat(
  np.add.outer(*[np.square(np.pi * np.arange(_WAVES))] * 2).ravel(), 3
)


class Oracle(oracles.SceneOracle):
  """Localises pictures by rendering their scene; poses have the scene's scale.

  A frame is ok if its rendering matches clearly better than any from another
  place (more than 0.3 radians or 0.3 of the distance to the scene away) and its
  pose is certain. `info` has for each frame: `error`, the squared difference as
  a share of the picture's variance; `rival`, that of the best other place;
  `degrees`, the standard deviation of the pose estimated from the difference;
  and `blur`, the deviation of the Gaussian as a share of the picture's side. A
  clip is ok if all of its frames are; no frame is ok if the first, the origin,
  is lost. All pictures are assumed to have the intrinsics of the clip's first
  frame. The search does not use `Scene.frames`, and does not start from the
  clip's own cameras.

  Args:
    starts: Number of initial cameras of the search.
    refined: Number of these that are refined.
    max_ratio: Largest ratio of `error` to `rival`.
    max_error: Largest `error`.
    max_degrees: Largest `degrees`.
  """

  name = 'rerender'
  version = '1'

  def __init__(
    self,
    starts: int = 192,
    refined: int = 3,
    max_ratio: float = 0.7,
    max_error: float = 0.3,
    max_degrees: float = 8.0,
  ):
    self._starts, self._refined = starts, refined
    self._max_ratio, self._max_error = max_ratio, max_error
    self._max_degrees = max_degrees

  def settings(self) -> dict[str, Any]:
    return {
      'starts': self._starts,
      'refined': self._refined,
      'max_ratio': self._max_ratio,
      'max_error': self._max_error,
      'max_degrees': self._max_degrees,
    }

  def __call__(
    self, images: base.Images, scene: base.Scene | None = None
  ) -> base.PoseResult:
    base.check_images(images)
    if scene is None:
      raise UserError(
        'the rerender oracle only localises pictures of converted data sets; '
        'choose another oracle: learned, colmap, vggt'
      )
    start = time.perf_counter()
    world = _world(scene.store, int(scene.clip), self._starts)
    if not len(world.poses):
      return base.lost(len(images), "no free place around the clip's cameras")
    # A static camera repeats one picture: search only once.
    _, first, places = np.unique(
      images, axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    wanted = np.stack([_waves(images[i]) for i in first[order]])
    found = _search(world, wanted, self._refined)
    found = [found[i] for i in np.argsort(order)[places.ravel()]]
    lost = {i: why for i, x in enumerate(found) if (why := self._doubt(x))}
    absolute = np.stack([x.pose for x in found])
    absolute[list(lost)] = np.nan
    return base.from_poses(
      absolute,
      np.tile(world.intrinsics, (len(images), 1)),
      reasons=[f'frame {i}: {why}' for i, why in lost.items()],
      error=[x.error for x in found],
      rival=[x.rival for x in found],
      degrees=[x.degrees for x in found],
      blur=[x.blur for x in found],
      seconds=time.perf_counter() - start,
    )

  def _doubt(self, found: '_Found') -> str | None:
    """Returns why a pose is rejected, or None."""
    if found.degrees > self._max_degrees:
      return (
        f'pose uncertain by {found.degrees:.3g} degrees, over '
        f'{self._max_degrees:g}: the picture shows too little'
      )
    if found.error > self._max_error:
      return (
        f'differs from the scene by {found.error:.3g} of its variance, over '
        f'{self._max_error:g}'
      )
    if found.error > self._max_ratio * found.rival:
      return (
        f'differs from the scene by {found.error:.3g} of its variance, from '
        f'another place by {found.rival:.3g}: no clear best'
      )
    return None


@dataclasses.dataclass(frozen=True)
class _Found:
  """Pose of a picture, [4, 4] world-to-camera, with numbers as in `Oracle`."""

  pose: np.ndarray
  error: float
  rival: float
  degrees: float
  blur: float


def _waves(picture: np.ndarray) -> np.ndarray:
  """Coefficients [C] of a picture; their squares sum to its mean square."""
  small = pictures.centre_crop_resize(picture, _SIDE) / 255
  waves = fft.dctn(small, axes=(0, 1), norm='ortho') / _SIDE
  return waves[:_WAVES, :_WAVES].ravel()


def _blurred(blur: float | np.ndarray) -> np.ndarray:
  """Factors [*b, C] by which blurs [*b] scale the coefficients."""
  return np.exp(-_SQUARES / 2 * np.square(blur)[..., None])


def _fit(
  wanted: np.ndarray, waves: np.ndarray, level: float
) -> tuple[float, float]:
  """Returns the least squared difference to a picture [C], and its blur.

  The difference is infinite if there is no rendering.
  """
  if not np.isfinite(waves).all():
    return np.inf, _BLURS[0]
  weight = _blurred(np.float64(level))
  wanted, waves = wanted * weight, waves * weight
  blurs = _BLURS
  for _ in range(3):
    error = np.square(wanted - waves * _blurred(blurs)).sum(-1)
    i = error.argmin()
    best = float(error[i]), float(blurs[i])
    blurs = np.geomspace(*blurs[[max(i - 1, 0), min(i + 1, len(blurs) - 1)]], 9)
  return best


def _errors(wanted: np.ndarray, waves: np.ndarray, level: float) -> np.ndarray:
  """Least squared difference of a picture [C] to each of many [n, C]."""
  weight = _blurred(np.float64(level))
  blurs = _blurred(_BLURS) * weight
  wanted = wanted * weight
  cross = np.einsum('bc,nc->nb', blurs * wanted, waves)
  squares = np.einsum('bc,nc->nb', np.square(blurs), np.square(waves))
  return (wanted @ wanted - 2 * cross + squares).min(-1)


def _share(error: float, wanted: np.ndarray, level: float) -> float:
  """Squared difference as a share of a picture's variance."""
  shown = np.square(wanted * _blurred(np.float64(level)))[3:].sum()
  return float(error / (shown + _SIDE**2 * _ROUNDING**2))


class _World:
  """A clip's scene and its renderings from cameras around the clip's own.

  Attributes:
    intrinsics: float64 [4], of the pictures.
    distance: Distance to the content of the middle frame, in the world's unit.
    poses: float64 [n, 4, 4] world to camera.
    waves: float64 [n, C], coefficients of their renderings.
  """

  def __init__(self, store: store_lib.FrameStore, number: int, starts: int):
    self._store, self._number = store, number
    clip = store.clip(number)
    self.intrinsics = cameras.crop_intrinsics(
      clip.intrinsics[0].astype(np.float64), clip.height, clip.width
    )
    known = clip.world_to_camera[base.rigid(clip.world_to_camera)]
    path = np.tile(np.eye(4), (len(known), 1, 1))
    path[:, :3] = known
    # At this distance a rotation and a translation move pixels equally far.
    self.distance = 1.0
    middle = path[[len(path) // 2]]
    slopes = np.linalg.norm(self.slopes(middle, self.look(middle))[0], axis=0)
    self.distance = float(slopes[:2].sum() / max(slopes[3:5].sum(), 1e-9))
    about = path[np.linspace(0, len(path) - 1, starts).round().astype(int)]
    scatter = np.random.default_rng(0).normal(size=(starts, 6)) * _SPREAD
    poses = self.moved(about, scatter)
    waves = self.look(poses)
    free = np.isfinite(waves).all(-1)
    self.poses, self.waves = poses[free], waves[free]

  def moved(self, poses: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Poses [n, 4, 4] after steps [n, 6]: camera rotations, translations."""
    motion = np.tile(np.eye(4), (len(steps), 1, 1))
    motion[:, :3, :3] = Rotation.from_rotvec(steps[:, :3]).as_matrix()
    motion[:, :3, 3] = self.distance * steps[:, 3:]
    return motion @ poses

  def look(self, poses: np.ndarray) -> np.ndarray:
    """Renders the scene; returns coefficients [n, C], NaN inside a wall."""
    drawn, free = rerender.rerender(self._store, self._number, poses, _SIDE)
    waves = np.full((len(poses), _SQUARES.size), np.nan)
    for i in np.flatnonzero(free):
      waves[i] = _waves(drawn[i])
    return waves

  def slopes(self, poses: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Derivatives [n, C, 6] by steps; 0 if there are walls on both sides."""
    count = 6 * len(poses)
    poses, waves = np.repeat(poses, 6, 0), np.repeat(waves, 6, 0)
    steps = np.tile(_DELTA * np.eye(6), (count // 6, 1))
    change = self.look(self.moved(poses, steps)) - waves
    wall = np.isnan(change).all(-1)
    change[wall] = waves[wall] - self.look(self.moved(poses, -steps)[wall])
    return np.nan_to_num(change / _DELTA).reshape(count // 6, 6, -1).mT

  def apart(self, pose: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Distances of poses [n, 4, 4] from one: radians and lengths combined."""
    steps = poses @ np.linalg.inv(pose)
    angles = Rotation.from_matrix(steps[:, :3, :3]).magnitude()
    centres = -(poses[:, :3, :3].mT @ poses[:, :3, 3:])[..., 0]
    gaps = np.linalg.norm(centres + pose[:3, :3].T @ pose[:3, 3], axis=-1)
    return np.hypot(angles, gaps / self.distance)


# The rows of an evaluation use the same few clips repeatedly.
@functools.lru_cache(maxsize=4)
def _world(store: store_lib.FrameStore, number: int, starts: int) -> _World:
  """Renders a clip's scene from the initial cameras.

  Raises:
    UserError: If the scene cannot be rendered again.
  """
  if not rerender.is_possible(store):
    raise UserError(
      f'the scenes of {store.name}/{store.split} cannot be rendered again, as '
      'the rerender oracle must; choose another oracle: known_scene, learned, '
      'colmap, vggt'
    )
  return _World(store, number, starts)


@dataclasses.dataclass
class _State:
  """State of a picture's pose search, at the best pose so far.

  Attributes:
    wanted: [C], coefficients of the picture.
    pose: [4, 4] world to camera.
    waves: [C], coefficients of the rendering from this pose.
    slopes: [C, 6], their approximate derivatives.
    fresh: Whether these are finite differences.
    error: Squared difference at the current level.
    blur: Blur with this difference.
    damping: Damping of the next step.
    done: Whether steps have become tiny.
  """

  wanted: np.ndarray
  pose: np.ndarray
  waves: np.ndarray
  slopes: np.ndarray | None = None
  fresh: bool = False
  error: float = np.inf
  blur: float = 0.0
  damping: float = 1e-3
  done: bool = False

  def model(self, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Difference [C] and its derivatives [C, 7] by steps and the blur."""
    weight = _blurred(np.float64(level))
    left = weight * _blurred(np.float64(self.blur))
    by_blur = -_SQUARES * self.blur**2 * left * self.waves
    slopes = np.append(left[:, None] * self.slopes, by_blur[:, None], -1)
    return weight * self.wanted - left * self.waves, slopes

  def step(self, level: float) -> np.ndarray:
    """Returns the next step, [6]."""
    difference, slopes = self.model(level)
    normal = slopes.T @ slopes
    normal += np.diag(self.damping * np.diag(normal) + 1e-9)
    step = np.linalg.solve(normal, slopes.T @ difference)[:6]
    return step * min(1, _LONGEST / max(np.linalg.norm(step), 1e-12))

  def degrees(self) -> float:
    """Standard deviation of the pose over all its directions together.

    The difference counts as noise. Its power is averaged up to the frequency
    where the average is largest: model errors are smooth, rounding errors not.
    """
    difference, slopes = self.model(0.0)
    powers = np.square(difference)[np.argsort(_SQUARES, kind='stable')].cumsum()
    count = np.arange(1, powers.size + 1) - slopes.shape[1]
    noise = (powers / np.maximum(count, 1))[_FEWEST:].max() + _ROUNDING**2
    normal = slopes.T @ slopes
    normal += 1e-12 * np.eye(7)
    variance = noise * np.diag(np.linalg.inv(normal))[:6].sum()
    return float(np.degrees(np.sqrt(variance)))


def _search(world: _World, wanted: np.ndarray, refined: int) -> list[_Found]:
  """Finds the poses of distinct pictures [v, C] in order of time."""
  states = []
  for picture in wanted:
    errors = _errors(picture, world.waves, _COARSE)
    states.append(
      [
        _State(picture, world.poses[i], world.waves[i])
        for i in _distinct(world, world.poses, errors, refined)
      ]
    )
  _descend(world, sum(states, []), _COARSE, _COARSE_STEPS)
  # Start from the poses of the neighbours in time as well.
  best = [min(own, key=lambda x: x.error).pose for own in states]
  more = []
  for i, (picture, own) in enumerate(zip(wanted, states, strict=True)):
    guesses = _between(best, i)
    if len(guesses):
      seen = world.look(guesses)
      errors = [_fit(picture, x, _COARSE)[0] for x in seen]
      j = int(np.argmin(errors))
      if np.isfinite(errors[j]):
        own.append(_State(picture, guesses[j], seen[j]))
        more.append(own[-1])
  _descend(world, more, _COARSE, _COARSE_STEPS)
  finalists = []
  for own in states:
    poses = np.stack([x.pose for x in own])
    errors = np.array([x.error for x in own])
    first = int(errors.argmin())
    away = world.apart(poses[first], poses) > _ELSEWHERE
    finalists.append([own[first]])
    if away.any():
      finalists[-1].append(own[int(np.where(away, errors, np.inf).argmin())])
  for x in sum(finalists, []):
    x.slopes = None
  _descend(world, sum(finalists, []), _FINE, _FINE_STEPS)
  return [
    _judge(world, min(final, key=lambda x: x.error), own)
    for final, own in zip(finalists, states, strict=True)
  ]


def _distinct(
  world: _World, poses: np.ndarray, errors: np.ndarray, count: int
) -> list[int]:
  """Returns the best `count` poses that are not close to each other."""
  chosen = []
  for i in np.argsort(errors, kind='stable').tolist():
    if len(chosen) == count:
      break
    if not chosen or (world.apart(poses[i], poses[chosen]) > _SAME).all():
      chosen.append(i)
  return chosen


def _between(path: Sequence[np.ndarray], i: int) -> np.ndarray:
  """Candidate poses [n, 4, 4] of a frame, from those of its neighbours."""
  near = [path[j] for j in (i - 1, i + 1) if 0 <= j < len(path)]
  if len(near) == 2:
    step = near[1] @ np.linalg.inv(near[0])
    turn = Rotation.from_matrix(step[:3, :3]).as_rotvec()
    half = np.eye(4)
    half[:3, :3] = Rotation.from_rotvec(turn / 2).as_matrix()
    half[:3, 3] = step[:3, 3] / 2
    near.append(half @ near[0])
  for a, b in ((i - 2, i - 1), (i + 2, i + 1)):
    if 0 <= a < len(path):
      near.append(path[b] @ np.linalg.inv(path[a]) @ path[b])
  return np.array(near)


def _descend(
  world: _World, states: Sequence[_State], level: float, steps: int
) -> None:
  """Takes up to `steps` steps of all states at once to reduce the errors."""
  for x in states:
    x.error, x.blur = _fit(x.wanted, x.waves, level)
    x.damping, x.done = 1e-3, False
  for _ in range(steps):
    states = [x for x in states if not x.done]
    if not states:
      break
    if stale := [x for x in states if x.slopes is None]:
      fresh = world.slopes(
        np.stack([x.pose for x in stale]), np.stack([x.waves for x in stale])
      )
      for x, slopes in zip(stale, fresh, strict=True):
        x.slopes, x.fresh = slopes, True
    moves = np.stack([x.step(level) for x in states])
    poses = world.moved(np.stack([x.pose for x in states]), moves)
    seen = world.look(poses)
    for x, move, pose, waves in zip(states, moves, poses, seen, strict=True):
      error, blur = _fit(x.wanted, waves, level)
      length = np.linalg.norm(move)
      x.done = bool(length < _SHORTEST)
      # The change of a short step is mostly rounding.
      if np.isfinite(error) and length > _DELTA / 2:
        missed = waves - x.waves - x.slopes @ move
        x.slopes = x.slopes + np.outer(missed, move) / length**2
      if error < x.error:
        x.error, x.blur, x.pose, x.waves = error, blur, pose, waves
        x.damping, x.fresh = max(x.damping / 5, 1e-6), False
      elif x.fresh:
        x.damping *= 10
      else:
        x.slopes = None


def _judge(world: _World, best: _State, states: Sequence[_State]) -> _Found:
  """Compares the best pose of a picture with all others that were rendered."""
  poses = np.concatenate([world.poses, [x.pose for x in states]])
  waves = np.concatenate([world.waves, [x.waves for x in states]])
  away = world.apart(best.pose, poses) > _ELSEWHERE
  rival = _errors(best.wanted, waves[away], _FINE).min(initial=np.inf)
  if best.slopes is None:
    best.slopes = world.slopes(best.pose[None], best.waves[None])[0]
  return _Found(
    pose=best.pose,
    error=_share(best.error, best.wanted, _FINE),
    rival=_share(rival, best.wanted, _FINE),
    degrees=best.degrees(),
    blur=best.blur,
  )
