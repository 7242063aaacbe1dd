"""Training the learned pose oracle, and the gate that it must pass.

Examples are three frames of a clip, from which all six ordered pairs are made,
clean or spoilt as a model's pictures are. Half of the held-out scenes calibrate
what the oracle trusts; on the others it must be good enough, lose little by
blur, noise and the like, and beat what needs no pictures.
"""

import dataclasses
import functools
import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage

from xfactor.data import images, records, views
from xfactor.errors import UserError
from xfactor.evaluation import oracles, poses
from xfactor.evaluation.oracles import learned
from xfactor.geometry import cameras
from xfactor.models import layers, pose_net

# Frames of an example, and the two of each of its pairs: every one both ways,
# which teaches that the way back is the inverse.
_FRAMES = 3
_A, _B = np.array(list(itertools.permutations(range(_FRAMES), 2))).T
# Of the pose of a mirrored pair: diag(-1, 1, 1) from both sides.
_MIRROR = np.array([[1, -1, -1, -1], [-1, 1, 1, 1], [-1, 1, 1, 1]], np.float32)
# Of a translation that stands for none; its direction is drawn.
_STILL = 2e-3
# As in the data sources that have depth.
_DEPTHS_PER_METRE = 1000


# ==============================================================================
# Data
# ==============================================================================


@dataclasses.dataclass(frozen=True)
class Footage:
  """The training frames of all data sets, decoded.

  Attributes:
    frames: uint8 [n, size, size, 3].
    depth: float32 [n, t], metres at the centres of the network's tokens; 0
      where unknown.
    intrinsics: float32 [n, 4], of the frames' central squares; centred where
      unknown.
    world_to_camera: float64 [n, 4, 4].
    first: int64 [clips], row of each clip's first frame.
    length: int64 [clips].
  """

  frames: np.ndarray
  depth: np.ndarray
  intrinsics: np.ndarray
  world_to_camera: np.ndarray
  first: np.ndarray
  length: np.ndarray


def _open(config: ConfigDict, split: str) -> list[records.FrameStore]:
  names = config.data.names.split(',')
  return [records.open_split(config.data.dir, name, split) for name in names]


def _cameras(store: records.FrameStore, clip: int) -> np.ndarray:
  """Returns float64 [n, 4, 4] world to camera, NaN where unknown."""
  known = store.clip(clip).world_to_camera
  if known is None:
    raise UserError(
      f'clip {store.clip_id(clip)} of {store.name}/{store.split} has no '
      'cameras to learn from; choose other data sets in config.data.names'
    )
  out = np.tile(np.eye(4), (len(known), 1, 1))
  out[:, :3] = np.where(oracles.rigid(known)[:, None, None], known, np.nan)
  return out


def _decode(
  store: records.FrameStore, clip: int, frames: np.ndarray, size: int
) -> np.ndarray:
  try:
    return np.stack(
      [
        images.centre_crop_resize(images.decode(x), size)
        for x in store.clip_frames(clip, frames)
      ]
    )
  except (images.ImageError, RuntimeError, ValueError) as error:
    raise UserError(
      f'a frame of clip {store.clip_id(clip)} of {store.name}/{store.split} '
      f'cannot be read: {error}'
    ) from error


def _tokens_depth(
  store: records.FrameStore, clip: int, size: int
) -> np.ndarray:
  """Returns float32 [n, t], metres at the centres of the tokens, or zeros."""
  side = size // pose_net.STRIDE
  first, length = store.first_frame[clip], store.num_frames[clip]
  out = np.zeros((length, side, side), np.float32)
  for i, row in enumerate(out):
    try:
      data = store.depth(int(first) + i)
    except ValueError:  # This data set has none.
      break
    with Image.open(io.BytesIO(data)) as file:
      depth = np.asarray(file, np.float32) / _DEPTHS_PER_METRE
    edge = min(depth.shape)
    top, left = ((x - edge) // 2 for x in depth.shape)
    centres = ((np.arange(side) + 0.5) * edge / side).astype(int)
    row[:] = depth[np.ix_(top + centres, left + centres)]
  return out.reshape(length, -1)


def _intrinsics(store: records.FrameStore, clip: int) -> np.ndarray:
  record = store.clip(clip)
  if record.intrinsics is None:
    return np.tile(np.float32([1, 1, 0.5, 0.5]), (record.num_frames, 1))
  return cameras.crop_intrinsics(record.intrinsics, record.height, record.width)


def load_footage(config: ConfigDict) -> Footage:
  """Decodes the training clips that have enough frames, all with cameras.

  Raises:
    UserError: If there are none, cameras are missing, or memory would be.
  """
  size = config.model.image_size
  stores = _open(config, 'train')
  count = sum(int(store.num_frames.sum()) for store in stores)
  gib = count * size**2 * 3 / 2**30
  if gib > config.data.max_gib:
    raise UserError(
      f'the {count} frames of {config.data.names} at {size} pixels take '
      f'{gib:.3g} GiB of memory, more than config.data.max_gib='
      f'{config.data.max_gib:g}; raise it or name fewer data sets'
    )
  paths, frames, depth, intrinsics = [], [], [], []
  for store in stores:
    for clip, length in enumerate(store.num_frames):
      path = _cameras(store, clip)
      if length >= _FRAMES and np.isfinite(path).all():
        paths.append(path)
        frames.append(_decode(store, clip, np.arange(length), size))
        depth.append(_tokens_depth(store, clip, size))
        intrinsics.append(_intrinsics(store, clip))
  if not paths:
    raise UserError(
      f'no training clip of {config.data.names} has {_FRAMES} frames with '
      'cameras; choose other data sets in config.data.names'
    )
  length = np.array([len(path) for path in paths])
  return Footage(
    np.concatenate(frames),
    np.concatenate(depth),
    np.concatenate(intrinsics),
    np.concatenate(paths),
    np.cumsum(length) - length,
    length,
  )


def draw(
  rng: np.random.Generator, footage: Footage, train: ConfigDict
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the examples of an update.

  Returns:
    int32 [windows, 3] rows of the frames, in order of time, and float32
    [windows, 6, 3, 4], how the second of each pair sees the first's points.
  """
  count = train.windows
  clip = rng.integers(0, len(footage.first), count)
  most = np.minimum((footage.length[clip] - 1) // (_FRAMES - 1), train.gap)
  gaps = rng.integers(1, most[:, None] + 1, (count, _FRAMES - 1))
  gaps[rng.random(count) < train.still] = 0
  offsets = np.pad(gaps.cumsum(1), [(0, 0), (1, 0)])
  start = rng.integers(0, footage.length[clip] - offsets[:, -1])
  rows = (footage.first[clip] + start)[:, None] + offsets
  path = footage.world_to_camera[rows]
  motion = (path[:, _B] @ np.linalg.inv(path[:, _A]))[:, :, :3]
  # Drawn, so that the network learns not to trust what it says of these.
  direction = rng.normal(size=(count, len(_A), 3))
  direction *= _STILL / np.linalg.norm(direction, axis=-1, keepdims=True)
  still = (gaps == 0).all(1)
  motion[still, :, :, 3] = direction[still]
  return rows.astype(np.int32), motion.astype(np.float32)


# ==============================================================================
# Augmentation
# ==============================================================================


def mirror(
  pictures: jax.Array,
  depth: jax.Array,
  intrinsics: jax.Array,
  motion: jax.Array,
  chosen: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Mirrors some examples left to right.

  Args:
    pictures: [w, f, h, w, 3].
    depth: [w, f, y, x].
    intrinsics: [w, f, 4].
    motion: [w, p, 3, 4].
    chosen: bool [w].
  """
  x, centre = intrinsics[..., 2], jnp.array([0, 0, 1, 0], jnp.float32)
  flipped = intrinsics + (1 - 2 * x)[..., None] * centre[None, None]

  def choose(a, b):
    return jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

  return (
    choose(pictures[..., ::-1, :], pictures),
    choose(depth[..., ::-1], depth),
    choose(flipped, intrinsics),
    choose(motion * _MIRROR[None, None], motion),
  )


def degrade(pictures: jax.Array, key: jax.Array, share: float) -> jax.Array:
  """Blurs, warps, recolours and blots a share of examples, as models do.

  Args:
    pictures: float32 [w, f, h, w, 3] in [-1, 1].
    key: Of all draws. Blur, colour and noise are alike within an example.
    share: Of the examples; the others stay as they are.
  """
  count, frames, size = pictures.shape[:3]
  keys = iter(jax.random.split(key, 10))

  def uniform(shape, low, high):
    return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

  sigma = uniform((count, 1, 1, 1, 1), 0.4, 2.5)
  # Both axes are resampled by a matrix: a Gaussian about a warped position.
  axes = (count, frames, 2)
  amplitude, waves = uniform(axes, 0.0, 0.8), uniform(axes, 0.5, 3.0)
  phase = uniform(axes, 0.0, 2 * np.pi)
  pixel = jnp.arange(size, dtype=jnp.float32)[None, None, None]
  turn = 2 * np.pi * waves[..., None] * pixel / size + phase[..., None]
  place = pixel + amplitude[..., None] * jnp.sin(turn)
  distance = place[..., None] - pixel[..., None, :]
  weight = jnp.exp(-(distance**2) / (2 * sigma**2))
  weight /= weight.sum(-1, keepdims=True)
  rows, columns = weight[:, :, 0], weight[:, :, 1]
  out = jnp.einsum('wfyh,wfhxc->wfyxc', rows, pictures)
  out = jnp.einsum('wfxh,wfyhc->wfyxc', columns, out)
  gain = uniform((count, 1, 1, 1, 3), 0.7, 1.3)
  gain *= uniform((count, frames, 1, 1, 1), 0.93, 1.07)
  out = out * gain + uniform((count, 1, 1, 1, 3), -0.15, 0.15)
  noise = jnp.maximum(uniform((count, 1, 1, 1, 1), -0.1, 0.15), 0)
  out += noise * jax.random.normal(next(keys), out.shape)
  chosen = jax.random.bernoulli(next(keys), share, (count, 1, 1, 1, 1))
  return jnp.where(chosen, jnp.clip(out, -1, 1), pictures)


# ==============================================================================
# Training
# ==============================================================================


def _optimizer(train: ConfigDict) -> optax.GradientTransformation:
  if not 0 <= train.warmup_steps < train.steps:
    raise UserError(
      f'config.train.warmup_steps={train.warmup_steps} must be below '
      f'config.train.steps={train.steps}'
    )
  rate = optax.warmup_cosine_decay_schedule(
    0.0, train.learning_rate, train.warmup_steps, train.steps
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      rate,
      b2=0.98,
      weight_decay=train.weight_decay,
      mask=lambda params: {x: x.endswith('kernel') for x in params},
    ),
  )


def fit(config: ConfigDict, footage: Footage) -> learned.Network:
  """Trains a network; prints how wrong it is on what it is trained on."""
  size = pose_net.Config(**config.model)
  functional = pose_net.make(size)
  tx = _optimizer(config.train)
  init_key, root = jax.random.split(jax.random.key(config.seed))

  side = size.image_size // pose_net.STRIDE

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, store, rows, motion, number):
    keys = jax.random.split(jax.random.fold_in(root, number))
    chosen = jax.random.bernoulli(keys[0], shape=rows.shape[:1])
    pictures, depth, intrinsics = (x[rows] for x in store)
    pictures, depth, intrinsics, motion = mirror(
      layers.to_float(pictures),
      depth.reshape(*rows.shape, side, side),
      intrinsics,
      motion,
      chosen,
    )
    pictures = degrade(pictures, keys[1], config.train.degraded)

    def pairs(x, i):
      return x[:, i].reshape(-1, *x.shape[2:])

    def loss(params):
      net = functional.bind(params)
      features = net.encode(pictures.reshape(-1, *pictures.shape[2:]))
      features = features.reshape(*rows.shape, *features.shape[1:])
      out = net(pairs(features, _A), pairs(features, _B))
      true = motion.reshape(-1, 3, 4)
      error, counts = pose_net.errors(out, true)
      distance = pose_net.matching_loss(
        out,
        pairs(depth, _A).reshape(-1, side**2),
        pairs(intrinsics, _A),
        true,
      )
      value = pose_net.loss(out, true) + config.train.matching * distance
      error = (error * counts).sum(0) / counts.sum(0)
      return value, jnp.append(error, distance)

    (value, error), grads = jax.value_and_grad(loss, has_aux=True)(state[0])
    updates, moments = tx.update(grads, state[1], state[0])
    return (
      (optax.apply_updates(state[0], updates), moments),
      jnp.append(error, value),
    )

  params = jax.jit(functional.init)(init_key)
  state = params, tx.init(params)
  store = tuple(
    map(jnp.asarray, (footage.frames, footage.depth, footage.intrinsics))
  )
  recent = []
  start, cpu = time.perf_counter(), time.process_time()
  for number in range(config.train.steps):
    rng = np.random.default_rng([config.seed, number])
    state, metrics = step(
      state, store, *draw(rng, footage, config.train), number
    )
    recent.append(metrics)
    done = number + 1
    if done % config.train.log_every == 0 or done == config.train.steps:
      rotation, direction, length, match, value = np.mean(
        jax.device_get(recent), 0
      )
      recent.clear()
      print(
        f'{done}: loss {value:.3f}, mean errors {np.degrees(rotation):.2f} and '
        f'{np.degrees(direction):.1f} degrees, log length {length:.2f}, '
        f'matches {match:.3f}; '
        f'{time.perf_counter() - start:.0f} s, '
        f'{time.process_time() - cpu:.0f} s of CPU',
        flush=True,
      )
  if not np.isfinite(value):
    raise UserError(
      'the loss is not finite any more; give a smaller '
      'config.train.learning_rate'
    )
  return learned.Network(size, jax.device_get(state[0]))


# ==============================================================================
# Calibration and gate
# ==============================================================================


Views = tuple[np.ndarray, np.ndarray]


def held_out(config: ConfigDict) -> list[list[Views]]:
  """Returns what is shown of each scene of the test splits.

  Its excerpts, short and long: pictures [v, size, size, 3] and world-to-camera
  [v, 4, 4].

  Raises:
    UserError: If fewer than two scenes have enough frames with cameras.
  """
  gate = config.gate
  out = []
  for store in _open(config, 'test'):
    for clip in range(len(store)):
      path = _cameras(store, clip)
      chosen = [
        views.eval_frames(len(path), gate.frames, window)
        for window in gate.windows
        if len(path) >= window
      ]
      excerpts = [
        (_decode(store, clip, x, config.model.image_size), path[x])
        for x in chosen
        if np.isfinite(path[x]).all()
      ]
      if excerpts:
        out.append(excerpts)
  if len(out) < 2:
    raise UserError(
      f'{len(out)} test clips of {config.data.names} have '
      f'{min(gate.windows)} frames with cameras, too few to calibrate and to '
      'test an oracle; convert more, or change config.gate.windows'
    )
  return out


def _blur(sigma: float) -> Callable:
  return lambda x, _: ndimage.gaussian_filter(x, (0, sigma, sigma, 0))


def _warp(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Moves pixels by smooth fields of about a pixel, each frame by its own."""
  out = np.empty_like(x)
  size = x.shape[1]
  for picture, result in zip(x, out, strict=True):
    field = ndimage.gaussian_filter(
      rng.normal(size=(2, size, size)), (0, size / 8, size / 8)
    )
    places = np.indices((size, size)) + field / field.std()
    for channel in range(3):
      result[..., channel] = ndimage.map_coordinates(
        picture[..., channel], places, order=1, mode='nearest'
      )
  return out


# Not those of training, but their like; of pictures in [0, 1].
CORRUPTIONS: dict[str, Callable] = {
  'clean': lambda x, _: x,
  'blur 1 px': _blur(1.0),
  'blur 2 px': _blur(2.0),
  'noise 0.05': lambda x, rng: x + rng.normal(0, 0.05, x.shape),
  'darker': lambda x, _: 0.1 + 0.6 * x,
  'warp 1 px': _warp,
}


def corrupted(pictures: np.ndarray, name: str, seed: int) -> np.ndarray:
  """Returns uint8 pictures [v, h, w, 3] spoilt in one of the ways."""
  rng = np.random.default_rng(seed)
  out = CORRUPTIONS[name](pictures / 255, rng)
  return np.clip(np.rint(255 * out), 0, 255).astype(np.uint8)


def _constant(paths: np.ndarray) -> np.ndarray:
  """Returns the mean path [v, 4, 4] of [n, v, 4, 4], the middle the world."""
  middle = paths.shape[1] // 2
  motion = paths @ np.linalg.inv(paths[:, middle : middle + 1])
  out = motion.mean(0)
  u, _, vt = np.linalg.svd(out[:, :3, :3])
  out[:, :3, :3] = u @ vt
  return out


def examine(
  network: learned.Network, scenes: Sequence[list[Views]], gate: ConfigDict
) -> tuple[learned.Network, dict[str, Any]]:
  """Calibrates a network on every second held-out scene, tests it on the rest.

  Args:
    network: Trained.
    scenes: From `held_out`.
    gate: The recipe's section.

  Returns:
    The calibrated network, and the gate's results: `rows`, by kind of picture,
    `passed` and `failures`.
  """
  seen, tested = (list(itertools.chain(*scenes[i::2])) for i in range(2))
  _, errors = zip(*network.paths([x for x, _ in seen]), strict=True)
  limit = float(np.quantile([x.max() for x in errors], gate.keep))
  network = dataclasses.replace(network, max_error=limit)
  truth = np.stack([x for _, x in tested])
  rows = {}
  for name in CORRUPTIONS:
    shown = [corrupted(x, name, i) for i, (x, _) in enumerate(tested)]
    paths, errors = zip(*network.paths(shown), strict=True)
    accepted = np.array([x.max() <= limit for x in errors])
    rows[name] = _score(truth, np.stack(paths), accepted)
    if name == 'clean':
      all_of_them = np.ones(len(truth), bool)
      others = np.roll(np.stack(paths), len(gate.windows), axis=0)
      rows['shuffled'] = _score(truth, others, all_of_them)
      mean = _constant(np.stack([x for _, x in seen]))
      constant = np.broadcast_to(mean, truth.shape)
      rows['constant'] = _score(truth, constant, all_of_them)
  failures = list(_failures(rows, gate))
  return network, {
    'rows': rows,
    'clips': len(tested),
    'max_error_degrees': float(np.degrees(limit)),
    **gate.to_dict(),
    'passed': not failures,
    'failures': failures,
  }


def _score(
  truth: np.ndarray, paths: np.ndarray, accepted: np.ndarray
) -> dict[str, float | None]:
  """Returns means over all clips, accepted or not, and medians of errors."""
  scores = poses.score(truth, paths)
  out = {'accepted': float(accepted.mean())}
  for name in ('rra@20', 'rta@20', 'auc@30'):
    out[name] = float(scores.metrics[name].mean())
  out['auc@30 of accepted'] = (
    float(scores.metrics['auc@30'][accepted].mean()) if accepted.any() else None
  )
  out['rotation_degrees'] = float(np.median(scores.rotation_degrees))
  out['translation_degrees'] = float(np.median(scores.translation_degrees))
  return out


def _failures(
  rows: dict[str, dict[str, float | None]], gate: ConfigDict
) -> Iterator[str]:
  auc = {name: row['auc@30'] for name, row in rows.items()}
  clean = auc['clean']
  if not clean >= gate.min_auc:
    yield f'AUC@30 of clean clips is {clean:.3f}, below {gate.min_auc:g}'
  for name in ('shuffled', 'constant'):
    if not clean >= auc[name] + gate.margin:
      yield (
        f'AUC@30 of clean clips is {clean:.3f}, not {gate.margin:g} above '
        f'{name}, {auc[name]:.3f}'
      )
  for name in CORRUPTIONS:
    if not auc[name] >= clean - gate.max_loss:
      yield (
        f'AUC@30 falls from {clean:.3f} to {auc[name]:.3f} by {name}, more '
        f'than {gate.max_loss:g}'
      )


def table(rows: dict[str, dict[str, float | None]]) -> str:
  """Returns the gate's results to be read by people."""
  columns = list(rows['clean'])
  lines = [' ' * 10 + '  '.join(columns)]
  for name, row in rows.items():
    cells = (
      ('-' if row[x] is None else f'{row[x]:.3f}').rjust(len(x))
      for x in columns
    )
    lines.append(name.ljust(10) + '  '.join(cells))
  return '\n'.join(lines)
