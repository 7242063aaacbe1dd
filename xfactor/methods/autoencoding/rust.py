"""RUST (Sajjadi et al., CVPR 2023)."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xfactor import limits
from xfactor.methods.autoencoding import blocks
from xfactor.nn import attention, layers


@dataclasses.dataclass(frozen=True)
class RustConfig(blocks.Config):
  """Sizes of RUST.

  Attributes:
    pose_dim: Number of channels of a latent pose.
  """

  pose_dim: int = limits.at_least(8, 1)


class Rust(nnx.Module):
  """Scene encoder, pose encoder that sees half the target, and decoder."""

  def __init__(
    self, config: RustConfig, *, rngs: nnx.Rngs, platform: str = 'cpu'
  ):
    kernel = attention.choose_kernel(
      config.attention, platform, jnp.dtype(config.dtype)
    )
    width, patch = config.features, config.patch_channels
    kwargs = {'rngs': rngs, 'dtype': jnp.dtype(config.dtype)}
    make = {'rngs': rngs, 'kernel': kernel}
    self.config = config
    self.embed_context = layers.linear(patch, width, **kwargs)
    self.scene_encoder = blocks.Trunk(config, config.scene_layers, **make)
    self.embed_target = layers.linear(patch, width, **kwargs)
    self.pose_encoder = blocks.Trunk(config, config.encoder_layers, **make)
    self.pose = layers.linear(
      width, config.pose_dim, rngs=rngs, dtype=jnp.float32, exact=True
    )
    self.pose.kernel[...] *= config.pose_gain
    self.embed_query = layers.MLP((config.pose_dim, 4 * width, width), **kwargs)
    self.decoder = blocks.Trunk(
      config, config.decoder_layers, **make, cross=True
    )
    self.head = layers.MLP((width, 4 * width, patch), **kwargs)

  def encode(self, images: Float[Array, 'b v h w 3']) -> Float[Array, 'b v c']:
    """Estimates latent poses of all views in the scene of the first."""
    return self._poses(images, images[:, :1])

  def encode_views(
    self, images: Float[Array, 'b v h w 3']
  ) -> Float[Array, 'b v c']:
    """Estimates latent poses of all views in the scene of the contexts."""
    return self._poses(images, images[:, :-1])

  def render(
    self, context: Float[Array, 'b c h w 3'], poses: Float[Array, 'b v z']
  ) -> Float[Array, 'b h w 3']:
    """Renders the view at the last pose; context poses are ignored."""
    rows, columns = layers.grid(context, self.config.patch_size)
    places = layers.grid_positions(rows, columns)
    places = jnp.broadcast_to(places, (len(context), *places.shape))
    patches = self._decode(self._scene(context), poses[:, -1], places)
    height, width = context.shape[2:4]
    return layers.unpatchify(patches, self.config.patch_size, height, width)

  def reconstruct(
    self, images: Float[Array, 'b v h w 3'], left: Bool[Array, ' b']
  ) -> tuple[Float[Array, 'b h half 3'], Float[Array, 'b h half 3']]:
    """Renders one half of the target with the pose of the other half.

    Args:
      images: Contexts, then the target.
      left: Whether the pose is estimated from the left half, or the right one.

    Returns:
      The rendered half and the true half.
    """
    scene = self._scene(images[:, :-1])
    target = images[:, -1]
    seen, places = self._half(target, left)
    pose = self._pose(scene, seen, places)
    truth, places = self._half(target, ~left)
    patches = self._decode(scene, pose, places)
    height, half = target.shape[1], target.shape[2] // 2
    drawn, truth = (
      layers.unpatchify(x, self.config.patch_size, height, half)
      for x in (patches, truth)
    )
    return drawn, truth

  def _half(
    self, images: Float[Array, 'b h w 3'], left: Bool[Array, ' b']
  ) -> tuple[Float[Array, 'b t p'], Int[Array, 'b t 2']]:
    """Returns patches of the left or right half and their positions."""
    rows, columns = layers.grid(images, self.config.patch_size)
    half = images.shape[2] // 2
    pixels = jnp.where(
      left[:, None, None, None], images[:, :, :half], images[:, :, half:]
    )
    places = layers.grid_positions(rows, columns // 2)[None]
    shift = jnp.where(left, 0, columns // 2)[:, None]
    places = jnp.stack(
      [
        jnp.broadcast_to(places[..., 0], (len(images), places.shape[1])),
        places[..., 1] + shift,
      ],
      -1,
    )
    return layers.patchify(pixels, self.config.patch_size), places

  def _scene(self, context: Array) -> Float[Array, 'b s c']:
    width, views = self.config.features, context.shape[1]
    places = layers.grid_positions(
      *layers.grid(context, self.config.patch_size)
    )
    code = (
      blocks.sinusoids(places, width)[None]
      + blocks.view_codes(views, width)[:, None]
    )
    tokens = self.embed_context(
      layers.patchify(context, self.config.patch_size)
    )
    tokens = tokens.astype(jnp.float32) + code[None]
    return self.scene_encoder(einops.rearrange(tokens, 'b v t c -> b (v t) c'))

  def _pose(self, scene: Array, patches: Array, places: Array) -> Array:
    tokens = self.embed_target(patches).astype(jnp.float32)
    tokens = tokens + blocks.sinusoids(places, self.config.features)
    both = self.pose_encoder(jnp.concatenate([tokens, scene], axis=1))
    with jax.named_scope('pose_head'):
      return self.pose(jnp.mean(both[:, : tokens.shape[1]], axis=1))

  def _poses(self, images: Array, context: Array) -> Array:
    views = images.shape[1]
    scene = jnp.repeat(self._scene(context), views, axis=0)
    flat = einops.rearrange(images, 'b v ... -> (b v) ...')
    # As in training, the pose of a view is estimated from one half.
    seen, places = self._half(flat, jnp.ones(len(flat), bool))
    poses = self._pose(scene, seen, places)
    return einops.rearrange(poses, '(b v) z -> b v z', v=views)

  def _decode(self, scene: Array, pose: Array, places: Array) -> Array:
    code = blocks.sinusoids(places, self.config.features)
    queries = code + self.embed_query(pose)[:, None].astype(jnp.float32)
    return layers.to_picture(self.head(self.decoder(queries, scene)))
