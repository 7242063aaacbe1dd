"""Analytic FLOPs and what chips can do, for MFU that means something.

Model FLOPs: two per multiply-add, forward and backward (three times the
forward), no recomputation, every query-key pair that the token split leaves,
LPIPS not counted. XLA's own count takes a scanned layer once: not used.
"""

import dataclasses

import jax

from xfactor.models import perceptual, xfactor


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

  Model FLOPs, the layers once more where they are recomputed (config.remat),
  and LPIPS if it has a dtype: TPUs take six passes for a float32 convolution.
  What attention kernels recompute is not counted.
  """
  sizes = {'views': views, 'height': height, 'width': width, 'whole': whole}
  total = float(train_step(config, batch=batch, **sizes))
  if config.remat == 'full':
    tokens = height * width // config.patch_size**2
    halves = 1 if whole else 2
    total += batch * halves * _trunks(config, views, tokens // halves)
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


def _trunks(config: xfactor.Config, views: int, tokens: int) -> int:
  width = config.features
  encoder = _layers(width, config.encoder_layers, 2, tokens + config.registers)
  renderer = _layers(width, config.renderer_layers, views, tokens)
  return (views - 1) * encoder + renderer


def _layers(width: int, depth: int, views: int, tokens: int) -> int:
  dense = 2 * 16 * width**2 * views * tokens
  across = 4 * width * (views * tokens) ** 2
  within = 4 * width * views * tokens**2
  return depth * (dense + across + within)
