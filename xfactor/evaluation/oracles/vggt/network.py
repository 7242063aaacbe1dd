"""VGGT's aggregator and camera head as pure functions.

Wang et al. 2025, "VGGT: Visual Geometry Grounded Transformer"
(facebookresearch/vggt): a DINOv2 ViT embeds each frame, blocks that attend
within a frame alternate with blocks that attend over all frames, and a head
predicts a camera from one token per frame. The heads for depth, points and
tracks are not implemented.

Parameters are a flat dict with the official names, in torch's layout (out, in).
Numbered blocks are stacked, so that `aggregator.frame_blocks.7.norm1.weight`
is row 7 of `aggregator.frame_blocks.norm1.weight`. Matrix products and
attention run in the dtype of their weights (see `load`); the residual stream,
norms, RoPE and the camera head are float32.
"""

import collections
import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping

import einops
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from xfactor.data.formats import weights as weights_lib
from xfactor.errors import UserError
from xfactor.nn import attention, layers

Params = dict[str, jax.Array]

WHERE = (
  'download model.safetensors or model.pt of facebook/VGGT-1B from Hugging '
  'Face (non-commercial; for commercial use, VGGT-1B-Commercial)'
)
_UNUSED = ('point_head.', 'depth_head.', 'track_head.')
_STACKS = (
  'aggregator.patch_embed.blocks',
  'aggregator.frame_blocks',
  'aggregator.global_blocks',
  'camera_head.trunk',
)
_NUMBER = re.compile(rf'^({"|".join(map(re.escape, _STACKS))})\.\d+(?=\.)')
# Layers that autocast computes in half precision.
_HALF = re.compile(r'aggregator\..*(qkv|proj|fc1|fc2)\.(weight|bias)')
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# These two cannot be inferred from the weights.
_HEAD_HEADS = 16
_ITERATIONS = 4
# Attention weights in memory at the same time, in float32: few, to fit in the
# caches, but of enough queries for efficient matrix products.
_CHUNK_BYTES = 1 << 24
_CHUNK_QUERIES = 64


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes; the defaults are those of VGGT-1B.

  Attributes:
    width: Channels of the aggregator; the camera head has twice as many.
    head_dim: Channels of one of the aggregator's attention heads.
    patch_size: Side of a patch in pixels.
    grid: Side, in patches, of the images that the position embedding is for.
    registers: Number of register tokens per frame.
    encoder_layers: Number of blocks of the DINOv2 embedder.
    layers: Number of pairs of a frame block and a global block.
    head_layers: Number of blocks of the camera head.
  """

  width: int = 1024
  head_dim: int = 64
  patch_size: int = 14
  grid: int = 37
  registers: int = 4
  encoder_layers: int = 24
  layers: int = 24
  head_layers: int = 4


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Returns the official names and shapes of all parameters in use."""
  width, patch = config.width, config.patch_size
  embed, head = 'aggregator.patch_embed', 'camera_head'
  depths = (
    config.encoder_layers,
    config.layers,
    config.layers,
    config.head_layers,
  )
  named = {
    'aggregator.camera_token': (1, 2, 1, width),
    'aggregator.register_token': (1, 2, config.registers, width),
    f'{embed}.cls_token': (1, 1, width),
    f'{embed}.pos_embed': (1, 1 + config.grid**2, width),
    f'{embed}.register_tokens': (1, config.registers, width),
    f'{embed}.mask_token': (1, width),
    f'{embed}.patch_embed.proj.weight': (width, 3, patch, patch),
    f'{embed}.patch_embed.proj.bias': (width,),
    **_norm(f'{embed}.norm', width),
    f'{head}.empty_pose_tokens': (1, 1, 9),
    **_norm(f'{head}.token_norm', 2 * width),
    **_norm(f'{head}.trunk_norm', 2 * width),
    **_dense(f'{head}.embed_pose', 9, 2 * width),
    **_dense(f'{head}.poseLN_modulation.1', 2 * width, 6 * width),
    **_dense(f'{head}.pose_branch.fc1', 2 * width, width),
    **_dense(f'{head}.pose_branch.fc2', width, 9),
  }
  for stack, depth in zip(_STACKS, depths, strict=True):
    in_head = stack.startswith(head)
    channels = 2 * width if in_head else width
    block = {
      **_norm('norm1', channels),
      **_dense('attn.qkv', channels, 3 * channels),
      **_dense('attn.proj', channels, channels),
      'ls1.gamma': (channels,),
      **_norm('norm2', channels),
      **_dense('mlp.fc1', channels, 4 * channels),
      **_dense('mlp.fc2', 4 * channels, channels),
      'ls2.gamma': (channels,),
    }
    if stack in _STACKS[1:3]:
      block |= _norm('attn.q_norm', config.head_dim)
      block |= _norm('attn.k_norm', config.head_dim)
    for i in range(depth):
      named |= {f'{stack}.{i}.{name}': shape for name, shape in block.items()}
  return named


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
  return {f'{name}.weight': (channels,), f'{name}.bias': (channels,)}


def _dense(name: str, din: int, dout: int) -> dict[str, tuple[int, ...]]:
  return {f'{name}.weight': (dout, din), f'{name}.bias': (dout,)}


def read_config(found: Mapping[str, tuple[int, ...]]) -> Config:
  """Infers the sizes from the shapes of the weights by official name.

  Raises:
    UserError: If an array is missing, unknown, or of a shape that does not fit
      the others; names the first. Arrays of unused heads are ignored.
  """

  def size(name: str, axes: int, axis: int) -> int:
    shape = found.get(name, ())
    if len(shape) != axes:
      raise UserError(f'{name} is {list(shape) or "missing"}')
    return shape[axis]

  def depth(stack: str) -> int:
    layer = re.compile(rf'{re.escape(stack)}\.(\d+)\.')
    numbers = (int(m[1]) for m in map(layer.match, found) if m)
    return 1 + max(numbers, default=0)

  embed = 'aggregator.patch_embed'
  config = Config(
    width=size('aggregator.camera_token', 4, 3),
    head_dim=size('aggregator.frame_blocks.0.attn.q_norm.weight', 1, 0),
    patch_size=size(f'{embed}.patch_embed.proj.weight', 4, 3),
    grid=math.isqrt(size(f'{embed}.pos_embed', 3, 1) - 1),
    registers=size(f'{embed}.register_tokens', 3, 1),
    encoder_layers=depth(_STACKS[0]),
    layers=depth(_STACKS[1]),
    head_layers=depth(_STACKS[3]),
  )
  want = shapes(config)
  for name, shape in want.items():
    if found.get(name) != shape:
      is_ = list(found[name]) if name in found else 'missing'
      raise UserError(f'{name} is {is_}, expected {list(shape)}')
  for name in found:
    if name not in want and not name.startswith(_UNUSED):
      raise UserError(f'{name} is no parameter of VGGT')
  return config


def load(
  path: str | os.PathLike[str], dtype: DTypeLike = jnp.float32
) -> tuple[Config, Params]:
  """Reads the weights that the authors publish.

  Args:
    path: Path of a .safetensors file or a file of torch.save.
    dtype: Dtype of the aggregator's matrices, hence of its products and
      attention. All else is float32.

  Returns:
    The sizes and the parameters, on the default device.

  Raises:
    UserError: If the file is missing, damaged or not of VGGT.
  """
  path = epath.Path(path)
  if not path.exists():
    raise UserError(f'VGGT weights {path} do not exist; {WHERE}')
  try:
    weights = weights_lib.read_arrays(path)
  except UserError as error:
    raise UserError(f'{error}; {WHERE}') from error
  try:
    config = read_config({name: x.shape for name, x in weights.items()})
  except UserError as error:
    raise UserError(f'{path} has no VGGT weights: {error}; {WHERE}') from None
  return config, from_official(weights, config, dtype)


def from_official(
  weights: Mapping[str, Array | np.ndarray],
  config: Config,
  dtype: DTypeLike = jnp.float32,
) -> Params:
  """Stacks the blocks of official weights; see `load`."""
  rows = collections.defaultdict(list)
  for name in shapes(config):
    half = _HALF.fullmatch(name)
    row = jnp.asarray(weights[name], dtype if half else jnp.float32)
    rows[_NUMBER.sub(r'\1', name)].append(row)
  return {
    name: jnp.stack(x) if name.startswith(_STACKS) else x[0]
    for name, x in rows.items()
  }


@functools.partial(jax.jit, static_argnames=('config', 'kernel'))
def predict(
  params: Params,
  images: Float[Array, 'v h w 3'],
  *,
  config: Config,
  kernel: str = 'einsum',
) -> Float[Array, 'v 9']:
  """Estimates the cameras of the frames of one scene.

  Args:
    params: As `load` returns them.
    images: Images in [0, 1]; their sides are multiples of the patch size. The
      first frame is the reference; the order of the others does not matter.
    config: The sizes.
    kernel: Kernel of the aggregator's attention; one of `attention.KERNELS`.

  Returns:
    Pose encodings, to be read by `world_to_camera` and `intrinsics`.
  """
  camera = aggregate(params, images, config=config, kernel=kernel)
  return read_cameras(params, camera)[-1]


def aggregate(
  params: Params,
  images: Float[Array, 'v h w 3'],
  *,
  config: Config,
  kernel: str = 'einsum',
) -> Float[Array, 'v c2']:
  """Camera tokens after the last frame block and global block, concatenated."""
  frames, height, width, _ = images.shape
  patches = embed(params, images, config=config, kernel=kernel)
  special = jnp.concatenate(
    [params['aggregator.camera_token'], params['aggregator.register_token']], 2
  )[0]
  # One set of tokens for the reference frame, another for all others.
  special = special[jnp.minimum(jnp.arange(frames), 1)]
  x_VTC = jnp.concatenate([special, patches], 1)
  # Special tokens are at position 0, patches count from 1.
  positions = 1 + layers.grid_positions(
    height // config.patch_size, width // config.patch_size
  )
  positions = jnp.pad(positions, ((special.shape[1], 0), (0, 0)))
  table = rope_table(positions, config.head_dim)
  tables = jnp.tile(table, (frames, 1, 1))
  block = functools.partial(
    _block, heads=config.width // config.head_dim, eps=1e-5, kernel=kernel
  )

  def pair(carry, blocks):
    x_VTC, _ = carry
    within, across = blocks
    x_VTC = block(within, x_VTC, table=table)
    camera_VC = x_VTC[:, 0]
    x_1TC = einops.rearrange(x_VTC, 'v t c -> 1 (v t) c')
    x_1TC = block(across, x_1TC, table=tables)
    return (x_1TC.reshape(x_VTC.shape), camera_VC), None

  stacks = (
    _under(params, 'aggregator.frame_blocks.'),
    _under(params, 'aggregator.global_blocks.'),
  )
  (x_VTC, camera_VC), _ = jax.lax.scan(pair, (x_VTC, x_VTC[:, 0]), stacks)
  return jnp.concatenate([camera_VC, x_VTC[:, 0]], -1)


def embed(
  params: Params,
  images: Float[Array, 'v h w 3'],
  *,
  config: Config,
  kernel: str = 'einsum',
) -> Float[Array, 'v t c']:
  """Embeds each frame's patches by DINOv2 (ViT with registers)."""
  params = _under(params, 'aggregator.patch_embed.')
  mean, std = (
    layers.along_last(jnp.asarray(x, jnp.float32), images)
    for x in (_MEAN, _STD)
  )
  size = config.patch_size
  x_VTP = einops.rearrange(
    (images - mean) / std, 'v (h y) (w x) c -> v (h w) (c y x)', y=size, x=size
  )
  kernel_CP = params['patch_embed.proj.weight'].reshape(config.width, -1)
  x_VTC = _matmul(x_VTP, kernel_CP, params['patch_embed.proj.bias'])
  grid = images.shape[1] // size, images.shape[2] // size
  cls, registers = (
    jnp.broadcast_to(x, (len(images), *x.shape[1:]))
    for x in (params['cls_token'], params['register_tokens'])
  )
  x_VTC = jnp.concatenate([cls, x_VTC], 1)
  x_VTC = x_VTC + position_embedding(params['pos_embed'], grid)
  x_VTC = jnp.concatenate([x_VTC[:, :1], registers, x_VTC[:, 1:]], 1)
  block = functools.partial(
    _block, heads=config.width // config.head_dim, eps=1e-6, kernel=kernel
  )
  x_VTC, _ = jax.lax.scan(
    lambda x, blocks: (block(blocks, x), None),
    x_VTC,
    _under(params, 'blocks.'),
  )
  x_VTC = _layer_norm(params, 'norm', x_VTC, 1e-6)
  return x_VTC[:, 1 + config.registers :]


def position_embedding(
  table: Float[Array, '1 n c'], grid: tuple[int, int]
) -> Float[Array, '1 t c']:
  """Resizes DINOv2's position embedding to a grid of (rows, columns).

  The first row belongs to the class token; the rest is a square grid, resized
  with an antialiased cubic (a=-0.5) filter as in the official code.
  """
  side = math.isqrt(table.shape[1] - 1)
  if grid == (side, side):
    return table
  square = einops.rearrange(table[:, 1:], '1 (h w) c -> h w c', h=side)
  resized = jax.image.resize(square, (*grid, table.shape[2]), 'cubic')
  return jnp.concatenate(
    [table[:, :1], einops.rearrange(resized, 'h w c -> 1 (h w) c')], 1
  )


def read_cameras(
  params: Params, tokens: Float[Array, 'v c2']
) -> Float[Array, 'i v 9']:
  """Runs the camera head; returns pose encodings after each iteration."""
  params = _under(params, 'camera_head.')
  # By default, accelerators round float32 factors to bfloat16 or TF32.
  with jax.default_matmul_precision('highest'):
    x_VC = _layer_norm(params, 'token_norm', tokens, 1e-5)
    trunk = _under(params, 'trunk.')
    blocks = functools.partial(_block, heads=_HEAD_HEADS, eps=1e-5)

    def refine(carry, _):
      seen_V9, pose_V9 = carry
      seen = jax.nn.silu(_linear(params, 'embed_pose', seen_V9))
      shift, scale, gate = jnp.split(
        _linear(params, 'poseLN_modulation.1', seen), 3, -1
      )
      y_VC = gate * (_standardize(x_VC, 1e-6) * (1 + scale) + shift)
      y_1VC, _ = jax.lax.scan(
        lambda y, block: (blocks(block, y), None), (x_VC + y_VC)[None], trunk
      )
      y_VC = _layer_norm(params, 'trunk_norm', y_1VC[0], 1e-5)
      hidden = _gelu(_linear(params, 'pose_branch.fc1', y_VC))
      pose_V9 = pose_V9 + _linear(params, 'pose_branch.fc2', hidden)
      return (pose_V9, pose_V9), pose_V9

    first = jnp.broadcast_to(params['empty_pose_tokens'][0], (len(tokens), 9))
    _, poses = jax.lax.scan(
      refine, (first, jnp.zeros_like(first)), length=_ITERATIONS
    )
  # Fields of view must not be negative.
  return jnp.concatenate([poses[..., :7], jax.nn.relu(poses[..., 7:])], -1)


def world_to_camera(
  encoding: Float[np.ndarray, '*n 9'],
) -> Float[np.ndarray, '*n 4 4']:
  """OpenCV poses from translation and (x, y, z, w) quaternion of any length."""
  q = encoding[..., 3:7]
  x, y, z, w = np.moveaxis(q, -1, 0)
  zero = np.zeros_like(x)
  # v -> (x, y, z) x v.
  cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
  cross = cross.reshape(*x.shape, 3, 3)
  turn = w[..., None, None] * cross + cross @ cross
  pose = np.zeros((*x.shape, 4, 4), encoding.dtype)
  pose[..., :3, :3] = np.eye(3) + 2 * turn / (q * q).sum(-1)[..., None, None]
  pose[..., :3, 3] = encoding[..., :3]
  pose[..., 3, 3] = 1
  return pose


def intrinsics(
  encoding: Float[np.ndarray, '*n 9'],
) -> Float[np.ndarray, '*n 4']:
  """Normalised (fx, fy, cx, cy) from the fields of view (vertical first)."""
  focal = 0.5 / np.tan(encoding[..., [8, 7]] / 2)
  return np.concatenate([focal, np.full_like(focal, 0.5)], -1)


def rope_table(
  positions: Int[Array, 't 2'], head_dim: int
) -> Float[Array, 't d 2']:
  """(cos, sin) of VGGT's 2-d rotary embedding, of base 100.

  Half of the head's channels turn with the row, half with the column.
  """
  quarter = head_dim // 4
  frequencies = 100.0 ** (-jnp.arange(quarter) / quarter)
  angles = positions[..., None].astype(jnp.float32)
  angles = angles * layers.along_last(frequencies, angles)
  angles = einops.repeat(angles, 't rc m -> t (rc two m)', two=2)
  return jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)


def apply_rope(
  x: Float[Array, 'b t n d'], table: Float[Array, 't d 2']
) -> Float[Array, 'b t n d']:
  """Rotates channel m of each half with channel m + d/4."""
  cos, sin = (table[None, :, None, :, i] for i in range(2))
  pairs = einops.rearrange(x, 'b t n (rc two m) -> two b t n rc m', rc=2, two=2)
  turned = einops.rearrange(
    jnp.stack([-pairs[1], pairs[0]]), 'two b t n rc m -> b t n (rc two m)'
  )
  return x * cos + turned * sin


def chunk_size(batch: int, heads: int, queries: int, keys: int) -> int:
  """Number of queries per chunk, so that attention weights fit in memory."""
  most = max(_CHUNK_QUERIES, _CHUNK_BYTES // (4 * batch * heads * keys))
  return math.ceil(queries / math.ceil(queries / most))


def _attend(q_BTND: Array, k_BSND: Array, v_BSND: Array, kernel: str) -> Array:
  batch, queries, heads, _ = q_BTND.shape
  size = chunk_size(batch, heads, queries, k_BSND.shape[1])
  # The fused kernels never store all weights.
  if kernel != 'einsum' or size == queries:
    return attention.attend(q_BTND, k_BSND, v_BSND, kernel=kernel)
  chunks = math.ceil(queries / size)
  q_BTND = jnp.pad(
    q_BTND, ((0, 0), (0, chunks * size - queries), (0, 0), (0, 0))
  )
  out = jax.lax.map(
    lambda q: attention.attend(q, k_BSND, v_BSND, kernel=kernel),
    einops.rearrange(q_BTND, 'b (c t) n d -> c b t n d', c=chunks),
  )
  out = einops.rearrange(out, 'c b t n d -> b (c t) n d')
  return out[:, :queries]


def _block(
  params: Params,
  x_BTC: Array,
  *,
  heads: int,
  eps: float,
  kernel: str = 'einsum',
  table: Array | None = None,
) -> Array:
  """Pre-norm block; with `table`, q and k have norms and RoPE."""
  q, k, v = einops.rearrange(
    _linear(params, 'attn.qkv', _layer_norm(params, 'norm1', x_BTC, eps)),
    'b t (three n d) -> three b t n d',
    three=3,
    n=heads,
  )
  if table is not None:
    q = apply_rope(_layer_norm(params, 'attn.q_norm', q, 1e-5), table)
    k = apply_rope(_layer_norm(params, 'attn.k_norm', k, 1e-5), table)
  out = _attend(q.astype(v.dtype), k.astype(v.dtype), v, kernel)
  out = einops.rearrange(out, 'b t n d -> b t (n d)')
  out = _linear(params, 'attn.proj', out)
  x_BTC = x_BTC + out * layers.along_last(params['ls1.gamma'], out)
  out = _layer_norm(params, 'norm2', x_BTC, eps)
  out = _gelu(_linear(params, 'mlp.fc1', out))
  out = _linear(params, 'mlp.fc2', out)
  return x_BTC + out * layers.along_last(params['ls2.gamma'], out)


def _linear(params: Params, name: str, x: Array) -> Array:
  return _matmul(x, params[f'{name}.weight'], params[f'{name}.bias'])


def _matmul(x: Array, weight: Array, bias: Array) -> Array:
  y = jnp.einsum('...i,oi->...o', x.astype(weight.dtype), weight)
  return y + layers.along_last(bias, y)


def _layer_norm(params: Params, name: str, x: Array, eps: float) -> Array:
  scale, bias = (
    layers.along_last(params[f'{name}.{leaf}'], x)
    for leaf in ('weight', 'bias')
  )
  return _standardize(x, eps) * scale + bias


def _standardize(x: Array, eps: float) -> Array:
  """Normalizes the last axis to mean 0 and variance 1, in float32."""
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def _gelu(x: Array) -> Array:
  """Exact GELU, with erf."""
  return jax.nn.gelu(x, approximate=False)


def _under(params: Params, prefix: str) -> Params:
  """Returns the parameters whose names start with `prefix`, without it."""
  return {
    name.removeprefix(prefix): x
    for name, x in params.items()
    if name.startswith(prefix)
  }
