"""Analytic FLOPs and what chips can do, for MFU that means something.

Model FLOPs: two per multiply-add, forward and backward (three times the
forward), no recomputation, every query-key pair that the token split leaves,
LPIPS not counted. XLA's own count takes a scanned layer once: not used.
"""

import dataclasses
import itertools

from xfactor.models import baselines, perceptual, srt, xfactor


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
  render: bool = True,
) -> int:
  """Model FLOPs of one update (three times the forward pass)."""
  tokens = height * width // config.patch_size**2
  halves = 1 if whole else 2
  forward = forward_pass(
    config, views=views, tokens=tokens // halves, render=render
  )
  return 3 * batch * halves * forward


def executed_step(
  config: xfactor.Config,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  whole: bool = False,
  render: bool = True,
  lpips_dtype: str | None = None,
) -> float:
  """FLOPs that the chips do for one update, in bfloat16 passes, at least.

  Model FLOPs, the layers but for their last product once more where they are
  recomputed (config.remat), and LPIPS if it has a dtype: TPUs take six passes
  for a float32 convolution. What attention kernels recompute is not counted.
  """
  sizes = {'views': views, 'height': height, 'width': width, 'whole': whole}
  total = float(train_step(config, batch=batch, render=render, **sizes))
  if config.remat == 'full':
    tokens = height * width // config.patch_size**2
    halves = 1 if whole else 2
    again = _trunks(config, views, tokens // halves, render, dense=12)
    total += batch * halves * again
  return total + _lpips(batch, height, width, lpips_dtype)


def _lpips(batch: int, height: int, width: int, dtype: str | None) -> float:
  if not dtype:
    return 0.0
  passes = 6 if dtype == 'float32' else 1
  return batch * passes * lpips_gradient(height, width)


def lpips_gradient(height: int, width: int) -> int:
  """FLOPs of LPIPS (VGG16) of two images and its gradient for one of them.

  Three passes through the convolutions, whose weights have no gradient.
  """
  return 3 * perceptual.vgg16_flops(height, width)


def forward_pass(
  config: xfactor.Config, *, views: int, tokens: int, render: bool = True
) -> int:
  """FLOPs of encoding an example's poses and drawing its target.

  Args:
    config: The model's sizes.
    views: Reference, contexts and target together.
    tokens: Patches of each view that one set holds.
    render: Whether anything is drawn.
  """
  width, pose = config.features, config.pose_channels
  patch = config.patch_channels
  contexts = views - 1
  sets, seen = _encoder_sets(config, views)
  embed = 2 * tokens * patch * width
  head = (
    2
    * 2
    * (2 * width * 4 * width + 4 * width * width + width * config.pose_dim)
  )
  ends = sets * seen * (embed + head)
  if render:
    ends += (
      2 * contexts * tokens * ((patch + pose) * 4 * width + 4 * width * width)
    )
    # A latent pose is the same for all patches of the target; rays are not.
    told = 1 if config.pose == 'latent' else tokens
    ends += 2 * told * (pose * 4 * width + 4 * width * width)
    ends += 2 * tokens * (4 * width * width * 2 + width * patch)
  return ends + _trunks(config, views, tokens, render)


def _encoder_sets(config: xfactor.Config, views: int) -> tuple[int, int]:
  """Sets that the pose encoder sees, and views of each."""
  return (1, views) if config.joint_encoder else (views - 1, 2)


def _trunks(
  config: xfactor.Config,
  views: int,
  tokens: int,
  render: bool,
  dense: int = 16,
) -> int:
  """Layers, of whose dense weights `dense` squares of the width are used."""
  width, longer = config.features, tokens + config.registers
  sets, seen = _encoder_sets(config, views)
  encoder = _layers(width, config.encoder_layers, seen, longer, dense)
  renderer = _layers(width, config.renderer_layers, views, tokens, dense)
  return sets * encoder + render * renderer


def _layers(width: int, depth: int, views: int, tokens: int, dense: int) -> int:
  products = 2 * dense * width**2 * views * tokens
  across = 4 * width * (views * tokens) ** 2
  within = 4 * width * views * tokens**2
  return depth * (products + across + within)


def baseline_step(
  config: baselines.RustConfig | baselines.RayZerConfig,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
) -> int:
  """Model FLOPs of one update of RUST or RayZer."""
  tokens = height * width // config.patch_size**2
  ends, blocks = _baseline(config, views, tokens, dense=8)
  return 3 * batch * (ends + blocks)


def baseline_executed_step(
  config: baselines.RustConfig | baselines.RayZerConfig,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  lpips_dtype: str | None = None,
) -> float:
  """FLOPs that the chips do for one update; see `executed_step`.

  RUST's perceptual distance is counted of whole pictures.
  """
  sizes = {'batch': batch, 'views': views, 'height': height, 'width': width}
  total = float(baseline_step(config, **sizes))
  if config.remat == 'full':
    tokens = height * width // config.patch_size**2
    total += batch * _baseline(config, views, tokens, dense=4)[1]
  return total + _lpips(batch, height, width, lpips_dtype)


def _baseline(
  config: baselines.RustConfig | baselines.RayZerConfig,
  views: int,
  tokens: int,
  dense: int,
) -> tuple[int, int]:
  """FLOPs of one example: outside of the blocks, and of the blocks.

  `dense` squares of the width are what an MLP's weights count as.
  """
  width, patch = config.features, config.patch_channels
  depths = config.encoder_layers, config.scene_layers, config.decoder_layers

  def block(count: int, keys: int, cross: bool = False) -> int:
    if cross:
      products = 2 * width**2 * (count * (2 + dense) + 2 * keys)
    else:
      products = 2 * width**2 * count * (4 + dense)
    return products + 4 * width * count * keys

  contexts = (views - 1) * tokens
  if isinstance(config, baselines.RustConfig):
    half = tokens // 2
    counts = half + contexts, contexts, half
    blocks = (
      block(counts[0], counts[0]),
      block(contexts, contexts),
      block(half, contexts, cross=True),
    )
    ends = (contexts + half) * patch * width
    ends += (config.pose_dim * 4 + 4 * width) * width
    ends += half * (4 * width**2 + 4 * width * patch)
    ends += width * config.pose_dim
  else:
    rays = 2 * patch
    all_views = views * (tokens + 1)
    scene, drawn = config.scene_tokens + contexts, config.scene_tokens + tokens
    blocks = (
      block(all_views, all_views),
      block(scene, scene),
      block(drawn, drawn),
    )
    ends = views * tokens * patch * width
    ends += views * (2 * width**2 + 9 * width + width**2 + width)
    ends += contexts * (patch + rays + width) * width
    ends += tokens * (rays + patch) * width
  layers = sum(d * b for d, b in zip(depths, blocks, strict=True))
  return 2 * ends, layers


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
