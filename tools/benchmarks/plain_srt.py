"""Plain SRT and ISRT as in the public code: the reference for our fast paths.

Unrolled layers, dense float32 attention, no recomputation, convolutions of all
183 channels of a picture. Follows section 7 of the model's specification;
parameters are a state dict of stelzner/srt, with PyTorch's array layout.
"""

import jax
import jax.numpy as jnp


def encode(params, images, positions, rays, *, heads):
  """Encodes images [b, v, 3, h, w], rays [b, v, h, w, 3]; returns [b, t, c]."""
  views, size = images.shape[1], images.shape[3:]
  images, positions, rays = (
    x.reshape(-1, *x.shape[2:]) for x in (images, positions, rays)
  )
  place = jnp.tile(octaves(positions, -5)[..., None, None], (1, 1, *size))
  direction = jnp.moveaxis(octaves(rays, 0), -1, 1)
  x = jnp.concatenate([images, place, direction], 1)
  blocks = sum('conv_blocks' in name for name in params) // 2
  for i in range(blocks):
    for j, stride in ((0, 1), (2, 2)):
      kernel = params[f'encoder.conv_blocks.{i}.layers.{j}.weight']
      x = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(1, 1), (1, 1)]
      )
      x = jax.nn.relu(x)
  kernel = params['encoder.per_patch_linear.weight'][:, :, 0, 0]
  bias = params['encoder.per_patch_linear.bias']
  x = jnp.einsum('nihw,oi->nohw', x, kernel) + bias[None, :, None, None]
  if 'encoder.pixel_embedding' in params:
    rows, columns = x.shape[2:]
    x = x + params['encoder.pixel_embedding'][:, :, :rows, :columns]
  x = x.reshape(-1, views, *x.shape[1:])
  if 'encoder.pixel_embedding' in params:
    first, other = (
      params[f'encoder.{name}_camera_embedding'][0, 0, :, None, None]
      for name in ('canonical', 'non_canonical')
    )
    x = x + jnp.stack([first] + [other] * (views - 1))[None]
  x = jnp.moveaxis(x, 2, -1).reshape(x.shape[0], -1, x.shape[2])
  return transformer(params, 'encoder', x, None, heads)


def decode(params, tokens, positions, rays, *, heads):
  """Returns colours [b, r, 3] of rays, with the decoder in the parameters."""
  x = jnp.concatenate([octaves(positions, -5), octaves(rays, 0)], -1)
  if any('ray_predictor' in name for name in params):
    name = 'decoder.ray_predictor'
    x = transformer(params, name, x, tokens, heads)
    return jax.nn.sigmoid(mlp(params, f'{name}.output_mlp', x, 2))
  name = 'decoder.allocation_transformer'
  x = mlp(params, f'{name}.input_mlp', x, 2)
  x = transformer(params, name, x, tokens, heads)
  return mlp(params, 'decoder.render_mlp', x, 5)


def loss(params, inputs, targets, *, heads, decoder_heads):
  """Returns the mean squared error of colours; see `encode` and `decode`.

  Args:
    params: State dict.
    inputs: Images, positions and rays of the views.
    targets: Colours, positions and rays.
    heads: Attention heads of the encoder.
    decoder_heads: Attention heads of the decoder.
  """
  tokens = encode(params, *inputs, heads=heads)
  colors = decode(params, tokens, *targets[1:], heads=decoder_heads)
  return ((colors - targets[0]) ** 2).mean()


def octaves(x, start):
  """Returns the positional encoding with 15 octaves, starting at `start`."""
  angles = x[..., None] * broadcast(jnp.pi * 2.0 ** (start + jnp.arange(15)), x)
  angles = angles.reshape(*x.shape[:-1], -1)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def broadcast(values, x):
  return values.reshape((1,) * (x.ndim - values.ndim + 1) + values.shape)


def linear(params, name, x):
  y = x @ params[f'{name}.weight'].T
  bias = params.get(f'{name}.bias')
  return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def mlp(params, name, x, depth, step=2, activation=jax.nn.relu):
  for i in range(depth):
    x = linear(params, f'{name}.{step * i}', activation(x) if i else x)
  return x


def gelu(x):
  return x * (1 + jax.lax.erf(x / jnp.sqrt(2.0))) / 2


def norm(params, name, x):
  y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(
    x.var(-1, keepdims=True) + 1e-5
  )
  weight, bias = (
    jnp.broadcast_to(params[f'{name}.{leaf}'], x.shape)
    for leaf in ('weight', 'bias')
  )
  return y * weight + bias


def transformer(params, name, x, tokens, heads):
  """Applies pre-norm layers; self-attention if `tokens` is None."""
  depth = sum(
    key.startswith(f'{name}.transformer') and key.endswith('.1.norm.weight')
    for key in params
  )
  for i in range(depth):
    attention, feed_forward = (
      f'{name}.transformer.layers.{i}.{j}' for j in (0, 1)
    )
    y = norm(params, f'{attention}.norm', x)
    if tokens is None:
      q, k, v = jnp.split(linear(params, f'{attention}.fn.to_qkv', y), 3, -1)
    else:
      q = linear(params, f'{attention}.fn.to_q', y)
      k, v = jnp.split(linear(params, f'{attention}.fn.to_kv', tokens), 2, -1)
    q, k, v = (z.reshape(*z.shape[:2], heads, -1) for z in (q, k, v))
    logits = jnp.einsum('btnd,bsnd->bnts', q, k) / jnp.sqrt(q.shape[-1])
    y = jnp.einsum('bnts,bsnd->btnd', jax.nn.softmax(logits), v)
    y = y.reshape(*y.shape[:2], -1)
    x = x + linear(params, f'{attention}.fn.to_out.0', y)
    y = norm(params, f'{feed_forward}.norm', x)
    x = x + mlp(params, f'{feed_forward}.fn.net', y, 2, 3, gelu)
  return x
