"""The distance between a rendered and a true picture."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from xfactor import limits


class Perceptual(Protocol):
  """Perceptual distance of images in [-1, 1], one number per image."""

  def __call__(
    self, prediction: Float[Array, 'b h w 3'], truth: Float[Array, 'b h w 3']
  ) -> Float[Array, ' b']: ...


@dataclasses.dataclass(frozen=True)
class Distances:
  """Weights of the distances between a rendered and a true picture.

  Attributes:
    l1_weight: Weight of the mean absolute error in [-1, 1].
    lpips_weight: Weight of LPIPS (VGG16); needs its weights if above zero.
    lpips_dtype: Type of LPIPS's convolutions: 'float32', 'mixed' or 'bfloat16';
      see `metrics.lpips.lpips`.
  """

  l1_weight: float = limits.at_least(1.0, 0)
  lpips_weight: float = limits.at_least(0.5, 0)
  lpips_dtype: str = 'mixed'


def score(
  prediction: Float[Array, 'b h w 3'],
  target: Float[Array, 'b h w 3'],
  config: Distances,
  perceptual: Perceptual | None,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Returns the weighted sum of the distances, and each distance."""
  parts = {'l1': jnp.mean(jnp.abs(prediction - target))}
  total = config.l1_weight * parts['l1']
  if config.lpips_weight > 0:
    parts['lpips'] = jnp.mean(perceptual(prediction, target))
    total += config.lpips_weight * parts['lpips']
  return total, {'loss': total, **parts}
