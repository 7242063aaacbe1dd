"""Model and executed FLOPs of RUST and RayZer."""

from xfactor.methods.autoencoding import rayzer, rust
from xfactor.metrics import lpips


def baseline_step(
  config: rust.RustConfig | rayzer.RayZerConfig,
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
  config: rust.RustConfig | rayzer.RayZerConfig,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
  lpips_dtype: str | None = None,
) -> float:
  """FLOPs that chips execute for one update; see methods/xfactor/cost.py.

  RUST's perceptual distance is counted for whole pictures.
  """
  sizes = {'batch': batch, 'views': views, 'height': height, 'width': width}
  total = float(baseline_step(config, **sizes))
  if config.remat == 'full':
    tokens = height * width // config.patch_size**2
    total += batch * _baseline(config, views, tokens, dense=4)[1]
  return total + lpips.lpips_flops(batch, height, width, lpips_dtype)


def _baseline(
  config: rust.RustConfig | rayzer.RayZerConfig,
  views: int,
  tokens: int,
  dense: int,
) -> tuple[int, int]:
  """FLOPs of one example outside the blocks and in the blocks.

  An MLP counts as `dense` weight matrices of width x width.
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
  if isinstance(config, rust.RustConfig):
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
