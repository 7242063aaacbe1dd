"""Analytic FLOPs and the peaks of chips, for MFU that means something.

Model FLOPs: two per multiply-add, forward and backward (three times the
forward), no recomputation, every query-key pair that the token split leaves,
LPIPS not counted. XLA's own count takes a scanned layer once: not used.
"""

from xfactor.models import xfactor

# Peak dense bfloat16 TFLOP/s of a chip (a device for jax: v2 and v3 chips
# have two). Keys are prefixes of jax's device_kind, in lower case.
PEAK_TFLOPS = {
  'tpu v3': 61.5,
  'tpu v4': 275,
  'tpu v5 lite': 197,
  'tpu v5p': 459,
  'tpu v5': 459,
  'tpu v6 lite': 918,
  'nvidia a100': 312,
  'nvidia h100': 989,
  'nvidia h200': 989,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak bf16 FLOP/s of one device, or None where the table lacks it."""
  for prefix, tflops in PEAK_TFLOPS.items():
    if device_kind.lower().startswith(prefix):
      return tflops * 1e12
  return None


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
  encoder = (
    embed
    + head
    + _layers(width, config.encoder_layers, 2, tokens + config.registers)
  )
  embed_context = (
    2 * pairs * tokens * ((patch + pose) * 4 * width + 4 * width * width)
  )
  embed_target = 2 * (pose * 4 * width + 4 * width * width)
  pixels = 2 * tokens * (width * 4 * width + 4 * width * width + width * patch)
  renderer = (
    embed_context
    + embed_target
    + pixels
    + _layers(width, config.renderer_layers, views, tokens)
  )
  return pairs * encoder + renderer


def _layers(width: int, depth: int, views: int, tokens: int) -> int:
  dense = 2 * 16 * width**2 * views * tokens
  across = 4 * width * (views * tokens) ** 2
  within = 4 * width * views * tokens**2
  return depth * (dense + across + within)
