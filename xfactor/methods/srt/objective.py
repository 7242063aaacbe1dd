"""The posed objective: colours of rays of other views of a scene (SRT).

The host sends whole uint8 views and their cameras. Rays are sampled and
computed, and coordinates made canonical, on the device, where this costs next
to nothing: a scene of MultiShapeNet takes 2.3 MB this way, and 9.5 MB as
float32 pixels and rays.

A batch holds images, uint8 [b, v, h, w, 3], intrinsics [b, v, 4] and
world_to_camera [b, v, 3, 4]. The first `inputs` views are encoded; rays are
sampled from the others, or from all. Colours are in [0, 1].
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from xfactor import limits
from xfactor.geometry import cameras
from xfactor.methods.srt import network


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of the loss; defaults are those of the published runs.

  Attributes:
    rays: Number of rays per scene and update.
    canonical: Whether coordinates are relative to the first input camera
      instead of the world.
    input_stride: Stride of the encoded pixels; targets keep all pixels.
    include_inputs: Whether rays are also sampled from the input views.
    inputs: Number of encoded views; `config.data.contexts`.
    volume: Sizes of the model if it samples points along rays; None for light
      fields.
  """

  rays: int = limits.at_least(8192, 1)
  canonical: bool = True
  input_stride: int = limits.at_least(1, 1)
  include_inputs: bool = False
  inputs: int = 1
  volume: network.Config | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """Random choices of a step.

  Attributes:
    pixels: Indices into all pixels of the target views, in row-major order.
    noise: Positions of the samples along the rays; None for light fields.
  """

  pixels: Int[Array, '*parts b r']
  noise: network.Noise | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
  """Inputs of the encoder; colours in [0, 1], directions of unit length."""

  images: Float[Array, 'b k h w 3']
  origins: Float[Array, 'b k 3']
  directions: Float[Array, 'b k h w 3']


def strided(size: int, stride: int) -> int:
  """Returns the encoded pixels along a side of `size` pixels."""
  return len(range(stride // 2, size, stride))


def sample(
  key: PRNGKeyArray, shape: tuple[int, ...], config: Config
) -> Samples:
  """Samples the rays of a step.

  Args:
    key: Random key of the step.
    shape: Shape of the images, [b, v, h, w, 3].
    config: Number of rays and the views they come from.
  """
  key_pixels, key_noise = jax.random.split(key)
  batch, views, height, width = shape[:4]
  targets = views - first_target(config)
  return Samples(
    choose_pixels(key_pixels, batch, targets * height * width, config.rays),
    config.volume
    and network.sample_noise(key_noise, (batch, config.rays), config.volume),
  )


def choose_pixels(
  key: PRNGKeyArray, batch: int, population: int, count: int
) -> Int[Array, '{batch} {count}']:
  """Samples distinct pixels of each example, evenly spread.

  One from each of `count` equal segments, all shifted by one cyclic offset:
  every pixel is equally likely, as in sampling without replacement, but without
  a sort, and the loss varies less between steps.
  """
  key_place, key_turn = jax.random.split(key)
  edges = np.arange(count + 1) * population // count
  place = jax.random.randint(
    key_place,
    (batch, count),
    jnp.asarray(edges[None, :-1], jnp.int32),
    jnp.asarray(edges[None, 1:], jnp.int32),
  )
  turn = jax.random.randint(key_turn, (batch, 1), 0, population)
  return (place + turn) % population


def first_target(config: Config) -> int:
  """Returns the index of the first view that rays are sampled from."""
  return 0 if config.include_inputs else config.inputs


def to_canonical(
  world_to_camera: Float[Array, 'b v 3 4'],
) -> Float[Array, 'b v 3 4']:
  """Transforms poses to the coordinates of the first view's camera."""
  return cameras.relative_to(world_to_camera, world_to_camera[:, :1], jnp)


def inputs_of(
  images: UInt8[Array, 'b k h w 3'],
  intrinsics: Float[Array, 'b k 4'],
  world_to_camera: Float[Array, 'b k 3 4'],
  stride: int = 1,
) -> Inputs:
  """Builds the encoder's inputs: every `stride`th pixel and its ray."""
  height, width = images.shape[2:4]
  rows, columns = (jnp.arange(stride // 2, n, stride) for n in (height, width))
  picked = images[:, :, stride // 2 :: stride, stride // 2 :: stride]
  uv = jnp.stack(
    jnp.meshgrid((columns + 0.5) / width, (rows + 0.5) / height), axis=-1
  )
  shape = (*picked.shape[:4],)
  origins, directions = cameras.rays_through(
    jnp.broadcast_to(uv, (*shape, 2)),
    jnp.broadcast_to(intrinsics[:, :, None, None], (*shape, 4)),
    jnp.broadcast_to(world_to_camera[:, :, None, None], (*shape, 3, 4)),
    jnp,
  )
  return Inputs(to_unit(picked), origins[:, :, 0, 0], directions)


def targets_of(
  images: UInt8[Array, 'b t h w 3'],
  intrinsics: Float[Array, 'b t 4'],
  world_to_camera: Float[Array, 'b t 3 4'],
  pixels: Int[Array, 'b r'],
) -> tuple[Float[Array, 'b r 3'], Float[Array, 'b r 3'], Float[Array, 'b r 3']]:
  """Returns colours [0, 1], origins and unit directions of pixels."""
  height, width = images.shape[2:4]
  view, place = jnp.divmod(pixels, height * width)
  row, column = jnp.divmod(place, width)
  origins, directions = cameras.rays_through(
    jnp.stack([(column + 0.5) / width, (row + 0.5) / height], axis=-1),
    jnp.take_along_axis(intrinsics, view[..., None], axis=1),
    jnp.take_along_axis(world_to_camera, view[..., None, None], axis=1),
    jnp,
  )
  return pick(images, pixels), origins, directions


def pick(
  images: UInt8[Array, 'b t h w 3'], pixels: Int[Array, 'b r']
) -> Float[Array, 'b r 3']:
  """Returns the colours [0, 1] of pixels, indexed through all views."""
  flat = einops.rearrange(images, 'b t h w c -> b (t h w) c')
  return to_unit(jnp.take_along_axis(flat, pixels[..., None], axis=1))


def to_unit(images: UInt8[Array, '*n']) -> Float[Array, '*n']:
  """Converts uint8 [0, 255] to float32 [0, 1]."""
  return images.astype(jnp.float32) / 255


def encode(
  model: network.SRT,
  images: UInt8[Array, 'b k h w 3'],
  intrinsics: Float[Array, 'b k 4'],
  world_to_camera: Float[Array, 'b k 3 4'],
  config: Config,
) -> Float[Array, 'b t c']:
  """Encodes views to scene tokens; poses come from `poses_of`."""
  inputs = inputs_of(images, intrinsics, world_to_camera, config.input_stride)
  return model.encode(inputs.images, inputs.origins, inputs.directions)


def at_once(
  model: network.Config, tokens: int, *, scenes: int = 1, budget: int = 2**29
) -> int:
  """Returns the rays of each scene that are rendered at once, at least one.

  Args:
    model: Sizes of the networks.
    tokens: Number of tokens of a scene.
    scenes: Number of scenes on one device.
    budget: Bytes for float32 activations of attention and MLPs, with a kernel
      that stores the attention weights.
  """
  samples = 1
  if model.decoder == 'nerf':
    samples = model.coarse_samples + model.fine_samples
  floats = 2 * (tokens * model.decoder_heads + model.mlp_features)
  return max(1, budget // (4 * floats * samples * scenes))


def poses_of(
  world_to_camera: Float[Array, 'b v 3 4'], config: Config
) -> Float[Array, 'b v 3 4']:
  """Transforms poses to the model's coordinates; inputs come first."""
  return to_canonical(world_to_camera) if config.canonical else world_to_camera


def loss(
  model: network.SRT, batch: dict[str, Array], draws: Samples, config: Config
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Returns the mean squared error of the rays' colours, and its parts.

  For volumes the colours of the coarse samples are scored as well. `psnr` is
  computed over the rays of each scene and averaged over scenes.
  """
  k, first = config.inputs, first_target(config)
  poses = poses_of(batch['world_to_camera'], config)
  images, intrinsics = batch['images'], batch['intrinsics']
  tokens = encode(model, images[:, :k], intrinsics[:, :k], poses[:, :k], config)
  truth, origins, directions = targets_of(
    images[:, first:], intrinsics[:, first:], poses[:, first:], draws.pixels
  )
  drawn = model.decode(tokens, origins, directions, draws.noise)
  error = jnp.mean((drawn.color - truth) ** 2, axis=(1, 2))
  parts = {'mse': jnp.mean(error), 'psnr': jnp.mean(-10 * jnp.log10(error))}
  total = parts['mse']
  if drawn.coarse_color is not None:
    parts['coarse_mse'] = jnp.mean((drawn.coarse_color - truth) ** 2)
    total += parts['coarse_mse']
  return total, {'loss': total, **parts}
