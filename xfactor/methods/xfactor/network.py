"""XFactor: a pose encoder and a renderer (arXiv 2510.13063, section 4).

The networks do not use masks. They take sets of patches with their positions
on the grid: half sets from methods/xfactor/objective.py, whole images in
inference.
Images are float [-1, 1].
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from xfactor import limits
from xfactor.errors import UserError
from xfactor.nn import attention, layers, se3


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and numerics of XFactor; defaults are the paper's full size.

  Attributes:
    features: Width of the token stream.
    heads: Attention heads; features / heads must be a multiple of 4 (RoPE).
    patch_size: Pixels along a patch's side.
    encoder_layers: Depth of the pose encoder.
    renderer_layers: Depth of the renderer.
    pose: 'latent', or 'se3' for explicit poses (`se3`), which the renderer gets
      as rays of the pixels.
    pose_dim: Channels of a latent pose; 10 for 'se3'.
    nuisance_dim: Channels of a second latent of the target that may explain
      what is not camera motion, as in RayDer (arXiv 2605.31535); 0 in the
      publication: none. The patches that are rendered determine it, and
      training drops it in a share of the examples
      (`config.objective.nuisance_dropout`), inference always.
    joint_encoder: Whether the pose encoder sees all views at once instead of
      the reference and one view at a time.
    registers: Extra learned tokens in each view of the pose encoder; the first
      is read (32 in official checkpoints).
    position_grid: Side, in patches, of the largest grid of fixed sine position
      embeddings, added to the tokens of both networks; 0 (published) adds none
      and uses only RoPE.
    layer_scale: Initial LayerScale; the published 0.01 is for the full depth.
    tie_qk: Whether key projections start equal to query projections, so that
      tokens attend to similar ones at first; independent in the publication.
    pose_gain: Initial factor on the last kernel of the pose head; 1 in the
      publication.
    dtype: Type of matrix products and attention: 'float32' or 'bfloat16'.
    attention: 'auto' or the name of a kernel; see nn/attention.py.
    remat: Recomputation in the backward pass: 'none', 'dots' or 'full'.
  """

  features: int = limits.at_least(1024, 4)
  heads: int = limits.at_least(16, 1)
  patch_size: int = limits.at_least(16, 1)
  encoder_layers: int = limits.at_least(8, 1)
  renderer_layers: int = limits.at_least(8, 1)
  pose: str = 'latent'
  pose_dim: int = limits.at_least(256, 1)
  nuisance_dim: int = limits.at_least(0, 0)
  joint_encoder: bool = False
  registers: int = limits.at_least(16, 1)
  position_grid: int = limits.at_least(0, 0)
  layer_scale: float = limits.at_least(0.01, 0)
  tie_qk: bool = False
  pose_gain: float = limits.at_least(1.0, 0)
  dtype: str = 'bfloat16'
  attention: str = 'auto'
  remat: str = 'full'

  def __post_init__(self):
    if self.features % self.heads or self.features // self.heads % 4:
      raise UserError(
        f'config.model.features={self.features} must be '
        f'config.model.heads={self.heads} times a multiple of 4'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise UserError(
        f'config.model.dtype={self.dtype!r}: choose "float32" or "bfloat16"'
      )

    if self.pose not in ('latent', 'se3'):
      raise UserError(
        f'config.model.pose={self.pose!r}: choose "latent" or "se3"'
      )
    if self.pose == 'se3' and self.pose_dim != se3.DIM:
      raise UserError(
        f'config.model.pose_dim={self.pose_dim} must be {se3.DIM} with '
        'config.model.pose="se3"'
      )
    if self.position_grid and self.features % 4:
      raise UserError(
        f'config.model.features={self.features} must be a multiple of 4 with '
        f'config.model.position_grid={self.position_grid}'
      )

  @property
  def head_dim(self) -> int:
    return self.features // self.heads

  @property
  def patch_channels(self) -> int:
    return 3 * self.patch_size**2

  @property
  def pose_channels(self) -> int:
    """Channels of a patch's pose as input of the renderer."""
    if self.pose == 'latent':
      return self.pose_dim
    return se3.RAY * self.patch_size**2


class _Trunk(nnx.Module):
  """Multi-view layers and a final norm; shared by both networks."""

  def __init__(self, config: Config, depth: int, *, rngs, kernel: str):
    self.head_dim = config.head_dim

    def make_layer(rngs: nnx.Rngs) -> layers.MultiViewBlock:
      return layers.MultiViewBlock(
        config.features,
        config.heads,
        rngs=rngs,
        dtype=jnp.dtype(config.dtype),
        kernel=kernel,
        layer_scale=config.layer_scale,
        tie_qk=config.tie_qk,
      )

    self.position_grid = config.position_grid
    self.stack = layers.Stack(depth, make_layer, rngs=rngs, remat=config.remat)
    self.norm = layers.layer_norm(config.features, rngs=rngs)

  def __call__(
    self,
    x_BVTC: Float[Array, 'b v t c'],
    positions: Int[Array, '#b p 2'],
    read: tuple[slice | int, ...],
  ) -> Array:
    """Runs the layers; returns the normalised tokens at index `read` of BVT.

    RoPE is not applied to tokens beyond the number of `positions`.
    """
    rope = layers.rope_table(positions, self.head_dim)
    extra = x_BVTC.shape[2] - positions.shape[1]
    if self.position_grid:
      places = layers.sine_positions(
        positions, self.position_grid, x_BVTC.shape[-1]
      )
      places = jnp.pad(places, ((0, 0), (0, extra), (0, 0)))
      x_BVTC = x_BVTC + jnp.broadcast_to(places[:, None], x_BVTC.shape)
    still = jnp.stack([jnp.ones(self.head_dim), jnp.zeros(self.head_dim)], -1)
    still = jnp.broadcast_to(still, (rope.shape[0], extra, *still.shape))
    rope = jnp.concatenate([rope, still], axis=1)
    views = x_BVTC.shape[1]
    x_RTC = self.stack(
      einops.rearrange(x_BVTC.astype(jnp.float32), 'b v t c -> (b v) t c'),
      jnp.repeat(rope, views, axis=0) if len(rope) > 1 else rope,
      views,
    )
    x_BVTC = einops.rearrange(x_RTC, '(b v) t c -> b v t c', v=views)
    return layers.gelu(self.norm(x_BVTC[read]))


class PoseEncoder(nnx.Module):
  """Estimates a latent pose of each view, relative to the first view."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, kernel: str):
    width, dtype = config.features, jnp.dtype(config.dtype)
    self.embed = layers.linear(
      config.patch_channels, width, rngs=rngs, dtype=dtype
    )
    self.registers = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), (config.registers, width))
    )
    self.trunk = _Trunk(config, config.encoder_layers, rngs=rngs, kernel=kernel)
    # Full float32: the head subtracts two nearly equal numbers. In bfloat16 the
    # pose is lost completely, and TF32 costs 2 % of it.
    self.head = layers.MLP(
      (2 * width, 4 * width, width, config.pose_dim),
      rngs=rngs,
      dtype=jnp.float32,
      exact=True,
    )
    self.head.layers[-1].kernel[...] *= config.pose_gain

  def __call__(
    self,
    patches: Float[Array, 'b v t p'],
    positions: Int[Array, '#b t 2'],
  ) -> Float[Array, 'b v c']:
    """Returns latent poses; that of the first view is exactly zero."""
    return self.poses(self.features(patches, positions))

  def poses(self, z: Float[Array, 'b v f']) -> Float[Array, 'b v c']:
    """Returns the latent poses of `features`."""
    reference = jnp.broadcast_to(z[:, :1], z.shape)
    with jax.named_scope('pose_head'):
      return self.head(jnp.concatenate([z, reference], -1)) - self.head(
        jnp.concatenate([reference, reference], -1)
      )

  def features(self, patches: Array, positions: Array) -> Array:
    """Returns the register token [b, v, features] that the head reads."""
    tokens = self.embed(patches).astype(jnp.float32)
    registers = jnp.broadcast_to(
      self.registers[...], (*tokens.shape[:2], *self.registers.shape)
    )
    x_BVTC = jnp.concatenate([tokens, registers], axis=2)
    return self.trunk(x_BVTC, positions, jnp.s_[:, :, patches.shape[2]])


class Renderer(nnx.Module):
  """Renders the target's patches from context patches and latent poses."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, kernel: str):
    width, dtype = config.features, jnp.dtype(config.dtype)
    patch, pose = config.patch_channels, config.pose_channels
    self.config = config
    self.embed_context = layers.MLP(
      (patch + pose, 4 * width, width), rngs=rngs, dtype=dtype
    )
    self.embed_target = layers.MLP(
      (pose, 4 * width, width), rngs=rngs, dtype=dtype
    )
    self.trunk = _Trunk(
      config, config.renderer_layers, rngs=rngs, kernel=kernel
    )
    self.head = layers.MLP(
      (width, 4 * width, width, patch), rngs=rngs, dtype=dtype
    )

  def __call__(
    self,
    context: Float[Array, 'b c t p'],
    poses: Float[Array, 'b v z'],
    positions: Int[Array, '#b t 2'],
    grid: tuple[int, int],
    nuisance: Float[Array, 'b f'] | None = None,
  ) -> Float[Array, 'b t p']:
    """Renders the view at the last pose.

    Args:
      context: Patches of the context views.
      poses: Poses of the contexts, then of the rendered view.
      positions: Positions of the patches in all views.
      grid: Rows and columns of patches in a view.
      nuisance: Addition to the tokens of the target, from `Nuisance`.
    """
    tokens = context.shape[2]
    if self.config.pose == 'se3':
      rays = se3.plucker_patches(poses, positions, grid, self.config.patch_size)
      context_poses = rays[:, :-1]
      z_target = self.embed_target(rays[:, -1:])
    else:
      context_poses = einops.repeat(poses[:, :-1], 'b v z -> b v t z', t=tokens)
      z_target = einops.repeat(
        self.embed_target(poses[:, -1:]), 'b v c -> b v t c', t=tokens
      )
    if nuisance is not None:
      z_target = z_target + nuisance[:, None, None]
    z_context = self.embed_context(
      jnp.concatenate([context, context_poses], axis=-1)
    )
    x_BVTC = jnp.concatenate([z_context, z_target], axis=1)
    y = self.head(self.trunk(x_BVTC, positions, jnp.s_[:, -1]))
    return layers.to_picture(y)


class Nuisance(nnx.Module):
  """The second latent of a target, see `Config.nuisance_dim`."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs):
    width, kwargs = config.features, {'dtype': jnp.dtype(config.dtype)}
    self.head = layers.MLP(
      (width, width, config.nuisance_dim), rngs=rngs, **kwargs
    )
    self.embed_target = layers.linear(
      config.nuisance_dim, width, rngs=rngs, **kwargs
    )

  def __call__(self, z: Float[Array, '*b f']) -> Float[Array, '*b f']:
    """Maps the target's `PoseEncoder.features` to an input of `Renderer`."""
    return self.embed_target(self.head(z))


class XFactor(nnx.Module):
  """Pose encoder and renderer, applied to whole images."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, platform: str = 'cpu'):
    kernel = attention.choose_kernel(
      config.attention, platform, jnp.dtype(config.dtype)
    )
    self.config = config
    self.pose_encoder = PoseEncoder(config, rngs=rngs, kernel=kernel)
    self.renderer = Renderer(config, rngs=rngs, kernel=kernel)
    # The last one: the others start as without it.
    self.nuisance = Nuisance(config, rngs=rngs) if config.nuisance_dim else None

  def encode(self, images: Float[Array, 'b v h w 3']) -> Float[Array, 'b v c']:
    """Estimates latent poses relative to the first view; images in [-1, 1]."""
    return self.pose_encoder(self.patches(images), self.positions(images))

  def encode_views(
    self, images: Float[Array, 'b v h w 3']
  ) -> Float[Array, 'b v z']:
    """Same as `encode`, in pairs with the first view unless jointly."""
    sets = encoder_sets(images, self.config.joint_encoder)
    poses = self.encode(einops.rearrange(sets, 'b p n h w c -> (b p) n h w c'))
    return join_sets(
      einops.rearrange(poses, '(b p) n z -> b p n z', b=len(images))
    )

  def render(
    self,
    context: Float[Array, 'b c h w 3'],
    poses: Float[Array, 'b v z'],
  ) -> Float[Array, 'b h w 3']:
    """Renders the view at the last pose, [-1, 1]; contexts come first."""
    height, width = context.shape[2:4]
    patches = self.renderer(
      self.patches(context),
      poses,
      self.positions(context),
      self.grid(context),
    )
    return layers.unpatchify(patches, self.config.patch_size, height, width)

  def patches(self, images: Float[Array, '*b h w 3']) -> Float[Array, '*b t p']:
    return layers.patchify(images, self.config.patch_size)

  def positions(self, images: Float[Array, '*b h w 3']) -> Int[Array, '1 t 2']:
    grid = self.grid(images)
    check_grid(self.config, grid)
    return layers.grid_positions(*grid)[None]

  def grid(self, images: Float[Array, '*b h w 3']) -> tuple[int, int]:
    return layers.grid(images, self.config.patch_size)


def check_grid(config: Config, grid: tuple[int, int]) -> None:
  """Raises UserError if the position embeddings are for a smaller grid."""
  if config.position_grid and max(grid) > config.position_grid:
    raise UserError(
      f'pictures of {grid[0]} x {grid[1]} patches need '
      f'config.model.position_grid of at least {max(grid)}, not '
      f'{config.position_grid}; raise it, or set it to 0 to disable it'
    )


def encoder_sets(
  images: Float[Array, 'b v h w 3'], joint: bool
) -> Float[Array, 'b p n h w 3']:
  """Returns sets for the pose encoder: pairs, or all views of an example."""
  return images[:, None] if joint else encoder_pairs(images)


def join_sets(poses: Float[Array, 'b p n z']) -> Float[Array, 'b v z']:
  """Joins the poses of an example's sets, which share the first view."""
  others = einops.rearrange(poses[:, :, 1:], 'b p n z -> b (p n) z')
  return jnp.concatenate([poses[:, :1, 0], others], axis=1)


def encoder_pairs(
  images: Float[Array, 'b v h w 3'],
) -> Float[Array, 'b p 2 h w 3']:
  """Returns (reference, view) for every other view."""
  reference = jnp.broadcast_to(images[:, :1], images[:, 1:].shape)
  return jnp.stack([reference, images[:, 1:]], axis=2)
