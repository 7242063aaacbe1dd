"""Plain SRT and improved SRT in PyTorch, as its users write them today.

Eager and float32: PyTorch's own layers, fused attention and Adam, nothing
recomputed. Follows section 7 of the model's specification; parameters are a
state dict of stelzner/srt, arguments those of plain_srt.py.
"""

import math

import torch
from torch.nn import functional as F


def encode(params, images, positions, rays, *, heads):
  """Encodes images [b, v, 3, h, w], rays [b, v, h, w, 3]; returns [b, t, c]."""
  scenes, views = images.shape[:2]
  images, positions, rays = (x.flatten(0, 1) for x in (images, positions, rays))
  place = octaves(positions, -5)[:, :, None, None]
  direction = octaves(rays, 0).permute(0, 3, 1, 2)
  place = place.expand(-1, -1, *images.shape[2:])
  x = torch.cat([images, place, direction], 1)
  blocks = sum('conv_blocks' in name for name in params) // 2
  for i in range(blocks):
    for j, stride in ((0, 1), (2, 2)):
      kernel = params[f'encoder.conv_blocks.{i}.layers.{j}.weight']
      x = F.relu(F.conv2d(x, kernel, stride=stride, padding=1))
  name = 'encoder.per_patch_linear'
  x = F.conv2d(x, params[f'{name}.weight'], params[f'{name}.bias'])
  if 'encoder.pixel_embedding' in params:
    rows, columns = x.shape[2:]
    x = x + params['encoder.pixel_embedding'][:, :, :rows, :columns]
  x = x.unflatten(0, (scenes, views)).flatten(3).transpose(2, 3)
  if 'encoder.pixel_embedding' in params:
    first, other = (
      params[f'encoder.{name}_camera_embedding'][0]
      for name in ('canonical', 'non_canonical')
    )
    x = x + torch.stack([first] + [other] * (views - 1))
  return transformer(params, 'encoder', x.flatten(1, 2), None, heads)


def decode(params, tokens, positions, rays, *, heads):
  """Returns colours [b, r, 3] of rays, with the decoder in the parameters."""
  x = torch.cat([octaves(positions, -5), octaves(rays, 0)], -1)
  if any('ray_predictor' in name for name in params):
    name = 'decoder.ray_predictor'
    x = transformer(params, name, x, tokens, heads)
    return torch.sigmoid(mlp(params, f'{name}.output_mlp', x, 2))
  name = 'decoder.allocation_transformer'
  x = mlp(params, f'{name}.input_mlp', x, 2)
  x = transformer(params, name, x, tokens, heads)
  return mlp(params, 'decoder.render_mlp', x, 5)


def loss(params, inputs, targets, *, heads, decoder_heads):
  """Returns the mean squared error of colours; see `plain_srt.loss`."""
  tokens = encode(params, *inputs, heads=heads)
  colors = decode(params, tokens, *targets[1:], heads=decoder_heads)
  return F.mse_loss(colors, targets[0])


def octaves(x, start):
  """Returns the positional encoding with 15 octaves, starting at `start`."""
  scales = math.pi * 2.0 ** torch.arange(start, start + 15)
  angles = (x[..., None] * scales).flatten(-2)
  return torch.cat([torch.sin(angles), torch.cos(angles)], -1)


def linear(params, name, x):
  return F.linear(x, params[f'{name}.weight'], params.get(f'{name}.bias'))


def mlp(params, name, x, depth, step=2, activation=F.relu):
  for i in range(depth):
    x = linear(params, f'{name}.{step * i}', activation(x) if i else x)
  return x


def norm(params, name, x):
  weight, bias = params[f'{name}.weight'], params[f'{name}.bias']
  return F.layer_norm(x, x.shape[-1:], weight, bias)


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
      q, k, v = linear(params, f'{attention}.fn.to_qkv', y).chunk(3, -1)
    else:
      q = linear(params, f'{attention}.fn.to_q', y)
      k, v = linear(params, f'{attention}.fn.to_kv', tokens).chunk(2, -1)
    q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + linear(params, f'{attention}.fn.to_out.0', y)
    y = norm(params, f'{feed_forward}.norm', x)
    x = x + mlp(params, f'{feed_forward}.fn.net', y, 2, 3, F.gelu)
  return x
