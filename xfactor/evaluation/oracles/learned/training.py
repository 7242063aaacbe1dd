"""Training of the learned pose oracle.

An example is three frames of a clip with all six ordered pairs, either clean or
degraded like a model's pictures. Half of the held-out scenes then calibrate the
oracle's confidence. On the others the gate requires that it is accurate, robust
to blur, noise and the like, and better than guesses without pictures.
"""

import dataclasses
import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from xfactor.data import depth as depth_lib
from xfactor.data import images
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.evaluation.oracles.learned import network, oracle
from xfactor.geometry import cameras as cameras_lib
from xfactor.nn import layers

# Frames of an example, and first and second frames of its pairs. Both orders,
# to teach that the reverse motion is the inverse.
_FRAMES = 3
_A, _B = np.array(list(itertools.permutations(range(_FRAMES), 2))).T
# Signs of a mirrored pair's pose: diag(-1, 1, 1) from both sides.
_MIRROR = np.array([[1, -1, -1, -1], [-1, 1, 1, 1], [-1, 1, 1, 1]], np.float32)
# Length that stands for no translation; its direction is sampled.
_STILL = 2e-3


@dataclasses.dataclass(frozen=True)
class Footage:
  """Decoded training frames of all data sets.

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


def open(config: ConfigDict, split: str) -> list[store_lib.FrameStore]:
  names = config.data.names.split(',')
  return [store_lib.open_split(config.data.dir, name, split) for name in names]


def cameras(store: store_lib.FrameStore, clip: int) -> np.ndarray:
  """Returns float64 [n, 4, 4] world to camera, NaN where unknown."""
  known = store.clip(clip).world_to_camera
  if known is None:
    raise UserError(
      f'clip {store.clip_id(clip)} of {store.name}/{store.split} has no '
      'cameras to learn from; choose other data sets in config.data.names'
    )
  out = np.tile(np.eye(4), (len(known), 1, 1))
  out[:, :3] = np.where(oracles_base.rigid(known)[:, None, None], known, np.nan)
  return out


def decode(
  store: store_lib.FrameStore, clip: int, frames: np.ndarray, size: int
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
  store: store_lib.FrameStore, clip: int, size: int
) -> np.ndarray:
  """Returns float32 [n, t], metres at the centres of the tokens, or zeros."""
  side = size // network.STRIDE
  first, length = store.first_frame[clip], store.num_frames[clip]
  out = np.zeros((length, side, side), np.float32)
  for i, row in enumerate(out):
    try:
      data = store.depth(int(first) + i)
    except ValueError:  # This data set has no depth.
      break
    depth = depth_lib.decode_depth(data)
    edge = min(depth.shape)
    top, left = ((x - edge) // 2 for x in depth.shape)
    centres = ((np.arange(side) + 0.5) * edge / side).astype(int)
    row[:] = depth[np.ix_(top + centres, left + centres)]
  return out.reshape(length, -1)


def _intrinsics(store: store_lib.FrameStore, clip: int) -> np.ndarray:
  record = store.clip(clip)
  if record.intrinsics is None:
    return np.tile(np.float32([1, 1, 0.5, 0.5]), (record.num_frames, 1))
  return cameras_lib.crop_intrinsics(
    record.intrinsics, record.height, record.width
  )


def load_footage(config: ConfigDict) -> Footage:
  """Decodes the training clips that have enough frames, all with cameras.

  Raises:
    UserError: If there are none, cameras are missing, or they need more than
      `config.data.max_gib` of memory.
  """
  size = config.model.image_size
  stores = open(config, 'train')
  count = sum(int(store.num_frames.sum()) for store in stores)
  gib = count * size**2 * 3 / 2**30
  if gib > config.data.max_gib:
    raise UserError(
      f'the {count} frames of {config.data.names} at {size} pixels take '
      f'{gib:.3g} GiB of memory, more than config.data.max_gib='
      f'{config.data.max_gib:g}; increase it or use fewer data sets'
    )
  paths, frames, depth, intrinsics = [], [], [], []
  for store in stores:
    for clip, length in enumerate(store.num_frames):
      path = cameras(store, clip)
      if length >= _FRAMES and np.isfinite(path).all():
        paths.append(path)
        frames.append(decode(store, clip, np.arange(length), size))
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


def sample(
  rng: np.random.Generator, footage: Footage, train: ConfigDict
) -> tuple[np.ndarray, np.ndarray]:
  """Samples the examples of an update.

  Returns:
    int32 [windows, 3] rows of the frames, in order of time, and float32
    [windows, 6, 3, 4], transforms from the first camera of each pair to the
    second.
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
  # Random, so that the network learns to expect large errors for these.
  direction = rng.normal(size=(count, len(_A), 3))
  direction *= _STILL / np.linalg.norm(direction, axis=-1, keepdims=True)
  still = (gaps == 0).all(1)
  motion[still, :, :, 3] = direction[still]
  return rows.astype(np.int32), motion.astype(np.float32)


def mirror(
  pictures: jax.Array,
  depth: jax.Array,
  intrinsics: jax.Array,
  motion: jax.Array,
  chosen: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Mirrors some examples left to right; w examples of f frames and p pairs.

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
  """Blurs, warps, recolours and adds noise to a share of examples.

  Args:
    pictures: float32 [w, f, h, w, 3] in [-1, 1].
    key: Random key. Blur, colour and noise are similar within an example.
    share: Share of the examples; the others are not changed.
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


def fit(config: ConfigDict, footage: Footage) -> oracle.Network:
  """Trains a network; prints its mean errors on the training examples."""
  size = network.Config(**config.model)
  functional = network.make(size)
  tx = _optimizer(config.train)
  init_key, root = jax.random.split(jax.random.key(config.seed))

  side = size.image_size // network.STRIDE

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
      error, counts = network.errors(out, true)
      distance = network.matching_loss(
        out,
        pairs(depth, _A).reshape(-1, side**2),
        pairs(intrinsics, _A),
        true,
      )
      value = network.loss(out, true) + config.train.matching * distance
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
      state, store, *sample(rng, footage, config.train), number
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
      'the loss is no longer finite; reduce config.train.learning_rate'
    )
  return oracle.Network(size, jax.device_get(state[0]))
