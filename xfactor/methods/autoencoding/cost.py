"""Model FLOPs of RUST and RayZer."""

from xfactor.methods.autoencoding import rayzer, rust


def rust_step(
  config: rust.RustConfig, *, batch: int, views: int, height: int, width: int
) -> int:
  """Returns the model FLOPs of one update of RUST."""
  tokens = height * width // config.patch_size**2
  features, patch = config.features, config.patch_channels
  contexts, half = (views - 1) * tokens, tokens // 2
  layers = (
    config.encoder_layers * _block(features, half + contexts, half + contexts)
    + config.scene_layers * _block(features, contexts, contexts)
    + config.decoder_layers * _cross_block(features, half, contexts)
  )
  ends = (contexts + half) * patch * features
  ends += (config.pose_dim * 4 + 4 * features) * features
  ends += half * (4 * features**2 + 4 * features * patch)
  ends += features * config.pose_dim
  return 3 * batch * (2 * ends + layers)


def rayzer_step(
  config: rayzer.RayZerConfig,
  *,
  batch: int,
  views: int,
  height: int,
  width: int,
) -> int:
  """Returns the model FLOPs of one update of RayZer."""
  tokens = height * width // config.patch_size**2
  features, patch = config.features, config.patch_channels
  contexts, rays = (views - 1) * tokens, 2 * patch
  all_views = views * (tokens + 1)
  scene, drawn = config.scene_tokens + contexts, config.scene_tokens + tokens
  layers = (
    config.encoder_layers * _block(features, all_views, all_views)
    + config.scene_layers * _block(features, scene, scene)
    + config.decoder_layers * _block(features, drawn, drawn)
  )
  ends = views * tokens * patch * features
  ends += views * (3 * features**2 + 10 * features)
  ends += contexts * (patch + rays + features) * features
  ends += tokens * (rays + patch) * features
  return 3 * batch * (2 * ends + layers)


def _block(features: int, tokens: int, keys: int) -> int:
  """Returns the forward FLOPs of a block of self-attention."""
  return 24 * features**2 * tokens + 4 * features * tokens * keys


def _cross_block(features: int, tokens: int, keys: int) -> int:
  """Returns the forward FLOPs of a block of cross-attention."""
  products = 2 * features**2 * (10 * tokens + 2 * keys)
  return products + 4 * features * tokens * keys
