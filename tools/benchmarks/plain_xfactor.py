"""Plain public formulation of XFactor: the reference for our fast paths.

Dense attention under a segment mask over all patches and two copies of the
register tokens, float32, unrolled layers with full rematerialization, one pass
over whole images, augmentation with a switch per image. Follows sections 2 and
3 of the model's specification; parameters have our names
(`xfactor_names.to_ours`), but each layer has its own (`unstack`).
"""

import functools

import jax
import jax.numpy as jnp

from xfactor.methods.xfactor import augment
from xfactor.nn import layers


def unstack(params):
  """Gives each layer its own parameters, as in the public code.

  A slice of stacked parameters has a gradient as large as all layers.
  """
  unstacked = {}
  for name, x in params.items():
    prefix, stack, leaf = name.rpartition('/stack/layers/')
    if stack:
      unstacked |= {f'{prefix}{stack}{i}/{leaf}': y for i, y in enumerate(x)}
    else:
      unstacked[name] = x
  return unstacked


def dense(params, name, x):
  y = x @ params[f'{name}/kernel']
  bias = params.get(f'{name}/bias')
  return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def mlp(params, name, x):
  count = sum(k.startswith(f'{name}/layers/') for k in params) // 2
  for i in range(count):
    x = dense(params, f'{name}/layers/{i}', jax.nn.gelu(x) if i else x)
  return x


def norm(params, name, x):
  mean = x.mean(-1, keepdims=True)
  variance = (x**2).mean(-1, keepdims=True) - mean**2
  scale = jnp.broadcast_to(params[f'{name}/scale'], x.shape)
  y = (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * scale)
  bias = params.get(f'{name}/bias')
  return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def segment_attention(q, k, v, ids):
  """Attention of [b, t, n, d] arrays among tokens of equal ids [b, t]."""
  logits = jnp.einsum('BTND,BSND->BNTS', q, k) / jnp.sqrt(q.shape[-1])
  same = ids[:, None, :, None] == ids[:, None, None, :]
  logits = jnp.where(same, logits, -0.7 * jnp.finfo(jnp.float32).max)
  return jnp.einsum('BNTS,BSND->BTND', jax.nn.softmax(logits), v)


def layer(params, x, ids, rope, heads):
  """Applies a multi-view layer to [b, v, t, c] tokens with ids [b, t]."""
  b, v, t, c = x.shape
  qkv = dense(params, 'qkv', norm(params, 'norm_attention', x))
  q, k, val, self_q, self_k, self_v = (
    part.reshape(b, v, t, heads, c // heads) for part in jnp.split(qkv, 6, -1)
  )

  def turn(name, x):
    scale = jnp.broadcast_to(params[f'{name}/scale'], x.shape)
    x = scale * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    cos, sin = (rope[None, None, :, None, :, i] for i in range(2))
    turned = jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * cos + turned * sin

  q, k = turn('norm_q', q), turn('norm_k', k)
  self_q, self_k = turn('norm_self_q', self_q), turn('norm_self_k', self_k)

  def merge(x):
    return x.reshape(b, v * t, heads, c // heads)

  def fold(x):
    return x.reshape(b * v, t, heads, c // heads)

  across = segment_attention(
    merge(q), merge(k), merge(val), jnp.tile(ids, (1, v))
  )
  within = segment_attention(
    fold(self_q), fold(self_k), fold(self_v), jnp.repeat(ids, v, axis=0)
  )
  both = jnp.concatenate([a.reshape(b, v, t, c) for a in (across, within)], -1)

  def gain(name, x):
    return x * jnp.broadcast_to(params[f'{name}/scale'], x.shape)

  x = x + gain('scale_attention', dense(params, 'out', both))
  hidden = jax.nn.gelu(norm(params, 'norm_mlp', x))
  return x + gain('scale_mlp', mlp(params, 'mlp', hidden))


def trunk(params, x, ids, rope, heads):
  run = jax.checkpoint(functools.partial(layer, heads=heads))
  for i in range(sum(k.endswith('/qkv/kernel') for k in params)):
    x = run(sub(params, f'stack/layers/{i}'), x, ids, rope)
  return x


def sub(params, prefix):
  n = len(prefix) + 1
  return {k[n:]: v for k, v in params.items() if k.startswith(prefix + '/')}


def rope_of(config, grid, extra):
  table = layers.rope_table(layers.grid_positions(*grid), config.head_dim)
  still = jnp.broadcast_to(jnp.array([1.0, 0.0]), (extra, *table.shape[1:]))
  return jnp.concatenate([table, still])


def encode(params, config, images, mask):
  """Returns poses [b, v, 2, z] from the patches of mask 0 and of mask 1."""
  params = sub(params, 'pose_encoder')
  patches = layers.patchify(images, config.patch_size)
  b, v, t, _ = patches.shape
  registers = params['registers']
  g = len(registers)
  copies = jnp.broadcast_to(
    jnp.concatenate([registers] * 2), (b, v, 2 * g, config.features)
  )
  x = jnp.concatenate([dense(params, 'embed', patches), copies], 2)
  own = jnp.broadcast_to(jnp.repeat(jnp.arange(2), g), (b, 2 * g))
  ids = jnp.concatenate([mask.astype(jnp.int32), own], 1)
  grid = [n // config.patch_size for n in images.shape[2:4]]
  rope = rope_of(config, grid, 2 * g)
  inner = sub(params, 'trunk')
  x = trunk(inner, x, ids, rope, config.heads)
  z = jax.nn.gelu(norm(inner, 'norm', x[:, :, jnp.array([t, t + g])]))
  z0 = jnp.broadcast_to(z[:, :1], z.shape)

  def head(a):
    return mlp(params, 'head', jnp.concatenate([a, z0], -1))

  return head(z) - head(z0)


def render(params, config, context, poses, mask):
  """Renders the target [b, h, w, 3] from contexts and poses [b, v, 2, z]."""
  params = sub(params, 'renderer')
  patches = layers.patchify(context, config.patch_size)
  own = jnp.where(
    mask[:, None, :, None] == 0, poses[:, :, None, 0], poses[:, :, None, 1]
  )
  z_context = mlp(
    params, 'embed_context', jnp.concatenate([patches, own[:, :-1]], -1)
  )
  z_target = mlp(params, 'embed_target', own[:, -1:])
  height, width = context.shape[2:4]
  grid = (height // config.patch_size, width // config.patch_size)
  inner = sub(params, 'trunk')
  x = trunk(
    inner,
    jnp.concatenate([z_context, z_target], 1),
    mask.astype(jnp.int32),
    rope_of(config, grid, 0),
    config.heads,
  )
  y = mlp(params, 'head', jax.nn.gelu(norm(inner, 'norm', x[:, -1])))
  out = 2 * (jax.nn.sigmoid(y) - 0.5)
  return layers.unpatchify(out, config.patch_size, height, width)


def masked_l1(params, config, images, pairs, mask):
  """Loss with a mask per example; an all-zero mask means unmasked."""
  drawn = reconstruct(params, config, images, pairs, mask)
  return jnp.abs(drawn - images[:, -1]).mean()


def reconstruct(params, config, images, pairs, mask):
  """Renders the target [b, h, w, 3] with the poses of the halves swapped."""
  count = pairs.shape[1]
  poses = encode(
    params,
    config,
    pairs.reshape(-1, *pairs.shape[2:]),
    jnp.repeat(mask, count, axis=0),
  )
  poses = poses.reshape(-1, count, *poses.shape[1:])
  poses = jnp.concatenate([poses[:, :1, 0], poses[:, :, 1]], axis=1)
  whole = (mask.max(axis=1) == 0)[:, None, None]
  first, second = poses[:, :, 0], poses[:, :, 1]
  second = jnp.where(whole, first, second)
  swapped = jnp.stack([second, first], 2)
  return render(params, config, images[:, :-1], swapped, mask)


def mask_of(order, grid):
  """Dense patch mask [b, t] of quadrants split as in `objective.Samples`."""
  bits = jnp.zeros(order.shape, jnp.int32)
  bits = jax.vmap(lambda row, o: row.at[o[2:]].set(1))(bits, order)
  tall = jnp.repeat(bits.reshape(-1, 2, 2), grid[0] // 2, axis=1)
  return jnp.repeat(tall, grid[1] // 2, axis=2).reshape(len(order), -1)


def jitter_and_blur(images, draws, config):
  """Augments [b, v, h, w, 3] with a switch per example and operation."""

  def cell(value):
    return value.reshape(1, 1, 1, 1)

  def one(x, d):
    ops = (
      lambda x: x + d['brightness'],
      lambda x: augment.adjust_contrast(x, cell(d['contrast'])),
      lambda x: augment.adjust_saturation(x, cell(d['saturation'])),
      lambda x: augment.adjust_hue(x, cell(d['hue'])),
    )
    y = (x + 1) / 2
    sequence = jnp.argsort(d['order'])
    for place in range(4):
      y = jax.lax.switch(sequence[place], ops, y)
    x = jnp.clip(jnp.where(d['jitter'], 2 * y - 1, x), -1, 1)
    kernel = augment.gaussian_kernel(d['sigma'][None], config.blur_taps)
    blurred = augment.blur(x[None], kernel)[0]
    return jnp.clip(jnp.where(d['blur'], blurred, x), -1, 1)

  return jax.vmap(one)(images, vars(draws))
