"""RayZer (Jiang et al., ICCV 2025)."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xfactor import limits
from xfactor.methods.autoencoding import blocks
from xfactor.nn import attention, layers, se3


@dataclasses.dataclass(frozen=True)
class RayZerConfig(blocks.Config):
  """Sizes of RayZer.

  Attributes:
    scene_tokens: Number of learned tokens that encode the scene.
  """

  scene_tokens: int = limits.at_least(3072, 1)

  @property
  def pose_dim(self) -> int:
    return se3.DIM


class RayZer(nnx.Module):
  """Estimates all cameras, encodes the scene and decodes target rays."""

  def __init__(
    self, config: RayZerConfig, *, rngs: nnx.Rngs, platform: str = 'cpu'
  ):
    kernel = attention.choose_kernel(
      config.attention, platform, jnp.dtype(config.dtype)
    )
    width, patch = config.features, config.patch_channels
    rays = se3.RAY * config.patch_size**2
    kwargs = {'rngs': rngs, 'dtype': jnp.dtype(config.dtype)}
    make = {'rngs': rngs, 'kernel': kernel}
    self.config = config
    self.embed_view = layers.linear(patch, width, **kwargs)
    self.camera = nnx.Param(_small(rngs, (width,)))
    self.camera_estimator = blocks.Trunk(config, config.encoder_layers, **make)
    heads = {'rngs': rngs, 'dtype': jnp.float32, 'exact': True}
    self.pose = layers.MLP((2 * width, width, se3.DIM - 1), **heads)
    self.pose.layers[-1].kernel[...] *= config.pose_gain
    self.focal = layers.MLP((width, width, 1), **heads)
    self.embed_context = layers.MLP((patch + rays, width, width), **kwargs)
    self.embed_target = layers.linear(rays, width, **kwargs)
    self.scene = nnx.Param(_small(rngs, (config.scene_tokens, width)))
    self.scene_encoder = blocks.Trunk(config, config.scene_layers, **make)
    self.decoder = blocks.Trunk(config, config.decoder_layers, **make)
    self.head = layers.linear(width, patch, **kwargs)

  def encode(self, images: Float[Array, 'b v h w 3']) -> Float[Array, 'b v c']:
    """Estimates the poses (`se3`) of all views relative to the first."""
    width, views = self.config.features, images.shape[1]
    code = blocks.view_codes(views, width)
    places = layers.grid_positions(*layers.grid(images, self.config.patch_size))
    tokens = self.embed_view(layers.patchify(images, self.config.patch_size))
    tokens = tokens.astype(jnp.float32) + (
      blocks.sinusoids(places, width)[None, None] + code[None, :, None]
    )
    camera = (self.camera[...][None] + code)[None, :, None]
    camera = jnp.broadcast_to(camera, (len(images), *camera.shape[1:]))
    x_BVTC = jnp.concatenate([camera, tokens], axis=2)
    flat = einops.rearrange(x_BVTC, 'b v t c -> b (v t) c')
    y_BVTC = einops.rearrange(
      self.camera_estimator(flat), 'b (v t) c -> b v t c', v=views
    )
    cameras = y_BVTC[:, :, 0]
    reference = jnp.broadcast_to(cameras[:, :1], cameras.shape)
    with jax.named_scope('pose_head'):
      pose = self.pose(jnp.concatenate([cameras, reference], -1))
      poses = jnp.concatenate([pose, self.focal(reference)], -1)
    return poses.at[:, 0].set(0)

  def encode_views(
    self, images: Float[Array, 'b v h w 3']
  ) -> Float[Array, 'b v c']:
    """Same as `encode`: all views are estimated jointly."""
    return self.encode(images)

  def render(
    self, context: Float[Array, 'b c h w 3'], poses: Float[Array, 'b v z']
  ) -> Float[Array, 'b h w 3']:
    """Renders the view at the last pose, [-1, 1]; contexts come first."""
    config = self.config
    grid = layers.grid(context, config.patch_size)
    places = layers.grid_positions(*grid)[None]
    rays = se3.plucker_patches(poses, places, grid, config.patch_size)
    pixels = layers.patchify(context, config.patch_size)
    given = self.embed_context(jnp.concatenate([pixels, rays[:, :-1]], -1))
    given = einops.rearrange(given, 'b v t c -> b (v t) c').astype(jnp.float32)
    scene = jnp.broadcast_to(self.scene[...], (len(context), *self.scene.shape))
    scene = self.scene_encoder(jnp.concatenate([scene, given], axis=1))
    target = self.embed_target(rays[:, -1]).astype(jnp.float32)
    both = jnp.concatenate([target, scene[:, : config.scene_tokens]], axis=1)
    y = self.head(self.decoder(both)[:, : target.shape[1]])
    height, width = context.shape[2:4]
    return layers.unpatchify(
      layers.to_picture(y), config.patch_size, height, width
    )

  def reconstruct(
    self, images: Float[Array, 'b v h w 3'], left: Bool[Array, ' b']
  ) -> tuple[Float[Array, 'b h w 3'], Float[Array, 'b h w 3']]:
    """Returns the rendered and the true target, the last view."""
    del left
    return self.render(images[:, :-1], self.encode(images)), images[:, -1]


def _small(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
  return 0.02 * jax.random.normal(rngs.params(), shape)
