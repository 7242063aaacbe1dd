"""The transferability objective by token split (arXiv 2510.13063, section 4.2).

The four quadrants of an image are split into two halves, A and B. Poses are
encoded from each half and swapped: the target's A patches are rendered with the
pose of its B patches, and the reverse. The halves never attend to each other,
so they are twice the batch at half the length for the same unmasked model. A
pose can then encode only motion, not pixels.

A batch is [B, V, H, W, 3], V - 1 context views and a target; V is 2 for the
stereo-monocular model. The most central frame of an example is the reference
that all poses are relative to, and a random other one is the target.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from xfactor import limits
from xfactor.methods import distances, view_order
from xfactor.methods.base import StepKind
from xfactor.methods.xfactor import augment, contrast
from xfactor.methods.xfactor.network import XFactor, encoder_sets, join_sets
from xfactor.nn import layers


@dataclasses.dataclass(frozen=True)
class Config(distances.Distances):
  """Settings of the loss and of sampling; defaults are the paper's (stereo).

  Attributes:
    unmasked_prob: Share of steps on whole examples, without a split.
    self_target_prob: Share of examples whose target is one of their contexts.
    split: Shape of the two sets of a split: 'quadrants', any two of four, or
      'halves', left and right or top and bottom.
    nuisance_dropout: Share of examples without the nuisance latent, if the
      model has one (`config.model.nuisance_dim`).
    augmentation: Augmentation of the pose encoder's input.
    contrast: One of `contrast.OBJECTIVES`, to train only the pose encoder.
    shifted: Whether each example has a second copy, which may be shifted in
      time, as input of B; `config.data.offset_prob`.
  """

  unmasked_prob: float = limits.between(0.05, 0, 1)
  self_target_prob: float = limits.between(0.05, 0, 1)
  split: str = 'quadrants'
  nuisance_dropout: float = limits.between(0.5, 0, 1)
  augmentation: augment.Config = augment.Config()
  contrast: str = ''
  shifted: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """Random choices of a step, for the global batch.

  Attributes:
    views: Order of the frames of each example: the reference, other contexts,
      the target.
    order: Quadrants (row-major numbers) of each example, A's two, then B's.
    target: Index into `views` of the target of each example: the last, or, for
      a self-target, a random context.
    augmentation: Augmentation of each encoder pair, leading axes [b, v - 1].
    nuisance: Whether an example has its nuisance latent.
  """

  views: Int[Array, '*parts b v']
  order: Int[Array, '*parts b 4']
  target: Int[Array, '*parts b']
  augmentation: augment.Samples
  nuisance: Bool[Array, '*parts b']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """Rendered target [-1, 1] and the poses before the swap."""

  image: Float[Array, 'b h w 3']
  poses: Float[Array, 'b s v z']


def sample(
  key: PRNGKeyArray, frames: Int[Array, 'b v'], config: Config
) -> Samples:
  """Samples the random choices of a step; depends only on the arguments.

  Args:
    key: Random key of the step.
    frames: Indices of the frames in their clips, from the loader.
    config: Probabilities.
  """
  batch, views = frames.shape
  key_order, key_self, key_view, key_augment, key_views = jax.random.split(
    key, 5
  )
  is_self = jax.random.bernoulli(key_self, config.self_target_prob, (batch,))
  context = jax.random.randint(key_view, (batch,), 0, views - 1)
  flat = augment.sample(key_augment, batch * (views - 1), config.augmentation)
  return Samples(
    views=view_order.sample_views(key_views, frames),
    order=SPLITS[config.split](key_order, batch),
    target=jnp.where(is_self, context, views - 1),
    augmentation=jax.tree.map(
      lambda x: x.reshape(batch, views - 1, *x.shape[1:]), flat
    ),
    # Not split from the key with the others, whose values it must not change.
    nuisance=~jax.random.bernoulli(
      jax.random.fold_in(key, 5), config.nuisance_dropout, (batch,)
    ),
  )


def sample_quadrants(key: PRNGKeyArray, batch: int) -> Int[Array, 'b 4']:
  """Samples the order of quadrants: two for A, then two for B."""
  return jnp.argsort(quadrant_bits(key, batch), axis=1, stable=True)


def sample_halves(key: PRNGKeyArray, batch: int) -> Int[Array, 'b 4']:
  """Samples the order of quadrants whose two sets are halves of the image."""
  halves = jnp.array([[0, 1, 2, 3], [2, 3, 0, 1], [0, 2, 1, 3], [1, 3, 0, 2]])
  return halves[jax.random.randint(key, (batch,), 0, len(halves))]


SPLITS = {'quadrants': sample_quadrants, 'halves': sample_halves}


def quadrant_bits(key: PRNGKeyArray, batch: int) -> Int[Array, 'b 4']:
  """Samples 0 for A's quadrants and 1 for B's (public code: qpatch_masks)."""
  bits = jnp.array([1, 1, 0, 0])
  return jax.vmap(lambda k: jax.random.permutation(k, bits))(
    jax.random.split(key, batch)
  )


def step_kind(seed: int, step: int, config: Config) -> StepKind:
  """Samples the kind of a step; the same on every process."""
  rng = np.random.Generator(np.random.Philox(key=[seed, step]))
  whole = rng.random() < config.unmasked_prob
  return StepKind.WHOLE if whole else StepKind.SPLIT


def step_kinds(config: Config) -> list[StepKind]:
  """Returns the kinds of steps of a run."""
  return [StepKind.SPLIT] * (config.unmasked_prob < 1) + [StepKind.WHOLE] * (
    config.unmasked_prob > 0
  )


def split_halves(
  tokens: Shaped[Array, 'b *v t c'],
  order: Int[Array, 'b 4'],
  grid: tuple[int, int],
) -> Shaped[Array, 'b2 *v half c']:
  """Gathers A's and B's tokens of every example: row 2b is A, 2b + 1 is B.

  Rows of one example stay adjacent, so that a sharded batch is not moved.
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
  """Inverts `split_halves`."""
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


def encode(
  model: XFactor,
  sets: Float[Array, 'b p n h w 3'],
  order: Int[Array, 'b 4'] | None,
  others: Float[Array, 'b p n h w 3'] | None = None,
) -> Float[Array, 'b s v z']:
  """Encodes the poses of all views from A and from B, or from whole examples.

  Args:
    model: Networks with parameters.
    sets: Input of the pose encoder; see `encoder_sets`.
    order: Order of the quadrants, or None for whole examples.
    others: Input of B if it differs from `sets`.
  """
  return _encode(model, sets, order, others)[0]


def _encode(
  model: XFactor, sets: Array, order: Array | None, others: Array | None
) -> tuple[Float[Array, 'b s v z'], Float[Array, 'b s f']]:
  """Returns poses as `encode`, and the features of the target."""
  grid, positions = model.grid(sets), model.positions(sets)
  batch, count = sets.shape[:2]
  patches = model.patches(sets)
  if order is not None:
    positions = _split_positions(positions, order, grid)
    patches = split_halves(patches, order, grid)
    if others is not None:
      second = split_halves(model.patches(others), order, grid)
      is_second = jnp.arange(2 * batch) % 2 == 1
      patches = jnp.where(
        is_second.reshape(-1, *(1,) * (patches.ndim - 1)), second, patches
      )
  # One encoder call for all sets, as independent examples.
  features = model.pose_encoder.features(
    einops.rearrange(patches, 'b p n t c -> (b p) n t c'),
    jnp.repeat(positions, count, axis=0) if len(positions) > 1 else positions,
  )
  poses = einops.rearrange(
    model.pose_encoder.poses(features), '(b p) n z -> b p n z', p=count
  )
  # The target is the last view of the last set.
  target = einops.rearrange(
    features, '(b s p) n f -> b s p n f', b=batch, p=count
  )[:, :, -1, -1]
  poses = einops.rearrange(join_sets(poses), '(b s) v z -> b s v z', b=batch)
  return poses, target


def render(
  model: XFactor,
  context: Float[Array, 'b c h w 3'],
  poses: Float[Array, 'b s v z'],
  order: Int[Array, 'b 4'] | None,
  nuisance: Float[Array, 'b s f'] | None = None,
) -> Float[Array, 'b h w 3']:
  """Renders each half of the target with the pose of the other half.

  Args:
    model: Networks with parameters.
    context: Clean views in [-1, 1]: reference, other contexts.
    poses: Poses of all views from A and from B, before the swap.
    order: Order of the quadrants, or None for whole examples.
    nuisance: Output of `Nuisance` for A and for B; it is not swapped.
  """
  height, width = context.shape[2:4]
  grid, positions = model.grid(context), model.positions(context)
  patches = model.patches(context)
  if order is not None:
    positions = _split_positions(positions, order, grid)
    patches = split_halves(patches, order, grid)
  swapped = einops.rearrange(poses[:, ::-1], 'b s v z -> (b s) v z')
  if nuisance is not None:
    nuisance = einops.rearrange(nuisance, 'b s f -> (b s) f')
  drawn = model.renderer(patches, swapped, positions, grid, nuisance)
  if order is not None:
    drawn = join_halves(drawn, order, grid)
  return layers.unpatchify(drawn, model.config.patch_size, height, width)


def _split_positions(positions: Array, order: Array, grid) -> Array:
  everywhere = jnp.broadcast_to(positions, (len(order), *positions.shape[1:]))
  return split_halves(everywhere, order, grid)


def reconstruct(
  model: XFactor,
  images: Float[Array, 'b v h w 3'],
  sets: Float[Array, 'b p n h w 3'],
  order: Int[Array, 'b 4'] | None,
  others: Float[Array, 'b p n h w 3'] | None = None,
) -> Reconstruction:
  """Encodes poses, swaps them between the halves and renders the target.

  Args:
    model: Networks with parameters.
    images: Clean views in [-1, 1]: reference, contexts, target.
    sets: Input of the pose encoder; see `encoder_sets`.
    order: Order of the quadrants, or None for whole examples.
    others: Input of B if it differs from `sets`.

  Returns:
    The rendered target, and poses [b, s, v, z] before the swap: s is 2 (from A,
    from B) or, for whole examples, 1; the reference's pose is zero.
  """
  poses = encode(model, sets, order, others)
  return Reconstruction(render(model, images[:, :-1], poses, order), poses)


def prepare(
  images: Float[Array, 'b v h w 3'],
  draws: Samples,
  config: Config,
  *,
  joint: bool = False,
) -> tuple[Float[Array, 'b v h w 3'], Float[Array, 'b p n h w 3']]:
  """Orders the views and augments the pose encoder's input."""
  images = view_order.take_views(images, _views_in_order(draws))
  return images, _augmented(images, draws, config, joint)


def _views_in_order(draws: Samples) -> Int[Array, 'b v']:
  target = view_order.take_views(draws.views, draws.target[:, None])
  return jnp.concatenate([draws.views[:, :-1], target], axis=1)


def _augmented(
  images: Array, draws: Samples, config: Config, joint: bool
) -> Float[Array, 'b p n h w 3']:
  sets = encoder_sets(images, joint)
  drawn = jax.tree.map(
    lambda x: x[:, : sets.shape[1]].reshape(-1, *x.shape[2:]),
    draws.augmentation,
  )
  flat = einops.rearrange(sets, 'b p n h w c -> (b p) n h w c')
  return augment.apply(flat, drawn, config.augmentation).reshape(sets.shape)


def loss(
  model: XFactor,
  images: Float[Array, 'b v h w 3'],
  draws: Samples,
  config: Config,
  *,
  whole: bool,
  perceptual: distances.Perceptual | None = None,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Returns the training loss of a batch and its parts.

  Args:
    model: Networks with parameters.
    images: Clean views in [-1, 1], in the loader's order.
    draws: Random choices from `sample`, for these examples.
    config: Weights and augmentation.
    whole: Whether the examples are not split in this step.
    perceptual: LPIPS, needed if its weight is above zero.
  """
  joint = model.config.joint_encoder
  others = None
  if config.shifted:
    images, moved = jnp.split(images, 2, axis=1)
    moved = view_order.take_views(moved, _views_in_order(draws))
    others = _augmented(moved, draws, config, joint)
  images, sets = prepare(images, draws, config, joint=joint)
  order = None if whole else draws.order
  poses, features = _encode(model, sets, order, others)
  if config.contrast:
    a, b = (
      einops.rearrange(x[:, 1:], 'b v z -> (b v) z')
      for x in (poses[:, 0], poses[:, 1])
    )
    total = contrast.OBJECTIVES[config.contrast](a, b)
    return total, {'loss': total}
  nuisance = None
  if model.nuisance is not None:
    kept = draws.nuisance[:, None, None]
    nuisance = jnp.where(kept, model.nuisance(features), 0.0)
  prediction = render(model, images[:, :-1], poses, order, nuisance)
  return distances.score(prediction, images[:, -1], config, perceptual)


def render_by_halves(
  model: XFactor, images: Float[Array, 'b v h w 3']
) -> Float[Array, 'b h w 3']:
  """Renders the target as in training: each half with the other half's pose.

  The pixels of a half cannot affect its own rendering, so this measures how
  well poses transfer, with a ground truth to compare with. Halves are opposite
  quadrants, the same in every example.
  """
  order = jnp.broadcast_to(jnp.array([[0, 3, 1, 2]]), (len(images), 4))
  sets = encoder_sets(images, model.config.joint_encoder)
  return reconstruct(model, images, sets, order).image
