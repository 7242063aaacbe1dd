"""Model FLOPs of SRT."""

import itertools

from xfactor.methods.srt import network


def srt_train_step(
  config: network.Config,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  rays: int,
) -> int:
  """Model FLOPs of one update of SRT with `rays` rays per scene.

  `views`, `height` and `width` describe the encoded views. Each sample of a
  volume counts once per network that must evaluate it.
  """
  rows, columns = network.token_grid(config, height, width)
  tokens = views * rows * columns
  forward = (
    views * _convolutions(config, height, width)
    + 2 * tokens * config.channels[-1] * config.features
    + _srt_heads(config, rays)
    + _srt_layers(config, tokens, rays)
  )
  return 3 * batch * forward


def _convolutions(config: network.Config, height: int, width: int) -> int:
  """FLOPs of one view; its position is constant and costs nothing."""
  total, stride = 0, 1
  for i, (din, dout) in enumerate(itertools.pairwise(config.channels)):
    stride *= 1 + i % 2
    pixels = -(-height // stride) * -(-width // stride)
    din -= 0 if i else config.point_features
    total += 2 * 9 * pixels * din * dout
  return total


def _srt_queries(config: network.Config, rays: int) -> list[int]:
  """Queries of each decoding network, or of each use of one."""
  if config.decoder != 'nerf':
    return [rays]
  coarse, fine = config.coarse_samples, config.fine_samples
  second = coarse + fine if config.fine_net else fine
  return [rays * coarse, rays * second] if fine else [rays * coarse]


def _srt_heads(config: network.Config, rays: int) -> int:
  ray, point = config.ray_features, config.point_features
  hidden = network.HEAD_FEATURES
  if config.decoder == 'isrt':
    hidden = config.mlp_features
    each = 4 * ray**2 + (ray + 3 * hidden + 3) * hidden
  elif config.decoder == 'srt':
    each = (ray + 3) * hidden
  else:
    each = (2 * point + 3 + 1) * hidden
  return 2 * each * sum(_srt_queries(config, rays))


def _srt_layers(config: network.Config, tokens: int, rays: int) -> int:
  """FLOPs of the layers."""
  width, hidden = config.features, config.mlp_features
  dense = 4 * width**2 + 2 * width * hidden
  encoder = 2 * tokens * dense + 4 * width * tokens**2
  query = (
    config.point_features if config.decoder == 'nerf' else config.ray_features
  )
  dense = 2 * query * width + 2 * query * hidden
  decoder = sum(
    2 * (count * dense + tokens * 2 * width**2) + 4 * width * count * tokens
    for count in _srt_queries(config, rays)
  )
  return config.encoder_layers * encoder + config.decoder_layers * decoder
