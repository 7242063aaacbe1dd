"""Model FLOPs of XFactor.

They are two per multiply-add, forward and backward (three times the forward),
without recomputation and LPIPS, for every query-key pair that remains after the
token split. XLA's own count is not used: it counts a scanned layer once.
"""

from xfactor.methods.xfactor import network


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


def forward_pass(
  config: network.Config, *, views: int, tokens: int, render: bool = True
) -> int:
  """FLOPs to encode the poses of an example and render its target.

  Args:
    config: Sizes of the model.
    views: Number of views: reference, contexts and target.
    tokens: Patches per view in one set.
    render: Whether the target is rendered.
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
    # All patches of the target share a latent pose; rays differ.
    told = 1 if config.pose == 'latent' else tokens
    ends += 2 * told * (pose * 4 * width + 4 * width * width)
    ends += 2 * tokens * (4 * width * width * 2 + width * patch)
    if config.nuisance_dim:
      ends += 2 * (width * width + 2 * width * config.nuisance_dim)
  return ends + _trunks(config, views, tokens, render)


def _encoder_sets(config: network.Config, views: int) -> tuple[int, int]:
  """Sets that the pose encoder sees, and views per set."""
  return (1, views) if config.joint_encoder else (views - 1, 2)


def _trunks(
  config: network.Config,
  views: int,
  tokens: int,
  render: bool,
) -> int:
  """FLOPs of all layers."""
  width, longer = config.features, tokens + config.registers
  sets, seen = _encoder_sets(config, views)
  encoder = _layers(width, config.encoder_layers, seen, longer)
  renderer = _layers(width, config.renderer_layers, views, tokens)
  return sets * encoder + render * renderer


def _layers(width: int, depth: int, views: int, tokens: int) -> int:
  products = 2 * 16 * width**2 * views * tokens
  across = 4 * width * (views * tokens) ** 2
  within = 4 * width * views * tokens**2
  return depth * (products + across + within)
