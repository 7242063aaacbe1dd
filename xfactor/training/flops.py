"""Analytic FLOPs and what chips can do, for MFU that means something.

Model FLOPs: two per multiply-add, forward and backward (three times the
forward), no recomputation, every query-key pair that the token split leaves,
LPIPS not counted. XLA's own count takes a scanned layer once: not used.
"""

import dataclasses
import itertools

import jax

from xfactor.models import perceptual, srt, xfactor


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of what jax calls one device.

  Attributes:
    tflops: Dense bfloat16 TFLOP/s.
    hbm_gib: Memory that a program can have: libtpu's own figures for TPUs.
    hbm_gbps: Its bandwidth, GB/s.
    link_gbps: To the other chips over all links, GB/s (ICI, NVLink).
  """

  tflops: float
  hbm_gib: float
  hbm_gbps: float
  link_gbps: float


# By prefixes of jax's device_kind, in lower case. The chips of v3 are two
# devices each; those of v4 are one, as Cloud TPUs run them.
CHIPS = {
  'tpu v3': Chip(61.5, 15.48, 450, 82),
  'tpu v4': Chip(275, 30.75, 1228, 300),
  'tpu v5 lite': Chip(197, 15.75, 819, 200),
  'tpu v5': Chip(459, 95.74, 2765, 600),
  'tpu v6 lite': Chip(918, 31.25, 1640, 400),
  'nvidia a100': Chip(312, 80, 2039, 600),
  'nvidia h100': Chip(989, 80, 3352, 900),
  'nvidia h200': Chip(989, 140, 4800, 900),
}


def chip(device_kind: str) -> Chip | None:
  """The peaks of one device, or None where the table lacks it."""
  for prefix, peaks in CHIPS.items():
    if device_kind.lower().startswith(prefix):
      return peaks
  return None


def peak_flops(device_kind: str) -> float | None:
  """Peak bf16 FLOP/s of one device, or None where the table lacks it."""
  peaks = chip(device_kind)
  return peaks and peaks.tflops * 1e12


def train_step(
  config: xfactor.Config,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  whole: bool = False,
) -> int:
  """Model FLOPs of one update (three times the forward pass)."""
  tokens = height * width // config.patch_size**2
  halves = 1 if whole else 2
  forward = halves * forward_pass(config, views=views, tokens=tokens // halves)
  return 3 * batch * forward


def executed_step(
  config: xfactor.Config,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  whole: bool = False,
  lpips_dtype: str | None = None,
) -> float:
  """FLOPs that the chips do for one update, in bfloat16 passes, at least.

  Model FLOPs, the layers but for their last product once more where they are
  recomputed (config.remat), and LPIPS if it has a dtype: TPUs take six passes
  for a float32 convolution. What attention kernels recompute is not counted.
  """
  sizes = {'views': views, 'height': height, 'width': width, 'whole': whole}
  total = float(train_step(config, batch=batch, **sizes))
  if config.remat == 'full':
    tokens = height * width // config.patch_size**2
    halves = 1 if whole else 2
    total += batch * halves * _trunks(config, views, tokens // halves, dense=12)
  if lpips_dtype:
    passes = 6 if lpips_dtype == 'float32' else 1
    total += batch * passes * lpips_gradient(height, width)
  return total


def lpips_gradient(height: int, width: int) -> float:
  """FLOPs of LPIPS (VGG16) of two images and its gradient for one of them.

  XLA's count, right here: there are no loops.
  """
  image = jax.ShapeDtypeStruct((height, width, 3), 'float32')
  lowered = jax.jit(jax.grad(perceptual.lpips, argnums=1)).lower(
    perceptual.param_shapes('vgg16'), image, image
  )
  return lowered.cost_analysis()['flops']


def forward_pass(config: xfactor.Config, *, views: int, tokens: int) -> int:
  """FLOPs of encoding views - 1 pairs and drawing one target.

  Args:
    config: The model's sizes.
    views: Reference, contexts and target together.
    tokens: Patches of each view that one set holds.
  """
  width, pose = config.features, config.pose_dim
  patch = config.patch_channels
  pairs = views - 1
  embed = 2 * 2 * tokens * patch * width
  head = 2 * 4 * (2 * width * 4 * width + 4 * width * width + width * pose)
  embed_context = (
    2 * pairs * tokens * ((patch + pose) * 4 * width + 4 * width * width)
  )
  embed_target = 2 * (pose * 4 * width + 4 * width * width)
  pixels = 2 * tokens * (width * 4 * width + 4 * width * width + width * patch)
  ends = pairs * (embed + head) + embed_context + embed_target + pixels
  return ends + _trunks(config, views, tokens)


def _trunks(
  config: xfactor.Config, views: int, tokens: int, dense: int = 16
) -> int:
  """Layers, of whose dense weights `dense` squares of the width are used."""
  width, sets = config.features, tokens + config.registers
  encoder = _layers(width, config.encoder_layers, 2, sets, dense)
  renderer = _layers(width, config.renderer_layers, views, tokens, dense)
  return (views - 1) * encoder + renderer


def _layers(width: int, depth: int, views: int, tokens: int, dense: int) -> int:
  dense = 2 * dense * width**2 * views * tokens
  across = 4 * width * (views * tokens) ** 2
  within = 4 * width * views * tokens**2
  return depth * (dense + across + within)


def srt_train_step(
  config: srt.Config,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  rays: int,
) -> int:
  """Model FLOPs of one update of SRT, of `rays` rays a scene.

  Views and their size are those that are encoded. Of volumes, each sample
  counts once for each network that must look at it.
  """
  rows, columns = srt.token_grid(config, height, width)
  tokens = views * rows * columns
  forward = (
    views * _convolutions(config, height, width)
    + 2 * tokens * config.channels[-1] * config.features
    + _srt_heads(config, rays)
    + _srt_layers(config, tokens, rays)
  )
  return 3 * batch * forward


def srt_executed_step(
  config: srt.Config,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  rays: int,
) -> float:
  """FLOPs that the chips do for one update of SRT, in bfloat16 passes.

  Model FLOPs, and the layers but for their last product once more where they
  are recomputed (config.remat). What attention kernels recompute is not
  counted.
  """
  sizes = {'views': views, 'height': height, 'width': width, 'rays': rays}
  total = float(srt_train_step(config, batch=batch, **sizes))
  if config.remat == 'full':
    rows, columns = srt.token_grid(config, height, width)
    tokens = views * rows * columns
    total += batch * _srt_layers(config, tokens, rays, mlps=1)
  return total


def _convolutions(config: srt.Config, height: int, width: int) -> int:
  """Of one view; its position is the same all over and costs nothing."""
  total, stride = 0, 1
  for i, (din, dout) in enumerate(itertools.pairwise(config.channels)):
    stride *= 1 + i % 2
    pixels = -(-height // stride) * -(-width // stride)
    din -= 0 if i else config.point_features
    total += 2 * 9 * pixels * din * dout
  return total


def _srt_queries(config: srt.Config, rays: int) -> list[int]:
  """What each network that decodes, or each use of one, is asked for."""
  if config.decoder != 'nerf':
    return [rays]
  coarse, fine = config.coarse_samples, config.fine_samples
  second = coarse + fine if config.fine_net else fine
  return [rays * coarse, rays * second] if fine else [rays * coarse]


def _srt_heads(config: srt.Config, rays: int) -> int:
  ray, point = config.ray_features, config.point_features
  hidden = srt.HEAD_FEATURES
  if config.decoder == 'isrt':
    hidden = config.mlp_features
    each = 4 * ray**2 + (ray + 3 * hidden + 3) * hidden
  elif config.decoder == 'srt':
    each = (ray + 3) * hidden
  else:
    each = (2 * point + 3 + 1) * hidden
  return 2 * each * sum(_srt_queries(config, rays))


def _srt_layers(
  config: srt.Config, tokens: int, rays: int, mlps: int = 2
) -> int:
  """Layers, with this many products of the two of each MLP."""
  width, hidden = config.features, config.mlp_features
  dense = 4 * width**2 + mlps * width * hidden
  encoder = 2 * tokens * dense + 4 * width * tokens**2
  query = (
    config.point_features if config.decoder == 'nerf' else config.ray_features
  )
  dense = 2 * query * width + mlps * query * hidden
  decoder = sum(
    2 * (count * dense + tokens * 2 * width**2) + 4 * width * count * tokens
    for count in _srt_queries(config, rays)
  )
  return config.encoder_layers * encoder + config.decoder_layers * decoder
