"""Samples the roles of the views of an example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, Shaped


def sample_views(
  key: PRNGKeyArray, frames: Int[Array, 'b v']
) -> Int[Array, 'b v']:
  """Puts the most central frame first, then shuffles (select_indices)."""
  order = by_centrality(frames)
  others = jax.vmap(jax.random.permutation)(
    jax.random.split(key, len(order)), order[:, 1:]
  )
  return jnp.concatenate([order[:, :1], others], axis=1)


def by_centrality(frames: Int[Array, 'b v']) -> Int[Array, 'b v']:
  """Sorts the frames by their distance to the farther end of the example.

  `proximity_permutation` of the public code: the loader returns the frames of
  an example in order of time, forwards or backwards, so the first and the last
  are the ends.
  """
  ends = frames[:, :1], frames[:, -1:]
  distance = jnp.maximum(*(jnp.abs(frames - end) for end in ends))
  return jnp.argsort(distance, axis=1, stable=True)


def take_views(
  images: Shaped[Array, 'b v *pixels'], views: Int[Array, 'b n']
) -> Shaped[Array, 'b n *pixels']:
  """Gathers views of each example."""
  index = views.reshape(*views.shape, *(1,) * (images.ndim - 2))
  return jnp.take_along_axis(images, index, axis=1)
