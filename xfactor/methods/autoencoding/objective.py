"""The autoencoding objective."""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from xfactor.methods import distances, view_order
from xfactor.methods.autoencoding import rayzer, rust


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AutoencodingSamples:
  """What a step of a baseline draws.

  Attributes:
    views: As of `Draws`.
    left: Whether RUST's pose encoder sees the target's left half.
  """

  views: Int[Array, '*parts b v']
  left: Bool[Array, '*parts b']


def sample_autoencoding(
  key: PRNGKeyArray, frames: Int[Array, 'b v']
) -> AutoencodingSamples:
  """Draws a step's randomness; arguments as of `draw`."""
  key_views, key_left = jax.random.split(key)
  return AutoencodingSamples(
    views=view_order.sample_views(key_views, frames),
    left=jax.random.bernoulli(key_left, 0.5, (len(frames),)),
  )


def autoencoding_loss(
  model: rust.Rust | rayzer.RayZer,
  images: Float[Array, 'b v h w 3'],
  draws: AutoencodingSamples,
  config: distances.Distances,
  *,
  perceptual: distances.Perceptual | None = None,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """As `loss`, of a baseline: what it draws against what that should be."""
  drawn, truth = model.reconstruct(
    view_order.take_views(images, draws.views), draws.left
  )
  return distances.score(drawn, truth, config, perceptual)
