"""AdamW or Muon with clipping, warm-up, decay and masks by path.

Schedules count optimizer updates, independent of gradient accumulation (the
public code counts micro-steps in its loop and updates in its schedule).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from xfactor import limits
from xfactor.errors import UserError
from xfactor.nn import sharding


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of the optimizer; defaults are the paper's.

  Attributes:
    name: 'adamw', or 'muon': Muon (Jordan 2024, scaled as by Liu et al.,
      arXiv 2502.16982) for the kernels of stacked layers, AdamW with Nesterov
      momentum for the rest, both at the same learning rate.
    decay: 'cosine', constant after the last update; 'exponential', which
      reaches the final rate `warmup_steps` updates after it (stelzner/srt); or
      'wsd', constant until the last `decay_steps` updates (warm-up, stable,
      decay), so that a run can be extended from the constant part.
    learning_rate: Peak learning rate, at the end of warm-up.
    initial_learning_rate: Learning rate of the first update.
    final_learning_rate: Learning rate from the last update on.
    warmup_steps: Updates of the linear warm-up.
    decay_steps: Updates of the decay of 'wsd', at the end of a run.
    weight_decay: Decoupled decay, scaled by the learning rate; matrices only.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Number added to the root of the second moment.
    clip_norm: Largest global norm of a gradient; 0 disables clipping.
    ema: Decay per update of an average of the parameters, which evaluation and
      inference then use; 0 disables. After n updates it is at most
      (1 + n) / (10 + n), so that the initial parameters are soon forgotten.
  """

  name: str = 'adamw'
  decay: str = 'cosine'
  learning_rate: float = limits.at_least(4e-4, 0)
  initial_learning_rate: float = limits.at_least(1e-12, 0)
  final_learning_rate: float = limits.at_least(1e-4, 0)
  warmup_steps: int = limits.at_least(4000, 0)
  decay_steps: int = limits.at_least(10_000, 0)
  weight_decay: float = limits.at_least(5e-3, 0)
  b1: float = limits.between(0.9, 0, 1)
  b2: float = limits.between(0.95, 0, 1)
  eps: float = limits.at_least(1e-8, 0)
  clip_norm: float = limits.at_least(1.0, 0)
  ema: float = limits.between(0.0, 0, 1)


# The first pattern that matches a whole path applies; every path must match.
DECAY_RULES = (
  (r'.*/(norm|norm_\w+|scale_\w+)/(scale|bias)', False),
  (r'.*/bias', False),
  (r'.*/(registers|pixel_embedding|\w+_camera)|scene|camera', False),
  (r'.*/kernel', True),
)

# Muon updates the matrices inside transformers; AdamW updates embeddings and
# heads.
MUON_RULES = (
  (r'.*/stack/layers/.*/kernel', True),
  (r'.*', False),
)


def make_schedule(config: Config, steps: int) -> optax.Schedule:
  """Returns the learning rate schedule: warm-up, then decay."""
  if config.warmup_steps >= steps:
    raise UserError(
      f'config.optimizer.warmup_steps={config.warmup_steps} must be below '
      f'config.train.steps={steps}'
    )
  if config.decay == 'exponential':
    return optax.warmup_exponential_decay_schedule(
      init_value=config.initial_learning_rate,
      peak_value=config.learning_rate,
      warmup_steps=config.warmup_steps,
      transition_steps=steps,
      decay_rate=config.final_learning_rate / config.learning_rate,
    )
  if config.decay == 'wsd':
    return _wsd(config, decay_start(config, steps))
  if config.decay != 'cosine':
    raise UserError(
      f'config.optimizer.decay={config.decay!r}: choose "cosine", '
      '"exponential" or "wsd"'
    )
  return optax.warmup_cosine_decay_schedule(
    init_value=config.initial_learning_rate,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps,
    decay_steps=steps,
    end_value=config.final_learning_rate,
  )


def decay_start(config: Config, steps: int) -> int | None:
  """Returns the updates before the decay of 'wsd'; None for other schedules.

  Raises:
    UserError: If there are no updates between warm-up and decay.
  """
  if config.decay != 'wsd':
    return None
  start = steps - config.decay_steps
  if start < config.warmup_steps:
    raise UserError(
      f'config.optimizer.warmup_steps={config.warmup_steps} and '
      f'decay_steps={config.decay_steps} must not exceed '
      f'config.train.steps={steps} together'
    )
  return start


def _wsd(config: Config, start: int) -> optax.Schedule:
  """Warm-up, constant until `start`, then 1 - sqrt (arXiv 2405.18392)."""
  warmup = optax.linear_schedule(
    config.initial_learning_rate, config.learning_rate, config.warmup_steps
  )

  def decay(count):
    part = jnp.clip(count / max(1, config.decay_steps), 0, 1)
    fall = config.learning_rate - config.final_learning_rate
    return config.learning_rate - fall * jnp.sqrt(part)

  return optax.join_schedules(
    (warmup, optax.constant_schedule(config.learning_rate), decay),
    (config.warmup_steps, start),
  )


def decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
  """Maps each parameter to whether it decays.

  Raises:
    ValueError: If no rule covers a parameter.
  """
  return {path: sharding.match_rule(path, DECAY_RULES) for path in params}


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm` with one factor for all arrays.

  optax divides and selects in every array: XLA then writes the clipped
  gradients to memory and takes a tenth longer to compile a small model.
  """

  def update(grads, state, params=None):
    del params
    norm = optax.tree.norm(grads)
    factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
    return jax.tree.map(lambda x: x * factor, grads), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def make_optimizer(
  config: Config, steps: int, shapes: Mapping[str, Any]
) -> optax.GradientTransformation:
  """Builds the gradient transformation for a run of `steps` updates.

  Args:
    config: Configuration of the optimizer.
    steps: Updates of the run.
    shapes: Map from path to shape of each parameter.

  Raises:
    UserError: If the optimizer is unknown, or Muon has nothing to update.
  """
  schedule = make_schedule(config, steps)
  if config.name == 'adamw':
    update = optax.adamw(
      schedule,
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
      mask=decay_mask,
    )
  elif config.name == 'muon':
    update = optax.chain(
      _muon(config, shapes),
      optax.add_decayed_weights(config.weight_decay, decay_mask),
      optax.scale_by_learning_rate(schedule),
    )
  else:
    raise UserError(
      f'config.optimizer.name={config.name!r}: choose "adamw" or "muon"'
    )
  clip = config.clip_norm
  return optax.chain(
    clip_by_global_norm(clip) if clip else optax.identity(), update
  )


def _muon(
  config: Config, shapes: Mapping[str, Any]
) -> optax.GradientTransformation:
  """Update directions of Muon and Adam, not scaled by the learning rate."""
  # The last two axes are the matrix; the axes before are stacked layers.
  matrices = {
    path: contrib.MuonDimensionNumbers(len(x.shape) - 2, len(x.shape) - 1)
    if sharding.match_rule(path, MUON_RULES)
    else None
    for path, x in shapes.items()
  }
  if not any(matrices.values()):
    raise UserError(
      'config.optimizer.name="muon" finds no matrix of a stacked layer to '
      'update in this model; choose "adamw"'
    )
  # optax negates the rate to descend; here the last transformation does.
  return contrib.muon(
    -1.0,
    adam_b1=config.b1,
    adam_b2=config.b2,
    eps=config.eps,
    # Same update size as AdamW, independent of the shape of the matrix.
    consistent_rms=0.2,
    muon_weight_dimension_numbers=matrices,
  )
