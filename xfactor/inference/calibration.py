"""Maps between camera motions and latent poses, fitted to clips with cameras.

A motion is the pose of a camera relative to a reference camera, and the focal
length. Each direction has a ridge regression and an ensemble of small networks
that learn what remains; which of the two predicts is decided by the error on
clips that neither was fitted to. Both map no motion to no motion. The spread of
the ensemble is the uncertainty, and the Mahalanobis distance to the fitted
motions says how far a motion is from all that the maps have seen.
"""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Float, Int, Key
from scipy.spatial.transform import Rotation

from xfactor.data import files
from xfactor.data.formats import npz
from xfactor.errors import UserError
from xfactor.geometry import cameras
from xfactor.nn import layers
from xfactor.nn.functional import Functional, Params

_FORMAT = 1
_RIDGE = 1.0
_MEMBERS = 5  # Networks of an ensemble.
_FEATURES = 64
_STEPS, _WARMUP, _BATCH = 1000, 100, 128
_RATE, _DECAY = 2e-3, 0.1
_FEWEST = 64  # Pairs of frames to fit to.
_HELD_OUT = 0.1  # Share of the clips that chooses between ridge and networks.
_INSIDE = 99  # Percentile of the fitted motions that is the domain's limit.
# Smallest scales of turns (radians), moves (as a share of a typical move) and
# logarithms of focal lengths: what moves less is noise of the cameras.
_LEAST_TURN, _LEAST_MOVE, _LEAST_FOCAL = np.radians(0.5), 0.02, 0.05
_STILL = 1e-4  # Largest typical move of cameras that only turn.
_ROUNDS = 5  # Alternations between the scales of clips and the ridge.
_FREEDOMS = 6


def motions_of(
  relative: Float[np.ndarray, 'n 3 4'],
) -> Float[np.ndarray, 'n 6']:
  """Returns rotation vectors and eyes of poses relative to a reference.

  Args:
    relative: Poses from the reference's camera to another camera.

  Returns:
    Rotation vectors in radians, then positions of the camera in the reference's
    axes (right, down, ahead), in the unit of the poses.
  """
  turns = Rotation.from_matrix(relative[:, :, :3]).as_rotvec()
  return np.concatenate([turns, cameras.camera_centre(relative)], 1)


def relative_of(
  motions: Float[np.ndarray, 'n 6'],
) -> Float[np.ndarray, 'n 3 4']:
  """Returns the poses of motions; the inverse of `motions_of`."""
  turns = Rotation.from_rotvec(motions[:, :3]).as_matrix()
  moved = -np.einsum('nij,nj->ni', turns, motions[:, 3:])
  return np.concatenate([turns, moved[..., None]], 2)


@dataclasses.dataclass(frozen=True)
class Domain:
  """Where the examples of a map are.

  Attributes:
    mean: [d].
    whitening: [d, d], the inverse of the covariance's Cholesky factor.
    limit: Distance within which 99 % of the examples are.
  """

  mean: np.ndarray
  whitening: np.ndarray
  limit: float

  @classmethod
  def of(
    cls, rows: Float[np.ndarray, 'n d'], least: Float[np.ndarray, ' d']
  ) -> 'Domain':
    """Returns the domain of examples; `least` are the smallest deviations."""
    covariance = np.cov(rows.T) + np.diag(least**2)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    domain = cls(rows.mean(0), whitening, np.nan)
    limit = float(np.percentile(domain.distance(rows), _INSIDE))
    return dataclasses.replace(domain, limit=limit)

  def distance(self, rows: Float[np.ndarray, 'n d']) -> Float[np.ndarray, ' n']:
    """Returns Mahalanobis distances from the mean, in standard deviations."""
    return np.linalg.norm((rows - self.mean) @ self.whitening.T, axis=1)


@dataclasses.dataclass(frozen=True)
class Regression:
  """A map that is 0 at a row's origin: ridge, and an ensemble of networks.

  Attributes:
    scale: [d], by which inputs are divided.
    out_scale: [k], by which outputs are multiplied.
    ridge: [d, k], the linear map of scaled rows.
    params: Parameters of the networks, stacked along a first axis.
    errors: Root mean square errors of 'ridge' and 'network' on clips they were
      not fitted to, in standard deviations of the outputs.
  """

  scale: np.ndarray
  out_scale: np.ndarray
  ridge: np.ndarray
  params: dict[str, np.ndarray]
  errors: dict[str, float]

  @property
  def best(self) -> str:
    """Name of the map with the smaller error."""
    return min(self.errors, key=self.errors.get)

  def predict(
    self,
    rows: Float[np.ndarray, 'n d'],
    origins: Float[np.ndarray, 'n d'],
    by: str | None = None,
  ) -> tuple[Float[np.ndarray, 'n k'], Float[np.ndarray, 'n k']]:
    """Returns outputs, and the standard deviation of the ensemble's.

    Args:
      rows: Inputs.
      origins: Inputs whose output is 0.
      by: 'ridge' or 'network'; `best` if None.
    """
    x, x0 = rows / self.scale, origins / self.scale
    linear = (x - x0) @ self.ridge
    left = np.float64(
      jax.device_get(_residuals(self.params, np.float32(x), np.float32(x0)))
    )
    out = linear + left.mean(0) if (by or self.best) == 'network' else linear
    return out * self.out_scale, left.std(0) * self.out_scale


@dataclasses.dataclass(frozen=True)
class Latents:
  """Latent poses of camera motions.

  Attributes:
    poses: float32 [n, z].
    deviation: [n], standard deviation of the ensemble as a share of the spread
      of all latent poses.
    distance: [n], of the motion to those that were fitted, in standard
      deviations.
  """

  poses: np.ndarray
  deviation: np.ndarray
  distance: np.ndarray


@dataclasses.dataclass(frozen=True)
class CameraPath:
  """Cameras of frames.

  Attributes:
    world_to_camera: float64 [n, 3, 4], OpenCV; the reference's is the identity.
      The unit is that of the calibration.
    degrees: [n], standard deviation of the ensemble's rotations.
    move: [n], standard deviation of the ensemble's positions.
    distance: [n], of the latent pose to those that were fitted, in standard
      deviations. All three are relative to the frame that the pose was read
      from, which is not the reference after a change of it.
  """

  world_to_camera: np.ndarray
  degrees: np.ndarray
  move: np.ndarray
  distance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
  """What camera motions the latent poses of a model are, and back.

  Attributes:
    to_latents: From motions, with the logarithm of the focal length, to poses.
    to_motions: From poses to motions.
    motions: Domain of `to_latents`.
    latents: Domain of `to_motions`.
    focal: Typical focal length of the central square, divided by its side.
    step: Step of the checkpoint.
    window: Largest number of frames of a pair, both included.
    pairs: Number of pairs of frames.
    move: Root mean square distance of the fitted cameras from their reference;
      0 if they only turn.
    one_unit: Whether positions are in the unit of the data; else they are in
      typical moves of a clip.
    data: Data sets and splits.
  """

  to_latents: Regression
  to_motions: Regression
  motions: Domain
  latents: Domain
  focal: float
  step: int
  window: int
  pairs: int
  move: float
  one_unit: bool
  data: str

  @property
  def unit(self) -> str:
    """Unit of positions, in words."""
    if self.one_unit:
      return f'the unit of {self.data}'
    return 'typical moves of a clip (the root mean square of its pairs)'

  def facts(self) -> dict[str, float | str]:
    """Returns what programs that move a camera need, as JSON."""
    return {
      'focal': self.focal,
      'move': self.move,
      'unit': self.unit,
      'limit': self.motions.limit,
    }

  def poses(
    self,
    relative: Float[np.ndarray, 'n 3 4'],
    focal: float | Float[np.ndarray, ' n'] | None = None,
    by: str | None = None,
  ) -> Latents:
    """Returns the latent poses of cameras relative to a reference camera.

    Args:
      relative: Poses from the reference's camera to each camera.
      focal: Focal length of the central square, divided by its side; the
        typical one of the calibration if None.
      by: 'ridge' or 'network'; the better one if None.
    """
    rows = self._rows(relative, self.focal if focal is None else focal)
    origins = rows * np.append(np.zeros(_FREEDOMS), 1)
    poses, deviation = self.to_latents.predict(rows, origins, by)
    spread = deviation / self.to_latents.out_scale
    return Latents(
      np.float32(poses),
      np.sqrt(np.mean(spread**2, 1)),
      self.distance(relative, focal),
    )

  def traced(
    self, relative: Float[Array, 'n 3 4']
  ) -> tuple[Float[Array, 'n z'], Float[Array, ' n']]:
    """Returns poses and distances as `poses` does, to JAX and in float32.

    For programs that are exported. The focal length is the typical one, and
    turns are of less than 180 degrees.

    Args:
      relative: Poses from the reference's camera to each camera.
    """
    turn, moved = relative[:, :, :3], relative[:, :, 3]
    skew = (turn - turn.swapaxes(1, 2)) / 2
    axis = jnp.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], 1)
    sine = jnp.linalg.norm(axis, axis=1, keepdims=True)
    cosine = (jnp.trace(turn, axis1=1, axis2=2)[:, None] - 1) / 2
    angle = 2 * jnp.arctan(sine / (1 + cosine))
    vector = axis * (angle / jnp.maximum(sine, 1e-12))
    eye = -jnp.sum(turn * moved[:, :, None], 1)
    row = jnp.concatenate([vector, eye, jnp.zeros_like(sine)], 1)
    to, domain = self.to_latents, self.motions
    x = row / np.float32(to.scale[None])
    pose = x @ np.float32(to.ridge)
    if to.best == 'network':
      # One after the other: jax2onnx has no batched layers.
      count = len(next(iter(to.params.values())))
      for i in range(count):
        member = {k: jnp.asarray(v[i]) for k, v in to.params.items()}
        pose += _residual(member, x, jnp.zeros_like(x)) / count
    left = row - np.float32(domain.mean[None])
    distance = jnp.linalg.norm(left @ np.float32(domain.whitening.T), axis=1)
    return pose * np.float32(to.out_scale[None]), distance

  def distance(
    self,
    relative: Float[np.ndarray, 'n 3 4'],
    focal: float | Float[np.ndarray, ' n'] | None = None,
  ) -> Float[np.ndarray, ' n']:
    """Returns how far motions are from those of the calibration."""
    focal = self.focal if focal is None else focal
    return self.motions.distance(self._rows(relative, focal))

  def cameras(
    self, latents: Float[np.ndarray, 'n z'], by: str | None = None
  ) -> CameraPath:
    """Returns the cameras of latent poses, all relative to one reference."""
    rows = np.float64(latents)
    motions, deviation = self.to_motions.predict(rows, 0 * rows, by)
    return CameraPath(
      relative_of(motions),
      np.degrees(np.linalg.norm(deviation[:, :3], axis=1)),
      np.linalg.norm(deviation[:, 3:], axis=1),
      self.latents.distance(rows),
    )

  def _rows(self, relative: np.ndarray, focal: float | np.ndarray):
    return _with_focal(motions_of(relative), focal, self.focal)

  def describe(self) -> str:
    """Returns what was fitted, with the errors on other clips, as text."""
    lines = [
      f'calibration of step {self.step}: {self.pairs} pairs of frames of '
      f'{self.data}, at most {self.window - 1} frames apart; positions are in '
      f'{self.unit}'
    ]
    for name, fitted in (
      ('motion to latent pose', self.to_latents),
      ('latent pose to motion', self.to_motions),
    ):
      errors = ', '.join(
        f'{kind} {error:.3f}' for kind, error in fitted.errors.items()
      )
      lines.append(
        f'  {name}: error on other clips, in standard deviations: {errors}; '
        f'{fitted.best} is used'
      )
    lines.append(
      f'  {_INSIDE} % of the motions are within {self.motions.limit:.1f} '
      'standard deviations of their mean'
    )
    return '\n'.join(lines)


def _with_focal(
  motions: np.ndarray, focal: float | np.ndarray, typical: float
) -> np.ndarray:
  logs = np.broadcast_to(np.log(np.asarray(focal) / typical), len(motions))
  return np.concatenate([motions, logs[:, None]], 1)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs of frames of clips with cameras.

  Attributes:
    latents: float32 [n, z], of a frame relative to its reference.
    relative: float64 [n, 3, 4], from the reference's camera to the frame's.
    focal: float64 [n], of the central square, divided by its side.
    clip: int [n], clip of the pair.
    name: Data set and split, or several.
  """

  latents: Float[np.ndarray, 'n z']
  relative: Float[np.ndarray, 'n 3 4']
  focal: Float[np.ndarray, ' n']
  clip: Int[np.ndarray, ' n']
  name: str


def fit(
  pairs: Pairs, *, step: int, window: int, one_unit: bool, seed: int = 0
) -> Calibration:
  """Fits the maps in both directions; seconds on a CPU.

  Args:
    pairs: Pairs to fit to.
    step: Step of the checkpoint that encoded the latent poses.
    window: Largest number of frames of a pair, both included.
    one_unit: Whether all clips have one unit of length. If not, positions of
      each clip are divided by their root mean square, and then by a factor that
      is fitted together with a linear map to the latent poses.
    seed: Seed of the networks and of the choice of clips.

  Raises:
    UserError: If there are too few pairs, or values are not finite.
  """
  clips = np.unique(pairs.clip)
  if len(pairs.clip) < _FEWEST or len(clips) < 2:
    raise UserError(
      f'a calibration needs {_FEWEST} pairs of frames with cameras of 2 clips '
      f'at least, and {pairs.name} gives {len(pairs.clip)} of {len(clips)}; '
      'convert more clips with their cameras'
    )
  latents, moves = np.float64(pairs.latents), motions_of(pairs.relative)
  if not (np.isfinite(latents).all() and np.isfinite(moves).all()):
    raise UserError(
      f'some latent poses or cameras of {pairs.name} are not finite; convert '
      'it again, or use an older checkpoint'
    )
  if not one_unit:
    moves[:, 3:] /= _clip_units(latents, moves, pairs.clip)[:, None]
  focal = float(np.exp(np.log(pairs.focal).mean()))
  rows = _with_focal(moves, pairs.focal, focal)
  length = np.sqrt(np.mean(np.sum(moves[:, 3:] ** 2, 1)))
  length = length if length > _STILL else 0.0
  least = np.repeat([_LEAST_TURN, _LEAST_MOVE * (length or 1)], 3)
  least_pose = np.full(latents.shape[1], 1e-3 * latents.std(0).max() + 1e-12)
  rng = np.random.default_rng(seed)
  chosen = rng.permutation(clips)[: max(1, round(_HELD_OUT * len(clips)))]
  held_out = np.isin(pairs.clip, chosen)
  origins = rows * np.append(np.zeros(_FREEDOMS), 1)
  everything = np.append(least, _LEAST_FOCAL)
  fitted = functools.partial(_fit, held_out=held_out, seed=seed)
  return Calibration(
    to_latents=fitted(rows, origins, latents, everything, least_pose),
    to_motions=fitted(latents, 0 * latents, moves, least_pose, least),
    motions=Domain.of(rows, everything),
    latents=Domain.of(latents, least_pose),
    focal=focal,
    step=step,
    window=window,
    pairs=len(rows),
    move=float(length),
    one_unit=one_unit,
    data=pairs.name,
  )


def _clip_units(
  latents: np.ndarray, moves: np.ndarray, clip: np.ndarray
) -> Float[np.ndarray, ' n']:
  """Returns the unit of length of each pair's clip.

  Alternates between a linear map from motions to latent poses and the factor
  of each clip's positions with the least squared error of that map.
  """
  _, row = np.unique(clip, return_inverse=True)
  counts = np.bincount(row)
  squares = np.bincount(row, np.sum(moves[:, 3:] ** 2, 1)) / counts
  units = np.sqrt(squares)
  # A camera that only turns has no unit: its moves are noise.
  units = np.where(units > _STILL * (units.max() or 1), units, np.inf)
  target = latents / (latents.std(0) + 1e-12)
  factors = np.ones(len(units))
  for _ in range(_ROUNDS):
    scaled = moves.copy()
    scaled[:, 3:] *= (factors / units)[row, None]
    a = scaled.T @ scaled + _RIDGE * np.diag(scaled.var(0) + 1e-12)
    linear = np.linalg.solve(a, scaled.T @ target)
    left = target - scaled[:, :3] @ linear[:3]
    moved = (moves[:, 3:] / units[row, None]) @ linear[3:]
    product = np.bincount(row, np.sum(left * moved, 1))
    norm = np.bincount(row, np.sum(moved**2, 1))
    # As if one more pair of a typical clip had the factor 1.
    prior = norm.sum() / max(counts.sum(), 1) + 1e-12
    factors = np.clip((product + prior) / (norm + prior), 0.2, 5.0)
    factors /= np.exp(np.log(factors).mean())
  return (units / factors)[row]


def _fit(
  rows: np.ndarray,
  origins: np.ndarray,
  out: np.ndarray,
  least: np.ndarray,
  least_out: np.ndarray,
  *,
  held_out: np.ndarray,
  seed: int,
) -> Regression:
  scale = np.maximum(rows.std(0), least)
  out_scale = np.maximum(out.std(0), least_out)
  x, x0, y = rows / scale, origins / scale, out / out_scale
  moved = (x - x0)[~held_out]
  a = moved.T @ moved + _RIDGE * np.eye(x.shape[1])
  ridge = np.linalg.solve(a, moved.T @ y[~held_out])
  left = y - (x - x0) @ ridge
  params = jax.device_get(
    _train(
      jax.random.split(jax.random.key(seed), _MEMBERS),
      *(jnp.asarray(v[~held_out], jnp.float32) for v in (x, x0, left)),
    )
  )
  made = Regression(scale, out_scale, ridge, params, {})
  errors = {}
  for by in ('ridge', 'network'):
    guess, _ = made.predict(rows[held_out], origins[held_out], by)
    error = (guess - out[held_out]) / out_scale
    errors[by] = float(np.sqrt(np.mean(error**2)))
  return dataclasses.replace(made, errors=errors)


@functools.lru_cache
def _network(inputs: int, outputs: int) -> Functional[layers.MLP]:
  sizes = (inputs, _FEATURES, _FEATURES, outputs)
  return Functional(
    lambda rngs: layers.MLP(sizes, rngs=rngs, dtype=jnp.float32, exact=True)
  )


def _residual(
  params: Params, x: Float[Array, 'n d'], x0: Float[Array, 'n d']
) -> Float[Array, 'n k']:
  last = max(params)  # Sorted by the number of the layer.
  network = _network(x.shape[1], params[last].shape[-1]).bind(params)
  return network(x) - network(x0)


@jax.jit
def _residuals(
  params: Params, x: Float[Array, 'n d'], x0: Float[Array, 'n d']
) -> Float[Array, 'm n k']:
  return jax.vmap(_residual, (0, None, None))(params, x, x0)


@jax.jit
def _train(
  keys: Key[Array, ' m'],
  x: Float[Array, 'n d'],
  x0: Float[Array, 'n d'],
  y: Float[Array, 'n k'],
) -> Params:
  """Trains networks, each on rows drawn with replacement (bagging)."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, _RATE, _WARMUP, _STEPS)
  tx = optax.adamw(schedule, weight_decay=_DECAY)
  network = _network(x.shape[1], y.shape[1])

  def loss_fn(params, rows):
    return jnp.mean((_residual(params, x[rows], x0[rows]) - y[rows]) ** 2)

  def train(key):
    init_key, bag_key, key = jax.random.split(key, 3)
    bag = jax.random.randint(bag_key, (len(x),), 0, len(x))
    params = network.init(init_key)

    def step(carry, key):
      params, state = carry
      rows = bag[jax.random.randint(key, (_BATCH,), 0, len(x))]
      grads = jax.grad(loss_fn)(params, rows)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, _STEPS))
    return params

  return jax.vmap(train)(keys)


def file_of(workdir: epath.PathLike, step: int) -> epath.Path:
  """Returns the file of a checkpoint's calibration."""
  return epath.Path(workdir) / f'calibration-{step}.npz'


def save(calibration: Calibration, workdir: epath.PathLike) -> epath.Path:
  """Writes a calibration next to the checkpoints of a run.

  Raises:
    UserError: If the file cannot be written.
  """
  arrays = {'format': np.array(_FORMAT)}
  for name, value in dataclasses.asdict(calibration).items():
    if not isinstance(value, dict):
      arrays[name] = np.asarray(value)
      continue
    for key, part in value.items():
      parts = part.items() if isinstance(part, dict) else [('', part)]
      arrays |= {f'{name}:{key}:{k}': np.asarray(v) for k, v in parts}
  path = file_of(workdir, calibration.step)
  data = io.BytesIO()
  np.savez(data, **arrays)
  try:
    if files.is_remote(path):  # Buckets show only complete files.
      path.write_bytes(data.getvalue())
      return path
    partial = path.with_name(path.name + files.partial_suffix())
    partial.write_bytes(data.getvalue())
    partial.replace(path)
  except OSError as e:
    raise UserError(
      f'cannot write {path} ({e.strerror}); make the folder writable'
    ) from e
  return path


def load(workdir: epath.PathLike, step: int) -> Calibration | None:
  """Reads the calibration of a checkpoint; None if there is none.

  Raises:
    UserError: If the file is damaged or of another version.
  """
  path = file_of(workdir, step)
  if not path.exists():
    return None
  try:
    arrays = npz.read(path)
    if arrays.pop('format') != _FORMAT:
      raise ValueError('another format')
    values = {k: v.item() for k, v in arrays.items() if ':' not in k}
    for name, cls in (
      ('to_latents', Regression),
      ('to_motions', Regression),
      ('motions', Domain),
      ('latents', Domain),
    ):
      parts = {}
      for path_of, value in arrays.items():
        owner, _, rest = path_of.partition(':')
        key, _, inner = rest.partition(':')
        if owner == name and inner:
          value = value.item() if key == 'errors' else value
          parts.setdefault(key, {})[inner] = value
        elif owner == name:
          parts[key] = value if value.ndim else value.item()
      values[name] = cls(**parts)
    return Calibration(**values)
  except (KeyError, TypeError, ValueError, UserError) as e:
    raise UserError(
      f'{path} is damaged or of another version ({e}); delete it and make it '
      f'again: python -m xfactor.calibrate --workdir={workdir}'
    ) from e
