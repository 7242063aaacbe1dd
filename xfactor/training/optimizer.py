"""AdamW with clipping, warm-up, decay and a mask of weight decay by path.

Schedules count optimizer updates, whatever the accumulation (the public code
counts micro-steps in its loop and updates in its schedule).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xfactor.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The paper's optimizer.

  Attributes:
    decay: 'cosine', constant after the last update, or 'exponential', which
      reaches the final rate `warmup_steps` after it (stelzner/srt).
    learning_rate: At the end of warm-up.
    initial_learning_rate: At the first update.
    final_learning_rate: From the last update on.
    warmup_steps: Updates from the first rate to the peak, linearly.
    weight_decay: Decoupled; times the learning rate; matrices only.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the root of the second moment.
    clip_norm: Largest global norm of a gradient; 0: any.
  """

  decay: str = 'cosine'
  learning_rate: float = 4e-4
  initial_learning_rate: float = 1e-12
  final_learning_rate: float = 1e-4
  warmup_steps: int = 4000
  weight_decay: float = 5e-3
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  clip_norm: float = 1.0


# The first pattern that matches a whole path decides; every path must match.
DECAY_RULES = (
  (r'.*/(norm|norm_\w+|scale_\w+)/(scale|bias)', False),
  (r'.*/bias', False),
  (r'.*/(registers|pixel_embedding|\w+_camera)|scene|camera', False),
  (r'.*/kernel', True),
)


def make_schedule(config: Config, steps: int) -> optax.Schedule:
  """Learning rate of each update: warm-up, then decay."""
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
  if config.decay != 'cosine':
    raise UserError(
      f'config.optimizer.decay={config.decay!r}: choose "cosine" or '
      '"exponential"'
    )
  return optax.warmup_cosine_decay_schedule(
    init_value=config.initial_learning_rate,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps,
    decay_steps=steps,
    end_value=config.final_learning_rate,
  )


def decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
  """Which parameters decay.

  Raises:
    ValueError: If no rule covers a parameter.
  """
  return {path: match_rule(path, DECAY_RULES) for path in params}


def match_rule(path: str, rules: tuple):
  """The value of the first rule whose pattern matches the whole path.

  Raises:
    ValueError: If none does: a new parameter needs a decision, not a default.
  """
  for pattern, value in rules:
    if re.fullmatch(pattern, path):
      return value
  raise ValueError(f'no rule covers the parameter {path!r}; add one')


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm` as one factor for all arrays.

  optax divides and selects in each of them, for which XLA writes the clipped
  gradients to memory and takes a tenth longer to compile a small model.
  """

  def update(grads, state, params=None):
    del params
    norm = optax.tree.norm(grads)
    factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
    return jax.tree.map(lambda x: x * factor, grads), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
  """The whole gradient transformation for a run of `steps` updates."""
  return optax.chain(
    clip_by_global_norm(config.clip_norm)
    if config.clip_norm
    else optax.identity(),
    optax.adamw(
      make_schedule(config, steps),
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
      mask=decay_mask,
    ),
  )
