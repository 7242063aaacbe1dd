"""The transferability objective by token split (arXiv 2510.13063, section 4.2).

An image's four quadrants are dealt into two halves, A and B, that never meet:
poses are encoded from each half, swapped, and the target's A patches are drawn
with the pose that the B patches gave, and the reverse. Since the halves never
attend to each other, they are just twice the batch at half the length for the
same unmasked model. A pose can then not smuggle pixels, only motion.

A batch is [B, V, H, W, 3], V - 1 context views and a target; V is 2 for the
stereo-monocular model. Of an example's frames the most central one becomes the
reference that all poses are relative to, and a random other one the target.
"""

import dataclasses
from typing import Protocol

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from xfactor.models import layers
from xfactor.models.xfactor import XFactor
from xfactor.training import augment


class Perceptual(Protocol):
  """A perceptual distance of images in [-1, 1], one number an image."""

  def __call__(
    self, prediction: Float[Array, 'b h w 3'], truth: Float[Array, 'b h w 3']
  ) -> Float[Array, ' b']: ...


@dataclasses.dataclass(frozen=True)
class Config:
  """The loss and what a step draws; defaults are the paper's (stereo).

  Attributes:
    l1_weight: Weight of the mean absolute error in [-1, 1].
    lpips_weight: Weight of LPIPS (VGG16); needs its weights if above zero.
    lpips_dtype: Of LPIPS's convolutions: 'float32' or 'bfloat16'.
    unmasked_prob: Share of steps whose examples are all left whole.
    self_target_prob: Share of examples whose target is one of their contexts.
    augmentation: What the pose encoder sees.
  """

  l1_weight: float = 1.0
  lpips_weight: float = 0.5
  lpips_dtype: str = 'float32'
  unmasked_prob: float = 0.05
  self_target_prob: float = 0.05
  augmentation: augment.Config = augment.Config()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
  """All that a step draws, for the global batch.

  Attributes:
    views: Which frame of each example is the reference, which are the other
      contexts and, last, which is the target.
    order: Quadrants (row-major numbers) of each example, A's two, then B's.
    target: View of each example, in the order of `views`, that serves as
      target: the last, or, for a self-target, a random context.
    augmentation: Of each encoder pair, leading axes [b, v - 1].
  """

  views: Int[Array, '*parts b v']
  order: Int[Array, '*parts b 4']
  target: Int[Array, '*parts b']
  augmentation: augment.Draws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """A drawn target [-1, 1] and the poses it was drawn with."""

  image: Float[Array, 'b h w 3']
  poses: Float[Array, 'b s v z']


def draw(key: PRNGKeyArray, frames: Int[Array, 'b v'], config: Config) -> Draws:
  """Draws a step's randomness; it depends on nothing but the arguments.

  Args:
    key: Of the step.
    frames: The frames' places in their clips, as the loader gives them.
    config: Probabilities.
  """
  batch, views = frames.shape
  key_order, key_self, key_view, key_augment, key_views = jax.random.split(
    key, 5
  )
  is_self = jax.random.bernoulli(key_self, config.self_target_prob, (batch,))
  context = jax.random.randint(key_view, (batch,), 0, views - 1)
  flat = augment.draw(key_augment, batch * (views - 1), config.augmentation)
  return Draws(
    views=draw_views(key_views, frames),
    order=draw_quadrants(key_order, batch),
    target=jnp.where(is_self, context, views - 1),
    augmentation=jax.tree.map(
      lambda x: x.reshape(batch, views - 1, *x.shape[1:]), flat
    ),
  )


def draw_views(
  key: PRNGKeyArray, frames: Int[Array, 'b v']
) -> Int[Array, 'b v']:
  """The most central frame, then the others at random (select_indices)."""
  order = by_centrality(frames)
  others = jax.vmap(jax.random.permutation)(
    jax.random.split(key, len(order)), order[:, 1:]
  )
  return jnp.concatenate([order[:, :1], others], axis=1)


def by_centrality(frames: Int[Array, 'b v']) -> Int[Array, 'b v']:
  """The frames by their distance to the farther end of the example.

  `proximity_permutation` of the public code: the loader gives an example's
  frames in order of time, forwards or backwards, so that the ends are the
  first and the last.
  """
  ends = frames[:, :1], frames[:, -1:]
  distance = jnp.maximum(*(jnp.abs(frames - end) for end in ends))
  return jnp.argsort(distance, axis=1, stable=True)


def take_views(
  images: Shaped[Array, 'b v *pixels'], views: Int[Array, 'b n']
) -> Shaped[Array, 'b n *pixels']:
  """Picks views of each example."""
  index = views.reshape(*views.shape, *(1,) * (images.ndim - 2))
  return jnp.take_along_axis(images, index, axis=1)


def draw_quadrants(key: PRNGKeyArray, batch: int) -> Int[Array, 'b 4']:
  """Deals each example's quadrants: two for A, then two for B."""
  return jnp.argsort(quadrant_bits(key, batch), axis=1, stable=True)


def quadrant_bits(key: PRNGKeyArray, batch: int) -> Int[Array, 'b 4']:
  """0 for A's quadrants and 1 for B's (the public code's qpatch_masks)."""
  bits = jnp.array([1, 1, 0, 0])
  return jax.vmap(lambda k: jax.random.permutation(k, bits))(
    jax.random.split(key, batch)
  )


def is_whole_step(seed: int, step: int, config: Config) -> bool:
  """Whether no example of this step is split; known to every host unasked."""
  rng = np.random.Generator(np.random.Philox(key=[seed, step]))
  return bool(rng.random() < config.unmasked_prob)


def kinds_of_step(config: Config) -> list[bool]:
  """Whether steps may be split (False), whole (True), or either."""
  return [False] * (config.unmasked_prob < 1) + [True] * (
    config.unmasked_prob > 0
  )


def split_halves(
  tokens: Shaped[Array, 'b *v t c'],
  order: Int[Array, 'b 4'],
  grid: tuple[int, int],
) -> Shaped[Array, 'b2 *v half c']:
  """Gathers A's and B's tokens of every example: row 2b is A, 2b + 1 is B.

  Rows of one example stay together, so that a sharded batch stays in place.
  """
  quadrants = _to_quadrants(tokens, grid)
  index = order.reshape(*order.shape[:1], *(1,) * (tokens.ndim - 3), 4, 1, 1)
  picked = jnp.take_along_axis(quadrants, index, axis=-3)
  return einops.rearrange(
    picked, 'b ... (half two) n c -> (b half) ... (two n) c', half=2
  )


def join_halves(
  halves: Float[Array, 'b2 half c'],
  order: Int[Array, 'b 4'],
  grid: tuple[int, int],
) -> Float[Array, 'b t c']:
  """Inverse of `split_halves`."""
  picked = einops.rearrange(
    halves, '(b half) (two n) c -> b (half two) n c', half=2, two=2
  )
  inverse = jnp.argsort(order, axis=1)
  quadrants = jnp.take_along_axis(picked, inverse[:, :, None, None], axis=1)
  return einops.rearrange(
    quadrants,
    'b (r s) (h w) c -> b (r h s w) c',
    r=2,
    h=grid[0] // 2,
  )


def _to_quadrants(tokens: Array, grid: tuple[int, int]) -> Array:
  return einops.rearrange(
    tokens,
    'b ... (r h s w) c -> b ... (r s) (h w) c',
    r=2,
    h=grid[0] // 2,
    s=2,
    w=grid[1] // 2,
  )


def reconstruct(
  model: XFactor,
  images: Float[Array, 'b v h w 3'],
  pairs: Float[Array, 'b p 2 h w 3'],
  order: Int[Array, 'b 4'] | None,
) -> Reconstruction:
  """Encodes poses, swaps them between the halves and draws the target.

  Args:
    model: The networks.
    images: Clean views in [-1, 1]: reference, contexts, target.
    pairs: What the pose encoder sees: (reference, view) for each other view.
    order: How the quadrants are dealt, or None to leave the examples whole.

  Returns:
    The drawn target, and poses [b, s, v, z] before the swap: s is 2 (from A,
    from B) or, for whole examples, 1; the reference's pose is zero.
  """
  batch, num_pairs = pairs.shape[:2]
  height, width = images.shape[2:4]
  patch = model.config.patch_size
  grid = (height // patch, width // patch)
  context = model.patches(images[:, :-1])
  encoder_in = model.patches(pairs)
  positions = model.positions(images)
  if order is not None:
    positions = split_halves(
      jnp.broadcast_to(positions, (batch, *positions.shape[1:])), order, grid
    )
    context = split_halves(context, order, grid)
    encoder_in = split_halves(encoder_in, order, grid)
  # One encoder call for all pairs: they are examples of their own.
  poses = model.pose_encoder(
    einops.rearrange(encoder_in, 'b p two t c -> (b p) two t c'),
    jnp.repeat(positions, num_pairs, axis=0)
    if len(positions) > 1
    else positions,
  )
  poses = einops.rearrange(poses, '(b p) two z -> b p two z', p=num_pairs)
  poses = jnp.concatenate([poses[:, :1, 0], poses[:, :, 1]], axis=1)
  by_half = einops.rearrange(poses, '(b s) v z -> b s v z', b=batch)
  swapped = einops.rearrange(by_half[:, ::-1], 'b s v z -> (b s) v z')
  patches = model.renderer(context, swapped, positions)
  if order is not None:
    patches = join_halves(patches, order, grid)
  image = layers.unpatchify(patches, patch, height, width)
  return Reconstruction(image, by_half)


def prepare(
  images: Float[Array, 'b v h w 3'], draws: Draws, config: Config
) -> tuple[Float[Array, 'b v h w 3'], Float[Array, 'b p 2 h w 3']]:
  """Puts the views in order and augments what the pose encoder sees."""
  target = take_views(draws.views, draws.target[:, None])
  views = jnp.concatenate([draws.views[:, :-1], target], axis=1)
  images = take_views(images, views)
  pairs = encoder_pairs(images)
  flat = einops.rearrange(pairs, 'b p two h w c -> (b p) two h w c')
  flat_draws = jax.tree.map(
    lambda x: x.reshape(-1, *x.shape[2:]), draws.augmentation
  )
  flat = augment.apply(flat, flat_draws, config.augmentation)
  return images, flat.reshape(pairs.shape)


def encoder_pairs(
  images: Float[Array, 'b v h w 3'],
) -> Float[Array, 'b p 2 h w 3']:
  """(reference, view) for every view but the reference."""
  reference = jnp.broadcast_to(images[:, :1], images[:, 1:].shape)
  return jnp.stack([reference, images[:, 1:]], axis=2)


def loss(
  model: XFactor,
  images: Float[Array, 'b v h w 3'],
  draws: Draws,
  config: Config,
  *,
  whole: bool,
  perceptual: Perceptual | None = None,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """The training loss of a batch and its parts.

  Args:
    model: The networks.
    images: Clean views in [-1, 1], in the loader's order.
    draws: Of `draw`, for these examples.
    config: Weights and augmentation.
    whole: Leave the examples unsplit in this step.
    perceptual: LPIPS, needed if its weight is above zero.
  """
  images, pairs = prepare(images, draws, config)
  order = None if whole else draws.order
  prediction = reconstruct(model, images, pairs, order).image
  target = images[:, -1]
  parts = {'l1': jnp.mean(jnp.abs(prediction - target))}
  total = config.l1_weight * parts['l1']
  if config.lpips_weight > 0:
    parts['lpips'] = jnp.mean(perceptual(prediction, target))
    total += config.lpips_weight * parts['lpips']
  return total, {'loss': total, **parts}


def transfer(
  model: XFactor,
  images: Float[Array, 'b v h w 3'],
  scenes: Float[Array, 'b c h w 3'],
) -> Float[Array, 'b h w 3']:
  """Draws `scenes` from the target poses of `images` (the transfer panel).

  The scenes' own context poses place their views; the target pose is that of
  `images`, relative to its own reference.
  """
  motion = reconstruct_poses(model, images)[:, -1:]
  if scenes.shape[1] > 1:
    contexts = reconstruct_poses(model, scenes)
  else:
    contexts = jnp.zeros_like(motion)
  return model.render(scenes, jnp.concatenate([contexts, motion], axis=1))


def reconstruct_poses(
  model: XFactor, images: Float[Array, 'b v h w 3']
) -> Float[Array, 'b v z']:
  """Poses of whole views relative to the first, one pair at a time."""
  pairs = encoder_pairs(images)
  flat = einops.rearrange(pairs, 'b p two h w c -> (b p) two h w c')
  poses = einops.rearrange(
    model.encode(flat), '(b p) two z -> b p two z', p=pairs.shape[1]
  )
  return jnp.concatenate([poses[:, :1, 0], poses[:, :, 1]], axis=1)
