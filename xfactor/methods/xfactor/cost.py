"""Analytic FLOPs and what chips can do, for MFU that means something.

Model FLOPs: two per multiply-add, forward and backward (three times the
forward), no recomputation, every query-key pair that the token split leaves,
LPIPS not counted. XLA's own count takes a scanned layer once: not used.
"""

from xfactor.methods.xfactor import network
from xfactor.metrics import lpips


def train_step(
  config: network.Config,
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
  config: network.Config,
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
  return total + lpips.lpips_flops(batch, height, width, lpips_dtype)


def forward_pass(
  config: network.Config, *, views: int, tokens: int, render: bool = True
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


def _encoder_sets(config: network.Config, views: int) -> tuple[int, int]:
  """Sets that the pose encoder sees, and views of each."""
  return (1, views) if config.joint_encoder else (views - 1, 2)


def _trunks(
  config: network.Config,
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
