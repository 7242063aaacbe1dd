"""Model FLOPs of RUST and RayZer."""

from xfactor.methods.autoencoding import rayzer, rust


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
  return 3 * batch * _forward(config, views, tokens)


def _forward(
  config: rust.RustConfig | rayzer.RayZerConfig,
  views: int,
  tokens: int,
) -> int:
  """FLOPs of the forward pass of one example."""
  width, patch = config.features, config.patch_channels
  depths = config.encoder_layers, config.scene_layers, config.decoder_layers

  def block(count: int, keys: int, cross: bool = False) -> int:
    if cross:
      products = 2 * width**2 * (count * 10 + 2 * keys)
    else:
      products = 2 * width**2 * count * 12
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
  return 2 * ends + layers
