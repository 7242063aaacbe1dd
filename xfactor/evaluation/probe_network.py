"""The network of the pose probe, and its training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from xfactor.errors import UserError
from xfactor.nn.layers import gelu

# Weights and biases of each layer.
Params = list[tuple[Array, Array]]
# Smallest sum of two singular values in the gradient, to keep it finite.
_MIN_SUM = 1e-3
# Smallest scale of rotations, for data sets whose camera hardly turns.
_MIN_TURN = np.radians(1.0)


@dataclasses.dataclass(frozen=True)
class Config:
  """Training of a probe: AdamW, warm-up, cosine decay to 0.

  Attributes:
    features: Width of the last hidden layer; the first is four times as wide.
    steps: Steps of the optimizer.
    batch: Frames per step, sampled with replacement.
    learning_rate: Learning rate after the warm-up.
    warmup_steps: Steps of linear warm-up from rate 0.
    weight_decay: Decoupled weight decay, times the learning rate.
    seed: Seed of weights and batches.
  """

  features: int = 64
  steps: int = 2000
  batch: int = 256
  learning_rate: float = 2e-3
  warmup_steps: int = 200
  weight_decay: float = 0.5
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Probe:
  """A trained probe.

  Attributes:
    params: Parameters of the perceptron.
    mean: float32 [z], subtracted from the latents.
    deviation: float32 [z], by which they are then divided.
    unit: Unit of the translations, in that of the data set.
    loss: Mean loss over the last tenth of the training.
  """

  params: Params
  mean: np.ndarray
  deviation: np.ndarray
  unit: float
  loss: float

  def predict(
    self, latents: Float[np.ndarray, '*b z']
  ) -> Float[np.ndarray, '*b 4 4']:
    """Returns float64 poses, from the reference's camera to the frame's."""
    rows = jnp.asarray(self._normalise(latents))
    rotation, translation = jax.device_get(_forward(self.params, rows))
    out = np.zeros((len(rows), 4, 4))
    out[:, :3, :3] = rotation
    out[:, :3, 3] = translation * self.unit
    out[:, 3, 3] = 1
    return out.reshape(*latents.shape[:-1], 4, 4)

  def _normalise(self, latents: np.ndarray) -> np.ndarray:
    rows = latents.reshape(-1, latents.shape[-1])
    return (np.float32(rows) - self.mean) / self.deviation


def training_rows(
  latents: Float[np.ndarray, 'b v z'],
  world_to_camera: Float[np.ndarray, 'b v 4 4'],
  *,
  reference: int = 0,
  ok: Bool[np.ndarray, 'b v'] | None = None,
) -> tuple[Float[np.ndarray, 'n z'], Float[np.ndarray, 'n 3 4']]:
  """Returns the inputs of `fit`: all frames of clips but the references.

  Args:
    latents: Latents of the frames, relative to the reference frame's.
    world_to_camera: Poses of an oracle or the data set.
    reference: Index of the reference frame.
    ok: Whether a frame has a pose; if the reference has none, the clip is
      skipped.
  """
  if ok is None:
    ok = np.ones(latents.shape[:2], bool)
  use = ok & ok[:, reference, None]
  use[:, reference] = False
  clip, frame = np.nonzero(use)
  inverse = np.linalg.inv(world_to_camera[clip, reference])
  relative = world_to_camera[clip, frame] @ inverse
  return latents[clip, frame], relative[:, :3]


def fit(
  latents: Float[np.ndarray, 'n z'],
  relative: Float[np.ndarray, 'n 3 4'],
  config: Config | None = None,
) -> Probe:
  """Trains a probe; about 5 seconds on two cores.

  The loss of a frame is the squared Frobenius distance of the rotations plus
  the Huber loss of the distance of the translations. Rotations are divided by
  the set's root mean square distance from the identity, translations by their
  root mean square, so that neither dominates.

  Args:
    latents: Latents of frames, relative to a reference frame of each clip.
    relative: Poses from the reference's camera to the frame's, of one data set:
      all translations in the same unit.
    config: Settings of the training.

  Raises:
    UserError: If there are fewer than two frames, or values are not finite.
  """
  config = config or Config()
  if len(latents) < 2:
    raise UserError(
      'a pose probe needs at least 2 frames with poses to learn from; convert '
      'more clips of the train split, with cameras'
    )
  for what, x in (('latent poses', latents), ('camera poses', relative)):
    if not np.isfinite(x).all():
      raise UserError(f'some {what} of the train split are not finite')
  deviation = np.float32(latents.std(0))
  translation = relative[:, :, 3]
  unit = float(np.sqrt(np.mean(np.sum(translation**2, -1)))) or 1.0
  turn = np.mean(np.sum((relative[:, :, :3] - np.eye(3)) ** 2, (-2, -1)))
  probe = Probe(
    params=[],
    mean=np.float32(latents.mean(0)),
    # Constant entries are not scaled.
    deviation=np.where(deviation > 0, deviation, 1),
    unit=unit,
    loss=np.nan,
  )
  params, losses = _train(
    jax.random.key(config.seed),
    jnp.asarray(probe._normalise(latents)),
    jnp.asarray(relative[:, :, :3], jnp.float32),
    jnp.asarray(translation / unit, jnp.float32),
    # A rotation by angle a has distance sqrt(2) a from the identity.
    jnp.float32(1 / max(turn, 2 * _MIN_TURN**2)),
    config=config,
  )
  last = np.mean(losses[-max(config.steps // 10, 1) :])
  return dataclasses.replace(probe, params=params, loss=float(last))


@functools.partial(jax.jit, static_argnames='config')
def _train(
  key: PRNGKeyArray,
  latents: Float[Array, 'n z'],
  rotation: Float[Array, 'n 3 3'],
  translation: Float[Array, 'n 3'],
  rotation_weight: Float[Array, ''],
  *,
  config: Config,
) -> tuple[Params, Float[Array, ' steps']]:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup_steps, config.steps
  )
  tx = optax.adamw(schedule, weight_decay=config.weight_decay)
  init_key, batch_key = jax.random.split(key)
  params = _init(init_key, latents.shape[1], config.features)

  def loss_fn(params, rows):
    guess_rotation, guess_translation = _forward(params, latents[rows])
    turn = jnp.sum((guess_rotation - rotation[rows]) ** 2, (-2, -1))
    # Avoids the square root near 0, where its slope is infinite.
    shift = jnp.sum((guess_translation - translation[rows]) ** 2, -1)
    shift = jnp.where(shift < 1, shift / 2, jnp.sqrt(shift.clip(1)) - 0.5)
    return jnp.mean(rotation_weight * turn + shift)

  def step(carry, key):
    params, state = carry
    rows = jax.random.randint(key, (config.batch,), 0, len(latents))
    loss, grads = jax.value_and_grad(loss_fn)(params, rows)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  keys = jax.random.split(batch_key, config.steps)
  (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
  return params, losses


def _init(key: PRNGKeyArray, width: int, features: int) -> Params:
  sizes = (width, 4 * features, features, 12)
  xavier = jax.nn.initializers.xavier_uniform()
  return [
    (xavier(k, (din, dout), jnp.float32), jnp.zeros(dout))
    for k, din, dout in zip(
      jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True
    )
  ]


@jax.jit
def _forward(
  params: Params, latents: Float[Array, 'n z']
) -> tuple[Float[Array, 'n 3 3'], Float[Array, 'n 3']]:
  """Rotations, and translations in the probe's unit."""
  x = latents
  for i, (kernel, bias) in enumerate(params):
    x = gelu(x) if i else x
    x = jnp.matmul(x, kernel, precision='highest') + bias[None]
  return nearest_rotation(x[:, 3:].reshape(-1, 3, 3)), x[:, :3]


@jax.custom_jvp
def nearest_rotation(matrix: Float[Array, 'n 3 3']) -> Float[Array, 'n 3 3']:
  """Returns the rotation at the least Frobenius distance from each matrix.

  The derivative is that of the rotation itself. It is finite even if that of
  the singular vectors is not, as for equal singular values.
  """
  u, _, vh = _special_svd(matrix)
  return jnp.matmul(u, vh, precision='highest')


@nearest_rotation.defjvp
def _nearest_rotation_jvp(primals, tangents):
  matmul = functools.partial(jnp.matmul, precision='highest')
  u, s, vh = _special_svd(*primals)
  inner = matmul(matmul(u.mT, *tangents), vh.mT)
  sums = s[..., :, None] + s[..., None, :]
  turn = (inner - inner.mT) / jnp.maximum(sums, _MIN_SUM)
  return matmul(u, vh), matmul(matmul(u, turn), vh)


def _special_svd(matrix: Array) -> tuple[Array, Array, Array]:
  """SVD whose vectors multiply to a rotation; flips the last value's sign."""
  u, s, vh = jnp.linalg.svd(matrix)
  sign = jnp.sign(jnp.linalg.det(u) * jnp.linalg.det(vh))
  signs = jnp.ones_like(s).at[..., 2].set(sign)
  return u, s * signs, vh * signs[..., None]
