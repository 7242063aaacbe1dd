"""Held-out reconstruction: views rendered from their own latent poses.

The reference is the most central frame, as in training; the example's number
selects the target among the others. The model is also scored with poses from
the other half of each view, and with the target pose of another example: the
loss of quality shows how much the poses matter. Two baselines use no poses: a
copy of the context view that is nearest in time, and that view's mean colour.
The transfer panel applies one clip's motion to another clip's scene, for which
there is no ground truth.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from xfactor.methods import scores as scores_lib
from xfactor.methods import view_order
from xfactor.metrics import images as metrics
from xfactor.nn import sharding
from xfactor.nn.functional import Functional, Params
from xfactor.nn.layers import to_float, to_uint8


class LatentModel(Protocol):
  """Networks with latent poses."""

  def encode_views(
    self, images: Float[Array, 'b v h w 3']
  ) -> Float[Array, 'b v z']:
    """Returns the pose of each view relative to the first."""

  def render(
    self, context: Float[Array, 'b c h w 3'], poses: Float[Array, 'b v z']
  ) -> Float[Array, 'b h w 3']:
    """Renders the view of the last pose."""


ByHalves = Callable[[Any, Float[Array, 'b v h w 3']], Float[Array, 'b h w 3']]


class Evaluator:
  """Scores parameters on batches of held-out examples; compiles once."""

  def __init__(
    self,
    functional: Functional,
    mesh: Mesh,
    lpips: Mapping[str, Params],
    *,
    by_halves: ByHalves | None = None,
  ):
    """Prepares the step that scores a batch; the first call compiles it.

    Args:
      functional: Networks with latent poses.
      mesh: Mesh of the batches.
      lpips: Weights of LPIPS distances by name; may be empty.
      by_halves: Renders targets with poses of the other half of each view.
    """
    self._mesh = mesh
    self._lpips = dict(lpips)
    everywhere = NamedSharding(mesh, P())

    def eval_step(params, batch, lpips):
      model = functional.bind(params)
      views = choose_views(batch['frames'], batch['example'])
      images = to_float(view_order.take_views(batch['images'], views))
      truth = images[:, -1]
      context = nearest_context(
        images, jnp.take_along_axis(batch['frames'], views, axis=1)
      )
      poses = model.encode_views(images)
      prediction = model.render(images[:, :-1], poses)
      mean = jnp.broadcast_to(
        jnp.mean(context, axis=(1, 2), keepdims=True), context.shape
      )
      scenes = jnp.roll(images[:, :-1], -1, axis=0)
      candidates = {
        'model': prediction,
        'shuffled': model.render(images[:, :-1], shuffle_target(poses)),
        'copy': context,
        'mean': mean,
      }
      if by_halves:
        candidates['halves'] = by_halves(model, images)
      scores = {
        who: metrics.score(image, truth, lpips)
        for who, image in candidates.items()
      }
      pictures = {
        'context': images[:, :-1],
        'prediction': prediction,
        'truth': truth,
        'scene': scenes[:, 0],
        'transfer': transfer(model, images, scenes),
      }
      finite = jnp.isfinite(prediction).all((1, 2, 3))
      # Return the whole mask: each process has only its part of it.
      return batch['mask'], finite, scores, jax.tree.map(to_uint8, pictures)

    self._step = jax.jit(eval_step, out_shardings=everywhere)

  def __call__(
    self,
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    num_images: int,
  ) -> scores_lib.Result:
    """Scores every example of the batches and keeps the first pictures.

    Args:
      params: Parameters of the networks.
      batches: Batches from `pipeline.eval_batches`.
      num_images: Number of examples whose pictures are kept, at most a batch.

    Raises:
      UserError: If rendered pictures are not finite.
    """
    scores, pictures = [], None
    with jax.set_mesh(self._mesh):
      for batch in batches:
        batch = sharding.to_mesh(
          self._mesh,
          {k: batch[k] for k in ('images', 'frames', 'example', 'mask')},
        )
        *got, shown = self._step(params, batch, self._lpips)
        keep, finite, got = jax.device_get(got)
        scores_lib.check_finite(finite[keep])
        scores.append(jax.tree.map(lambda x, keep=keep: x[keep], got))
        if pictures is None:
          pictures = {
            key: value[keep][:num_images]
            for key, value in jax.device_get(shown).items()
          }
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *scores)
    # JAX sorts the keys of returned dicts.
    labels = {
      who: label for who, label in scores_lib.LABELS.items() if who in scores
    }
    return scores_lib.Result(
      {who: scores[who] for who in labels}, pictures, labels
    )


def choose_views(
  frames: Int[Array, 'b v'], example: Int[Array, ' b']
) -> Int[Array, 'b v']:
  """Returns the views of fixed examples: reference, other contexts, target.

  The target cycles through the other frames with the example's number.
  """
  order = view_order.by_centrality(frames)
  count = frames.shape[1] - 1
  turned = (jnp.arange(count)[None] + example[:, None] + 1) % count
  others = jnp.take_along_axis(order[:, 1:], turned, axis=1)
  return jnp.concatenate([order[:, :1], others], axis=1)


def nearest_context(
  images: Float[Array, 'b v h w 3'], frames: Int[Array, 'b v']
) -> Float[Array, 'b h w 3']:
  """Returns the context view that is nearest to the target in time."""
  distance = jnp.abs(frames[:, :-1] - frames[:, -1:])
  nearest = jnp.argmin(distance, axis=1, keepdims=True)
  return view_order.take_views(images, nearest)[:, 0]


def shuffle_target(poses: Float[Array, 'b v z']) -> Float[Array, 'b v z']:
  """Gives each example the target pose of the next."""
  target = jnp.roll(poses[:, -1:], -1, axis=0)
  return jnp.concatenate([poses[:, :-1], target], axis=1)


def transfer(
  model: LatentModel,
  images: Float[Array, 'b v h w 3'],
  scenes: Float[Array, 'b c h w 3'],
) -> Float[Array, 'b h w 3']:
  """Renders `scenes` at the target poses of `images` (the transfer panel).

  Context poses are those of the scenes; the target pose is that of `images`,
  relative to its own reference.
  """
  motion = model.encode_views(images)[:, -1:]
  if scenes.shape[1] > 1:
    contexts = model.encode_views(scenes)
  else:
    contexts = jnp.zeros_like(motion)
  return model.render(scenes, jnp.concatenate([contexts, motion], axis=1))
