"""Loss of RUST and RayZer: the target rendered from its own pose."""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from xfactor.methods import distances, view_order
from xfactor.methods.autoencoding import rayzer, rust


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AutoencodingSamples:
  """Random choices of a step.

  Attributes:
    views: Order of the frames: the reference, other contexts, the target.
    left: Whether RUST's pose encoder sees the target's left half.
  """

  views: Int[Array, '*parts b v']
  left: Bool[Array, '*parts b']


def sample_autoencoding(
  key: PRNGKeyArray, frames: Int[Array, 'b v']
) -> AutoencodingSamples:
  """Samples the random choices of a step."""
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
  """Returns the distance of the rendered target to the truth, and metrics."""
  drawn, truth = model.reconstruct(
    view_order.take_views(images, draws.views), draws.left
  )
  return distances.score(drawn, truth, config, perceptual)
