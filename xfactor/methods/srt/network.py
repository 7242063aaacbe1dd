"""Scene representation transformers: SRT, improved SRT and volumetric SRT.

Posed views are encoded to a set of tokens, from which a ray's colour is decoded
by cross-attention (SRT: arXiv 2111.13152; improved: OSRT, arXiv 2206.06922,
appendix A.4). All follow the public code stelzner/srt, except that keys of the
volumetric decoder have the tokens' width: the public one cannot be built.
Images are float [0, 1]; all cameras of a scene share one coordinate system.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from xfactor import limits
from xfactor.errors import UserError
from xfactor.methods.srt import volume
from xfactor.nn import attention, block, layers, sharding

# Variation of the sines of rays relative to that of colours.
_COLOR_GAIN = 6.0
# Initial gain of cross-attention, so that tokens and rays start at the same
# scale.
_CROSS_GAIN = 3.0
# Channels of the layer before a colour or density.
HEAD_FEATURES = 128


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and numerics; defaults are the published SRT's.

  Attributes:
    encoder: 'srt', with learned embeddings of a token's pixel and of the first
      view, or 'isrt', without them.
    decoder: 'srt' or 'isrt' for light fields, or 'nerf' for volumes.
    features: Width of the tokens.
    heads: Attention heads of the encoder.
    decoder_heads: Attention heads of the decoder; each is features /
      decoder_heads wide.
    mlp_features: Inner width of feed-forward layers and of the 'isrt' head.
    conv_blocks: Number of blocks that halve the image; 3 in the published ISRT.
    conv_features: Channels of the first convolution.
    encoder_layers: Number of self-attention layers; 5 in the published ISRT.
    decoder_layers: Number of cross-attention layers.
    rows, columns: Largest grid of tokens of a view, for 'srt'.
    start_octave: First octave of encoded positions; coordinates up to
      2^-start_octave are unique.
    octaves: Octaves per encoded coordinate; directions start at octave 0.
    coarse_samples: Evenly spaced samples per ray, for 'nerf'.
    fine_samples: Samples per ray in proportion to the coarse weights. With 0,
      the coarse colours are returned, not blended over white; with 1, the
      sample is at the coarse expected depth.
    min_dist, max_dist: Range of distances of samples from the camera.
    min_z: Height of the plane at which rays end.
    fine_net: Whether fine samples have a network of their own.
    dtype: Type of matrix products and attention: 'float32' or 'bfloat16'.
    attention: 'auto' or the name of a kernel; see nn/attention.py.
    remat: Recomputation in the backward pass: 'none', 'dots' or 'full'.
  """

  encoder: str = 'srt'
  decoder: str = 'srt'
  features: int = limits.at_least(768, 4)
  heads: int = limits.at_least(12, 1)
  decoder_heads: int = limits.at_least(12, 1)
  mlp_features: int = 1536
  conv_blocks: int = limits.at_least(4, 1)
  conv_features: int = 96
  encoder_layers: int = limits.at_least(10, 1)
  decoder_layers: int = limits.at_least(2, 1)
  rows: int = 15
  columns: int = 20
  start_octave: int = -5
  octaves: int = 15
  coarse_samples: int = limits.at_least(128, 1)
  fine_samples: int = limits.at_least(64, 0)
  min_dist: float = 2.0
  max_dist: float = 4.0
  min_z: float | None = None
  fine_net: bool = False
  dtype: str = 'bfloat16'
  attention: str = 'auto'
  remat: str = 'full'

  def __post_init__(self):
    for name, choices in (
      ('encoder', ('srt', 'isrt')),
      ('decoder', ('srt', 'isrt', 'nerf')),
      ('dtype', ('float32', 'bfloat16')),
    ):
      if getattr(self, name) not in choices:
        raise UserError(
          f'config.model.{name}={getattr(self, name)!r}: choose one of '
          f'{", ".join(choices)}'
        )
    for name in ('heads', 'decoder_heads'):
      if self.features % getattr(self, name):
        raise UserError(
          f'config.model.features={self.features} must be a multiple of '
          f'config.model.{name}={getattr(self, name)}'
        )
    if self.decoder == 'nerf' and self.coarse_samples < 2:
      raise UserError(
        f'config.model.coarse_samples={self.coarse_samples} must be at least 2'
      )

  @property
  def point_features(self) -> int:
    """Channels of an encoded point."""
    return 3 * 2 * self.octaves

  @property
  def ray_features(self) -> int:
    """Channels of an encoded ray: its position and its direction."""
    return 2 * self.point_features

  @property
  def channels(self) -> list[int]:
    """Channels before the first and after each convolution.

    The second of each pair doubles the channels and halves the image.
    """
    outputs = range(2 * self.conv_blocks)
    return [3 + self.ray_features] + [
      self.conv_features * 2 ** ((i + 1) // 2) for i in outputs
    ]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
  """Positions of samples in their segments of a ray, uniform in [0, 1).

  Attributes:
    coarse: float32 [b, r, n].
    fine: float32 [b, r, m].
  """

  coarse: Any
  fine: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rendered:
  """Rendered rays; all fields except `color` are for 'nerf' only.

  Attributes:
    color: float32 [b, r, 3], [0, 1]; 'isrt' may exceed that range.
    alpha: float32 [b, r], opacity.
    depth: float32 [b, r], expected distance.
    coarse_color: `color` of the coarse samples; None without fine ones.
    coarse_depth: `depth` of the coarse samples; None without fine ones.
  """

  color: Any
  alpha: Any = None
  depth: Any = None
  coarse_color: Any = None
  coarse_depth: Any = None


def sample_noise(
  key: PRNGKeyArray, shape: tuple[int, ...], config: Config
) -> Noise | None:
  """Samples the noise of rays of this shape; None for light fields."""
  if config.decoder != 'nerf':
    return None
  coarse, fine = jax.random.split(key)
  return Noise(
    jax.random.uniform(coarse, (*shape, config.coarse_samples)),
    jax.random.uniform(fine, (*shape, config.fine_samples)),
  )


def token_grid(config: Config, height: int, width: int) -> tuple[int, int]:
  """Returns rows and columns of a view's tokens; partial tokens are padded."""
  stride = 2**config.conv_blocks
  return -(-height // stride), -(-width // stride)


def check_size(config: Config, height: int, width: int) -> None:
  """Raises UserError if a view has more tokens than learned embeddings."""
  rows, columns = token_grid(config, height, width)
  if config.encoder == 'srt' and (
    rows > config.rows or columns > config.columns
  ):
    stride = 2**config.conv_blocks
    raise UserError(
      f'views of {width} x {height} pixels are larger than '
      f'{stride * config.columns} x {stride * config.rows}, the most that '
      f'config.model.columns={config.columns} and config.model.rows='
      f'{config.rows} allow; raise them to {columns} and {rows}, or set '
      'config.model.encoder="isrt"'
    )


def positional_encoding(
  x: Float[Array, '*b c'], start: int, octaves: int = 15
) -> Float[Array, '*b e']:
  """Sines of each coordinate times pi 2^octave, then cosines.

  The first octave is `start`. The highest octaves need float32.
  """
  scales = np.pi * 2.0 ** np.arange(start, start + octaves)
  angles = x[..., None]
  angles = angles * layers.along_last(jnp.asarray(scales, x.dtype), angles)
  angles = einops.rearrange(angles, '... c o -> ... (c o)')
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def _torch_uniform(fan_in: int, gain: float = 1):
  """PyTorch's initialiser of weights and biases of linear layers."""
  limit = gain / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


def linear(
  din: int,
  dout: int,
  *,
  rngs: nnx.Rngs,
  dtype: DTypeLike,
  use_bias: bool = True,
  gain: float = 1,
  exact: bool = False,
  rows: bool = False,
) -> nnx.Linear:
  """Dense layer with PyTorch's initialisers; `gain` scales the kernel."""
  return layers.linear(
    din,
    dout,
    rngs=rngs,
    dtype=dtype,
    use_bias=use_bias,
    kernel_init=_torch_uniform(din, gain),
    bias_init=_torch_uniform(din),
    exact=exact,
    rows=rows,
  )


def layer_norm(features: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """LayerNorm with PyTorch's epsilon and float32 statistics and output."""
  return nnx.LayerNorm(features, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)


def gelu(x: Array) -> Array:
  """Exact GELU, with erf."""
  return jax.nn.gelu(x, approximate=False)


class MLP(nnx.Module):
  """Dense layers with an activation between them.

  A last layer of its own dtype, float32, is multiplied in full precision.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    activation: Callable[[Array], Array],
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    last_dtype: DTypeLike | None = None,
  ):
    inner = {'dtype': dtype}
    last = {'dtype': last_dtype, 'exact': True} if last_dtype else inner
    kinds = [inner] * (len(sizes) - 2) + [last]
    self.activation = activation
    self.layers = nnx.List(
      [
        linear(din, dout, rngs=rngs, rows=i > 0, **kind)
        for i, (din, dout, kind) in enumerate(
          zip(sizes[:-1], sizes[1:], kinds, strict=True)
        )
      ]
    )

  def __call__(self, x: Float[Array, '*b i']) -> Float[Array, '*b o']:
    for i, layer in enumerate(self.layers):
      x = layer(self.activation(x) if i else x)
    return x


class Conv(nnx.Module):
  """Kernel of a 3 x 3 convolution without bias, initialised as He et al."""

  def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
    init = nnx.initializers.he_uniform()
    self.kernel = nnx.Param(init(rngs.params(), (3, 3, din, dout)))


def convolve(
  x: Float[Array, 'n h w i'], kernel: Float[Array, '3 3 i o'], stride: int = 1
) -> Float[Array, 'n y x o']:
  """Convolves with one pixel of zero padding."""
  return jax.lax.conv_general_dilated(
    x,
    sharding.gather(kernel.astype(x.dtype)),
    window_strides=(stride, stride),
    padding=((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def convolve_constant(
  x: Float[Array, 'n i'], kernel: Float[Array, '3 3 i o'], size: tuple[int, int]
) -> Float[Array, 'n h w o']:
  """`convolve` for constant images of at least 2 x 2 pixels.

  The result varies only at the border, where the padding enters.
  """
  x = jnp.broadcast_to(x[:, None, None], (x.shape[0], 3, 3, x.shape[1]))
  x = convolve(x, kernel)
  for axis, length in enumerate(size, start=1):
    first, middle, last = jnp.split(x, 3, axis)
    middle = jnp.repeat(middle, length - 2, axis)
    x = jnp.concatenate([first, middle, last], axis)
  return x


class Block(block.Block):
  """A block with PyTorch's initialisers, and its own width inside."""

  def __init__(
    self,
    width: int,
    config: Config,
    *,
    rngs: nnx.Rngs,
    kernel: str,
    cross: bool,
  ):
    inner = config.features
    dtype = jnp.dtype(config.dtype)
    kwargs = {'rngs': rngs, 'dtype': dtype, 'gain': _CROSS_GAIN if cross else 1}
    self.kernel = kernel
    self.heads = config.decoder_heads if cross else config.heads
    self.norm_attention = layer_norm(width, rngs=rngs)
    if cross:
      self.q = linear(width, inner, use_bias=False, rngs=rngs, dtype=dtype)
      self.kv = linear(config.features, 2 * inner, use_bias=False, **kwargs)
    else:
      self.qkv = linear(width, 3 * inner, use_bias=False, **kwargs)
    self.out = linear(inner, width, rows=True, **kwargs)
    self.norm_mlp = layer_norm(width, rngs=rngs)
    sizes = width, config.mlp_features, width
    self.mlp = MLP(sizes, gelu, rngs=rngs, dtype=dtype)


class Transformer(layers.Stack):
  """Scanned blocks of the encoder or of a decoder (`cross`)."""

  def __init__(
    self,
    width: int,
    depth: int,
    config: Config,
    *,
    rngs: nnx.Rngs,
    kernel: str,
    cross: bool = False,
  ):
    def make_block(rngs):
      return Block(width, config, rngs=rngs, kernel=kernel, cross=cross)

    super().__init__(depth, make_block, rngs=rngs, remat=config.remat)


class Encoder(nnx.Module):
  """Convolutions of each view, then attention over the tokens of all views.

  With the public code's initialisation all scenes start with similar tokens,
  and the decoder learns to ignore them: each PyTorch convolution scales its
  input by 0.4, and 3 colours, which vary little, compete with 180 sines of
  rays. Here colours start at the same scale as rays; see `Conv` as well.
  """

  def __init__(self, config: Config, *, rngs: nnx.Rngs, kernel: str):
    width, self.dtype = config.features, jnp.dtype(config.dtype)
    self.start_octave, self.octaves = config.start_octave, config.octaves
    self.convs = nnx.List(
      [
        Conv(din, dout, rngs=rngs)
        for din, dout in itertools.pairwise(config.channels)
      ]
    )
    gain = _COLOR_GAIN * math.sqrt(config.ray_features / 3)
    first = self.convs[0].kernel
    first[...] = first[...].at[:, :, :3].multiply(gain)
    self.project = linear(
      config.channels[-1], width, rngs=rngs, dtype=self.dtype
    )
    self.embed = config.encoder == 'srt'
    if self.embed:
      for name, shape in (
        ('pixel_embedding', (config.rows, config.columns, width)),
        ('canonical_camera', (width,)),
        ('other_camera', (width,)),
      ):
        setattr(self, name, nnx.Param(jax.random.normal(rngs.params(), shape)))
    self.stack = Transformer(
      width, config.encoder_layers, config, rngs=rngs, kernel=kernel
    )

  def __call__(
    self,
    images: Float[Array, 'b v h w 3'],
    origins: Float[Array, 'b v 3'],
    directions: Float[Array, 'b v h w 3'],
  ) -> Float[Array, 'b t c']:
    folded = (
      einops.rearrange(x, 'b v ... -> (b v) ...')
      for x in (images, origins, directions)
    )
    x = self._convolutions(*folded)
    x_BVHWC = einops.rearrange(
      self.project(x).astype(jnp.float32),
      '(b v) h w c -> b v h w c',
      v=images.shape[1],
    )
    if self.embed:
      x_BVHWC = x_BVHWC + self._embedding(x_BVHWC.shape[1:])[None]
    return self.stack(einops.rearrange(x_BVHWC, 'b v h w c -> b (v h w) c'))

  def _convolutions(
    self, images: Array, origins: Array, directions: Array
  ) -> Array:
    # Channels: colour of a pixel, position of its view, ray of the pixel.
    rays = positional_encoding(directions, 0, self.octaves)
    x = jnp.concatenate([images, rays], -1).astype(self.dtype)
    places = positional_encoding(origins, self.start_octave, self.octaves)
    places = places.astype(self.dtype)
    color, place, ray = jnp.split(
      self.convs[0].kernel[...], (3, 3 + places.shape[-1]), axis=2
    )
    x = convolve(x, jnp.concatenate([color, ray], 2))
    # The position is constant over a view: half of the channels are free.
    x = jax.nn.relu(x + convolve_constant(places, place, x.shape[1:3]))
    for i, conv in enumerate(self.convs[1:], start=1):
      x = jax.nn.relu(convolve(x, conv.kernel[...], stride=1 + i % 2))
    return x

  def _embedding(self, shape: tuple[int, ...]) -> Float[Array, 'v h w c']:
    views, rows, columns, _ = shape
    camera = jnp.stack(
      [self.canonical_camera[...]] + [self.other_camera[...]] * (views - 1)
    )
    pixel = self.pixel_embedding[:rows, :columns]
    return camera[:, None, None] + pixel[None]


class RayDecoder(nnx.Module):
  """Light field: decodes a ray's colour from its encoding and the tokens."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, kernel: str):
    kwargs = {'rngs': rngs, 'dtype': jnp.dtype(config.dtype)}
    self.start_octave, self.octaves = config.start_octave, config.octaves
    self.improved = config.decoder == 'isrt'
    if self.improved:
      self.query = MLP(
        (config.ray_features, 2 * config.ray_features, config.ray_features),
        jax.nn.relu,
        **kwargs,
      )
    self.stack = Transformer(
      config.ray_features,
      config.decoder_layers,
      config,
      rngs=rngs,
      kernel=kernel,
      cross=True,
    )
    hidden = [config.mlp_features] * 4 if self.improved else [HEAD_FEATURES]
    self.head = MLP(
      (config.ray_features, *hidden, 3),
      jax.nn.relu,
      last_dtype=jnp.float32,
      **kwargs,
    )
    if self.improved:
      # Start at grey, as the sigmoid does for 'srt': starting at black, all
      # layers would first learn to output the same for all scenes.
      bias = self.head.layers[-1].bias
      bias[...] = jnp.full_like(bias[...], 0.5)

  def __call__(
    self,
    tokens: Float[Array, 'b t c'],
    origins: Float[Array, 'b r 3'],
    directions: Float[Array, 'b r 3'],
    noise: Noise | None,
  ) -> Rendered:
    del noise
    places = positional_encoding(origins, self.start_octave, self.octaves)
    x = positional_encoding(directions, 0, self.octaves)
    x = jnp.concatenate([places, x], -1)
    if self.improved:
      x = self.query(x).astype(jnp.float32)
    x = self.stack(x, tokens)
    with jax.named_scope('colors'):
      color = self.head(x)
    return Rendered(color if self.improved else jax.nn.sigmoid(color))


class VolumeNet(nnx.Module):
  """Density and view-independent colour of points."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, kernel: str):
    self.start_octave, self.octaves = config.start_octave, config.octaves
    self.stack = Transformer(
      config.point_features,
      config.decoder_layers,
      config,
      rngs=rngs,
      kernel=kernel,
      cross=True,
    )
    kwargs = {'rngs': rngs, 'dtype': jnp.dtype(config.dtype)}
    self.color, self.density = (
      MLP(
        (config.point_features, HEAD_FEATURES, channels),
        jax.nn.relu,
        last_dtype=jnp.float32,
        **kwargs,
      )
      for channels in (3, 1)
    )

  def __call__(
    self, tokens: Float[Array, 'b t c'], points: Float[Array, 'b r n 3']
  ) -> tuple[Float[Array, 'b r n'], Float[Array, 'b r n 3']]:
    """Returns positive densities and colours in [0, 1]."""
    x = positional_encoding(points, self.start_octave, self.octaves)
    rays = x.shape[1]
    x = self.stack(einops.rearrange(x, 'b r n c -> b (r n) c'), tokens)
    x = einops.rearrange(x, 'b (r n) c -> b r n c', r=rays)
    with jax.named_scope('colors'):
      density = jax.nn.softplus(self.density(x)[..., 0])
      return density, jax.nn.sigmoid(self.color(x))


class VolumeDecoder(nnx.Module):
  """Volume: coarse samples of each ray, then fine ones by their weights."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, kernel: str):
    self.config = config
    self.coarse = VolumeNet(config, rngs=rngs, kernel=kernel)
    if config.fine_net:
      self.fine = VolumeNet(config, rngs=rngs, kernel=kernel)

  def __call__(
    self,
    tokens: Float[Array, 'b t c'],
    origins: Float[Array, 'b r 3'],
    directions: Float[Array, 'b r 3'],
    noise: Noise | None,
  ) -> Rendered:
    config = self.config
    depths = volume.coarse_depths(
      origins,
      directions,
      config.coarse_samples,
      config.min_dist,
      config.max_dist,
      config.min_z,
      noise and noise.coarse,
    )
    samples = self.coarse(tokens, volume.points(origins, directions, depths))
    color, alpha, depth, weights = volume.integrate(*samples, depths)
    if not config.fine_samples:
      return Rendered(color, alpha, depth)
    coarse_color, coarse_depth = volume.over_white(color, alpha), depth
    if config.fine_samples == 1:
      fine_depths = depth[..., None]
    else:
      fine_depths = volume.fine_depths(
        weights,
        depths,
        config.fine_samples,
        config.min_dist,
        noise and noise.fine,
      )
    # No gradient through the positions of samples.
    fine_depths = jax.lax.stop_gradient(fine_depths)
    if config.fine_net:
      depths = jnp.sort(jnp.concatenate([depths, fine_depths], -1))
      samples = self.fine(tokens, volume.points(origins, directions, depths))
    else:
      # Coarse samples need no second evaluation by the same network.
      more = self.coarse(
        tokens, volume.points(origins, directions, fine_depths)
      )
      depths, *samples = volume.merge((depths, *samples), (fine_depths, *more))
    color, alpha, depth, _ = volume.integrate(*samples, depths)
    return Rendered(
      volume.over_white(color, alpha), alpha, depth, coarse_color, coarse_depth
    )


class SRT(nnx.Module):
  """Encoder of posed views and decoder of rays."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, platform: str = 'cpu'):
    kernel = attention.choose_kernel(
      config.attention, platform, jnp.dtype(config.dtype)
    )
    self.config = config
    self.encoder = Encoder(config, rngs=rngs, kernel=kernel)
    decoder = VolumeDecoder if config.decoder == 'nerf' else RayDecoder
    self.decoder = decoder(config, rngs=rngs, kernel=kernel)

  def encode(
    self,
    images: Float[Array, 'b v h w 3'],
    origins: Float[Array, 'b v 3'],
    directions: Float[Array, 'b v h w 3'],
  ) -> Float[Array, 'b t c']:
    """Encodes a scene to tokens.

    Args:
      images: Views in [0, 1]; the first is the canonical one.
      origins: Positions of the cameras.
      directions: Directions of the pixels' rays, of unit length.

    Raises:
      UserError: If views are too large; see `check_size`.
    """
    check_size(self.config, *images.shape[2:4])
    return self.encoder(images, origins, directions)

  def decode(
    self,
    tokens: Float[Array, 'b t c'],
    origins: Float[Array, 'b r 3'],
    directions: Float[Array, 'b r 3'],
    noise: Noise | None = None,
  ) -> Rendered:
    """Renders rays.

    Args:
      tokens: Tokens from `encode`; rays have the same coordinates.
      origins: Origins of the rays.
      directions: Directions of the rays, of unit length.
      noise: Noise from `sample_noise`, to train volumes; None: evenly spaced
        samples.
    """
    return self.decoder(tokens, origins, directions, noise)
