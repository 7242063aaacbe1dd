"""One attention function over several kernels, all equal to one einsum.

Only `attend` depends on the kernel. Its requirements (padding, block sizes,
shard_map) are met here and never change the model: all kernels take any number
of tokens and any head dimension.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xfactor.errors import UserError

KERNELS = ('einsum', 'cudnn', 'splash')

# Mesh axes that may split the batch, and the one that may split the heads; see
# nn/sharding.py.
_BATCH_AXES = ('data', 'fsdp')
_HEAD_AXIS = 'tensor'

# cuDNN 9: even numbers of tokens (with gradients), and head dimensions that are
# multiples of 8, up to 128 on all GPUs (256 on some).
_CUDNN_TOKENS = 2
_CUDNN_DEPTH = 8
_CUDNN_MAX_DEPTH = 128


def choose_kernel(name: str, platform: str, dtype: DTypeLike) -> str:
  """Resolves 'auto' to the best kernel for `platform` and `dtype`.

  Args:
    name: 'auto' or one of `KERNELS`.
    platform: Platform of the step: 'cpu', 'gpu' (or 'cuda') or 'tpu'.
    dtype: Type of queries, keys and values.

  Raises:
    UserError: If the kernel is unknown or does not support `dtype`.
  """
  half = dtype in (jnp.bfloat16, jnp.float16)
  if name == 'auto':
    if platform in ('gpu', 'cuda') and half:
      return 'cudnn'
    return 'splash' if platform == 'tpu' else 'einsum'
  if name not in KERNELS:
    raise UserError(
      f'config.model.attention={name!r} is not an attention kernel; '
      f'choose "auto" or one of {", ".join(KERNELS)}'
    )
  if name == 'cudnn' and not half:
    raise UserError(
      'config.model.attention="cudnn" supports half precision only; set '
      'config.model.dtype="bfloat16" or config.model.attention="einsum"'
    )
  return name


@jax.named_scope('attention')
def attend(
  q_BTND: Float[Array, 'b t n d'],
  k_BSND: Float[Array, 'b s n d'],
  v_BSND: Float[Array, 'b s n d'],
  *,
  kernel: str = 'einsum',
) -> Float[Array, 'b t n d']:
  """Full (unmasked) multi-head attention, scaled by 1/sqrt(d).

  Args:
    q_BTND: Queries.
    k_BSND: Keys; their number may differ from that of the queries.
    v_BSND: Values.
    kernel: One of `KERNELS`, as `choose_kernel` returns it. cuDNN has no heads
      of more than 128 channels; they are computed as with 'einsum'.

  Returns:
    The mean of the values under softmax(q k), in the dtype of `q_BTND`; the
    softmax is float32.
  """
  if kernel == 'cudnn' and q_BTND.shape[-1] <= _CUDNN_MAX_DEPTH:
    return _cudnn(q_BTND, k_BSND, v_BSND)
  if kernel == 'splash':
    return _over_mesh(_splash)(q_BTND, k_BSND, v_BSND)
  return _einsum(q_BTND, k_BSND, v_BSND)


def _einsum(q_BTND: Array, k_BSND: Array, v_BSND: Array) -> Array:
  scale = 1 / math.sqrt(q_BTND.shape[-1])
  logits_BNTS = jnp.einsum(
    'BTND,BSND->BNTS',
    q_BTND * jnp.asarray(scale, q_BTND.dtype),
    k_BSND,
    preferred_element_type=jnp.float32,
  )
  weights_BNTS = jax.nn.softmax(logits_BNTS, axis=-1).astype(v_BSND.dtype)
  return jnp.einsum('BNTS,BSND->BTND', weights_BNTS, v_BSND)


def _cudnn(
  q_BTND: Array,
  k_BSND: Array,
  v_BSND: Array,
  *,
  implementation: str = 'cudnn',
) -> Array:
  """cuDNN's attention (NVIDIA): pads tokens and channels if it has to.

  Padded keys are masked. Padded queries and channels are dropped: channels of
  zeros do not change a product.
  """
  tokens, depth = q_BTND.shape[1], q_BTND.shape[3]
  keys = k_BSND.shape[1]
  q_BTND, k_BSND, v_BSND = (
    _pad_to(x, {1: _CUDNN_TOKENS, 3: _CUDNN_DEPTH})
    for x in (q_BTND, k_BSND, v_BSND)
  )
  lengths = None
  if k_BSND.shape[1] > keys:
    lengths = jnp.full(len(k_BSND), keys, jnp.int32)
  out_BTND = jax.nn.dot_product_attention(
    q_BTND,
    k_BSND,
    v_BSND,
    scale=1 / math.sqrt(depth),
    key_value_seq_lengths=lengths,
    implementation=implementation,
  )
  return out_BTND[:, :tokens, :, :depth]


def _pad_to(x: Array, multiples: dict[int, int]) -> Array:
  """Appends zeros along axes until each length is a multiple of a number."""
  widths = [(0, -n % multiples.get(i, 1)) for i, n in enumerate(x.shape)]
  return jnp.pad(x, widths) if any(after for _, after in widths) else x


def _over_mesh(kernel):
  """Runs a kernel that XLA cannot partition on the shard of each device."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel
  spec = P(_BATCH_AXES, None, _HEAD_AXIS, None)
  return jax.shard_map(
    kernel,
    mesh=mesh,
    in_specs=(spec, spec, spec),
    out_specs=spec,
    check_vma=False,
  )


def _splash(
  q_BTND: Array, k_BSND: Array, v_BSND: Array, *, interpret: bool = False
) -> Array:
  """Splash attention (TPU): pads tokens to 128 and masks by segment ids."""
  # Imported here: Pallas takes a second, and only TPUs need it.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  tokens, heads, depth = q_BTND.shape[1:]
  keys = k_BSND.shape[1]
  padded_q, padded_kv = (-(-n // 128) * 128 for n in (tokens, keys))
  block_q, block_kv = (_block(n) for n in (padded_q, padded_kv))
  kernel = kernels.make_splash_mha_single_device(
    masks.MultiHeadMask([masks.FullMask((padded_q, padded_kv))] * heads),
    block_sizes=kernels.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_kv_compute=block_kv,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_kv_dkv_compute=block_kv,
      block_q_dq=block_q,
      block_kv_dq=block_kv,
    ),
    interpret=interpret,
  )

  def heads_first(x, length):
    x = jnp.einsum('BTND->BNTD', x)
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

  # Real tokens are segment 0, padding is segment 1: it attends to itself only.
  segments = kernels.SegmentIds(
    q=(jnp.arange(padded_q) >= tokens).astype(jnp.int32),
    kv=(jnp.arange(padded_kv) >= keys).astype(jnp.int32),
  )
  scale = jnp.asarray(1 / math.sqrt(depth), q_BTND.dtype)
  out_BNTD = jax.vmap(functools.partial(kernel, segment_ids=segments))(
    heads_first(q_BTND * scale, padded_q),
    heads_first(k_BSND, padded_kv),
    heads_first(v_BSND, padded_kv),
  )
  return jnp.einsum('BNTD->BTND', out_BNTD[:, :, :tokens])


def _block(length: int) -> int:
  """Largest block of at most 512 that divides a multiple of 128."""
  return next(b for b in (512, 384, 256, 128) if length % b == 0)
