"""Building blocks of all models: patches, RoPE, norms, MLPs, scanned layers.

All parameters are float32; `dtype` is the type of matrix products and
attention. The residual stream stays float32: LayerScale starts at 0.01, and
bfloat16 would round the updates of the first layers away.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from xfactor.errors import UserError
from xfactor.nn import attention, sharding

_XAVIER = nnx.initializers.xavier_uniform()
_BIAS = nnx.initializers.normal(1e-6)


def _tied_qk(key: Array, shape: tuple[int, int], dtype: DTypeLike) -> Array:
  """Initial projections (q, k, v across views, then within) with k = q."""
  q, _, v, self_q, _, self_v = jnp.split(_XAVIER(key, shape, dtype), 6, -1)
  return jnp.concatenate([q, q, v, self_q, self_q, self_v], -1)


REMAT_POLICIES = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def to_float(images: UInt8[Array, '*b']) -> Float[Array, '*b']:
  """Converts uint8 [0, 255] to float32 [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, '*b']) -> UInt8[Array, '*b']:
  """Converts float [-1, 1] to uint8, rounded and clipped."""
  return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def patchify(
  images: Float[Array, '*b h w c'], size: int
) -> Float[Array, '*b t p']:
  """Cuts images into row-major patches; a patch is row, column, channel."""
  return einops.rearrange(
    images, '... (h y) (w x) c -> ... (h w) (y x c)', y=size, x=size
  )


def unpatchify(
  patches: Float[Array, '*b t p'], size: int, height: int, width: int
) -> Float[Array, '*b h w c']:
  """Inverts `patchify` for images of `height` x `width` pixels."""
  return einops.rearrange(
    patches,
    '... (h w) (y x c) -> ... (h y) (w x) c',
    h=height // size,
    w=width // size,
    y=size,
    x=size,
  )


def grid(images: Float[Array, '*b h w c'], size: int) -> tuple[int, int]:
  """Rows and columns of the patches that `patchify` cuts."""
  height, width = images.shape[-3:-1]
  return height // size, width // size


def to_picture(y: Float[Array, '*b p']) -> Float[Array, '*b p']:
  """Maps the output of the last layer to colours in [-1, 1], float32."""
  return 2 * jax.nn.sigmoid(y.astype(jnp.float32)) - 1


def grid_positions(height: int, width: int) -> Int[Array, 't 2']:
  """(row, column) of each patch of a `height` x `width` grid, row-major."""
  rows, columns = jnp.divmod(jnp.arange(height * width), width)
  return jnp.stack([rows, columns], -1)


def rope_table(
  positions: Int[Array, '*b t 2'], head_dim: int
) -> Float[Array, '*b t d 2']:
  """(cos, sin) of 2-d rotary embeddings (the official get_2d_sincos_rope).

  The first half of the head's channels encodes the row, the second half the
  column, at frequencies 10000^(-m / (head_dim / 4)), two channels each.
  """
  quarter = head_dim // 4
  frequencies = 10000.0 ** (-jnp.arange(quarter) / quarter)
  angles = positions[..., None].astype(jnp.float32)
  angles = angles * along_last(frequencies, angles)
  angles = einops.repeat(angles, '... rc m -> ... (rc m two)', two=2)
  return jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)


def sine_positions(
  positions: Int[Array, '*b t 2'], grid: int, features: int
) -> Float[Array, '*b t c']:
  """Fixed position embeddings: sines and cosines of row and column.

  Four periods: twice the side of the grid, so that all positions differ, and
  1/2, 1/4 and 1/8 of that.

  Args:
    positions: Row and column of each patch.
    grid: Side, in patches, of the largest grid with unique embeddings.
    features: Number of channels, a multiple of 4.
  """
  octave = 2.0 ** (jnp.arange(features // 4) % 4)
  angles = positions[..., None].astype(jnp.float32)
  angles = angles * along_last(jnp.pi / grid * octave, angles)
  waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
  return einops.rearrange(waves, '... rc m -> ... (rc m)')


def apply_rope(
  x: Float[Array, 'b t n d'], table: Float[Array, '#b t d 2']
) -> Float[Array, 'b t n d']:
  """Rotates neighbouring channel pairs of each head by the table's angles."""
  cos, sin = (table[:, :, None, :, i] for i in range(2))
  pairs = x.reshape(*x.shape[:-1], -1, 2)
  turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(x.shape)
  return x * cos + turned * sin


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
  x: Float[Array, '*b i'],
  kernel: Float[Array, 'i o'],
  precision: jax.lax.Precision | None = None,
  rows: bool = False,
) -> Float[Array, '*b o']:
  """`x @ kernel` with a kernel gradient in the kernel's memory layout.

  JAX's default gradient is the transpose of an [o, i] product, which takes
  twice as long on a CPU. For `rows` see `sharding.gather`.
  """
  return jnp.matmul(x, sharding.gather(kernel, rows), precision=precision)


def _product_forward(x, kernel, precision, rows):
  return product(x, kernel, precision, rows), (x, kernel)


def _product_backward(precision, rows, saved, out):
  x, kernel = saved
  # Contract one axis only: with several, XLA transposes x on a CPU and
  # recomputes it while writing the transpose.
  flat = x.reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1])
  in_kernel = jax.lax.dot_general(
    *flat, (((0,), (0,)), ((), ())), precision=precision
  )
  kernel = sharding.gather(kernel, rows)
  return jnp.matmul(out, kernel.T, precision=precision), in_kernel


product.defvjp(_product_forward, _product_backward)


def dot_general(x: Array, kernel: Array, *_, precision=None, **__) -> Array:
  """Adapts `product` to the `dot_general` argument of `nnx.Linear`."""
  return product(x, kernel, precision)


def dot_general_rows(x: Array, kernel: Array, *_, precision=None, **__):
  """The same for kernels whose inputs the tensor axis splits."""
  return product(x, kernel, precision, True)


def linear(
  din: int,
  dout: int,
  *,
  rngs: nnx.Rngs,
  dtype: DTypeLike,
  use_bias: bool = True,
  kernel_init: nnx.Initializer = _XAVIER,
  bias_init: nnx.Initializer = _BIAS,
  exact: bool = False,
  rows: bool = False,
) -> nnx.Linear:
  """Dense layer, with XFactor's initialisers by default.

  The tensor axis of a mesh splits the outputs, or with `rows` the inputs, as
  `sharding.PARAM_RULES` say. `exact` layers multiply in full float32. Without
  it a float32 product is one bfloat16 pass on a TPU and TF32 on an NVIDIA GPU.
  """
  return nnx.Linear(
    din,
    dout,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=kernel_init,
    bias_init=bias_init,
    dot_general=dot_general_rows if rows else dot_general,
    precision=jax.lax.Precision.HIGHEST if exact else None,
    rngs=rngs,
  )


def layer_norm(
  features: int, *, rngs: nnx.Rngs, use_bias: bool = True
) -> nnx.LayerNorm:
  """LayerNorm with epsilon 1e-6 and float32 statistics and output."""
  return nnx.LayerNorm(
    features, epsilon=1e-6, use_bias=use_bias, dtype=jnp.float32, rngs=rngs
  )


def along_last(values: Array, x: Array) -> Array:
  """Adds leading axes to `values` until it has as many axes as `x`.

  A broadcast product is faster than an einsum here: XLA compiles the einsum
  and its gradient to matrix products.
  """
  return values.reshape((1,) * (x.ndim - values.ndim) + values.shape)


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """GELU with the tanh approximation, as in the reference code.

  The gradient is that of x sigmoid(2 u), which is the same. JAX's shares the
  tanh with the value: a GPU then writes it to memory, and reads it twice.
  """
  return jax.nn.gelu(x, approximate=True)


def _gelu_forward(x):
  return gelu(x), x


def _gelu_backward(x, out):
  wide = x.astype(jnp.float32)
  factor = 2 * math.sqrt(2 / math.pi)
  gate = jax.nn.sigmoid(factor * (wide + 0.044715 * wide**3))
  slope = factor * (1 + 3 * 0.044715 * wide**2)
  grad = gate * (1 + wide * (1 - gate) * slope)
  return ((out * grad).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class MLP(nnx.Module):
  """Dense layers with GELU between them; for `exact` see `linear`."""

  def __init__(
    self,
    sizes: Sequence[int],
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    exact: bool = False,
  ):
    self.layers = nnx.List(
      [
        linear(din, dout, rngs=rngs, dtype=dtype, exact=exact, rows=i > 0)
        for i, (din, dout) in enumerate(itertools.pairwise(sizes))
      ]
    )

  def __call__(self, x: Array, scale: 'LayerScale | None' = None) -> Array:
    *others, last = self.layers
    for layer in others:
      x = gelu(layer(x))
    return last(x) if scale is None else scale(last, x)


class HeadNorm(nnx.Module):
  """RMSNorm over a head's channels with one scale vector per head."""

  def __init__(self, heads: int, head_dim: int):
    self.scale = nnx.Param(jnp.ones((heads, head_dim), jnp.float32))

  def __call__(self, x: Float[Array, '*b n d']) -> Float[Array, '*b n d']:
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(x**2, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + 1e-5)
    return x * along_last(self.scale[...], x)


class LayerScale(nnx.Module):
  """Learned gain for each channel of a residual branch, small at first.

  It is folded into the branch's last weights. The gradient of a separate gain
  would need the branch's output, which would have to be recomputed.
  """

  def __init__(self, features: int, start: float = 0.01):
    self.scale = nnx.Param(jnp.full((features,), start, jnp.float32))

  def __call__(
    self, layer: nnx.Linear, x: Float[Array, '*b i']
  ) -> Float[Array, '*b o']:
    kernel = layer.kernel[...] * self.scale[...][None]
    bias = layer.bias[...] * self.scale[...]
    y = layer.dot_general(*(a.astype(layer.dtype) for a in (x, kernel)))
    return y.astype(jnp.float32) + along_last(bias, y)


class MultiViewBlock(nnx.Module):
  """The reference's MVLayer: attention over all views and within each view.

  Both attentions read one projection; their outputs are concatenated. A GELU
  precedes the MLP, after its norm, as in the public code.
  """

  def __init__(
    self,
    features: int,
    heads: int,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    kernel: str,
    layer_scale: float = 0.01,
    tie_qk: bool = False,
  ):
    self.heads = heads
    self.dtype = dtype
    self.kernel = kernel
    self.norm_attention = layer_norm(features, rngs=rngs, use_bias=False)
    self.qkv = linear(
      features,
      6 * features,
      rngs=rngs,
      dtype=dtype,
      use_bias=False,
      kernel_init=_tied_qk if tie_qk else _XAVIER,
    )
    head_dim = features // heads
    self.norm_q = HeadNorm(heads, head_dim)
    self.norm_k = HeadNorm(heads, head_dim)
    self.norm_self_q = HeadNorm(heads, head_dim)
    self.norm_self_k = HeadNorm(heads, head_dim)
    self.out = linear(2 * features, features, rngs=rngs, dtype=dtype, rows=True)
    self.scale_attention = LayerScale(features, layer_scale)
    self.norm_mlp = layer_norm(features, rngs=rngs)
    self.mlp = MLP((features, 4 * features, features), rngs=rngs, dtype=dtype)
    self.scale_mlp = LayerScale(features, layer_scale)

  def __call__(
    self,
    x_RTC: Float[Array, 'r t c'],
    rope: Float[Array, '#r t d 2'],
    views: int,
  ) -> Float[Array, 'r t c']:
    """Applies the layer to the views of all examples, folded into one axis.

    With heads this makes four axes: XLA takes several times as long to compile
    five axes for a CPU.
    """
    x_RTC = x_RTC + self._attention(x_RTC, rope, views)
    hidden = gelu(self.norm_mlp(x_RTC))
    return x_RTC + self.mlp(hidden, self.scale_mlp)

  def _attention(self, x_RTC: Array, rope: Array, views: int) -> Array:
    # Split before folding: the gradient is then one concatenation, not a sum
    # of six padded arrays.
    q, k, v, self_q, self_k, self_v = (
      einops.rearrange(x, 'r t (n d) -> r t n d', n=self.heads)
      for x in jnp.split(self.qkv(self.norm_attention(x_RTC)), 6, axis=-1)
    )

    def turn(norm, x):
      return apply_rope(norm(x), rope).astype(self.dtype)

    def attend(*qkv):
      out = attention.attend(*qkv, kernel=self.kernel)
      return out.reshape(x_RTC.shape)

    across = attend(
      *(
        einops.rearrange(x, '(b v) t n d -> b (v t) n d', v=views)
        for x in (turn(self.norm_q, q), turn(self.norm_k, k), v)
      )
    )
    within = attend(
      turn(self.norm_self_q, self_q), turn(self.norm_self_k, self_k), self_v
    )
    both = jnp.concatenate([across, within], axis=-1)
    return self.scale_attention(self.out, both)


class Stack(nnx.Module):
  """Scanned identical layers with stacked parameters: one compiled body."""

  def __init__(
    self,
    depth: int,
    make_layer: Callable[[nnx.Rngs], nnx.Module],
    *,
    rngs: nnx.Rngs,
    remat: str,
  ):
    if remat not in REMAT_POLICIES:
      raise UserError(
        f'config.model.remat={remat!r} is not a policy; choose one of '
        f'{", ".join(REMAT_POLICIES)}'
      )
    self.remat = remat
    self.layers = nnx.split_rngs(splits=depth)(nnx.vmap(make_layer))(rngs)

  def __call__(self, x: Array, *args: Array | int) -> Array:
    graphdef, stacked = nnx.split(self.layers)

    def body(x, layer):
      x = nnx.merge(graphdef, layer)(sharding.split_batch(x), *args)
      return sharding.split_batch(x), None

    if self.remat != 'none':
      body = jax.checkpoint(
        body, policy=REMAT_POLICIES[self.remat], prevent_cse=False
      )
    out, _ = jax.lax.scan(body, sharding.split_batch(x), stacked)
    return sharding.split_batch(out)
