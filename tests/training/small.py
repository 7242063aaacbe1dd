"""A recipe small enough to train in a test, and data for it."""

import dataclasses

import jax
import numpy as np

from xfactor import config as configs
from xfactor.data import images, sources
from xfactor.data.convert import run as convert_run
from xfactor.geometry import cameras
from xfactor.methods.base import StepKind
from xfactor.nn import sharding
from xfactor.training import build

# Settings of the model that `configs.small` has otherwise.
PUBLISHED = {
  'position_grid': 0,
  'layer_scale': 0.01,
  'tie_qk': False,
  'pose_gain': 1.0,
}
# And as it has them, as overrides of `recipe`.
LEARNING = {
  'optimizer__name': 'muon',
  'model__position_grid': 4,
  'model__layer_scale': 0.3,
  'model__tie_qk': True,
  'model__pose_gain': 10.0,
}


@dataclasses.dataclass(frozen=True)
class Squares(sources.Source):
  """Clips of a bright square that moves over a coloured ground."""

  clips_made: int = 24
  frames: int = 12
  size: int = 32

  name = 'squares'
  description = 'Moving squares, for tests.'

  def items(self):
    return [
      sources.Item(f'{i:03d}', split='test' if i % 4 == 0 else 'train')
      for i in range(self.clips_made)
    ]

  def clips(self, item):
    rng = np.random.default_rng(int(item.id))
    ground, square = rng.integers(0, 256, (2, 3))
    place, speed = rng.integers(0, 12, 2), rng.integers(-1, 2, 2)
    frames = []
    for i in range(self.frames):
      picture = np.tile(ground, (self.size, self.size, 1)).astype(np.uint8)
      y, x = np.clip(place + i * speed, 0, self.size - 8)
      picture[y : y + 8, x : x + 8] = square
      frames.append(images.encode_jpeg(picture))
    yield sources.Clip(item.id, frames, self.size, self.size)


@dataclasses.dataclass(frozen=True)
class Skies(sources.Source):
  """Posed clips of a sky whose colours depend on the line of sight alone."""

  clips_made: int = 16
  frames: int = 6
  height: int = 24
  width: int = 32

  name = 'skies'
  description = 'Skies, for tests.'

  def items(self):
    return [
      sources.Item(f'{i:03d}', split='test' if i % 4 == 0 else 'train')
      for i in range(self.clips_made)
    ]

  def clips(self, item):
    rng = np.random.default_rng(int(item.id))
    eyes = rng.normal(size=(self.frames, 3)) + [0, 0, 1]
    eyes = 3 * cameras.normalize(eyes)
    poses = cameras.look_at(eyes, 0.1 * eyes[::-1], np.array([0.0, 0.0, 1.0]))
    intrinsics = np.tile([1.0, 4 / 3, 0.5, 0.5], (self.frames, 1))
    rays = cameras.pixel_rays(intrinsics, poses, self.height, self.width)[1]
    colours = np.sin(2 * rays @ rng.normal(size=(3, 3)))
    frames = (127.5 * (1 + colours)).astype(np.uint8)
    yield sources.Clip(
      item.id,
      [images.encode_png(frame) for frame in frames],
      self.height,
      self.width,
      intrinsics=intrinsics.astype(np.float32),
      world_to_camera=poses.astype(np.float32),
    )


def posed_recipe(data_dir, **changes):
  """An SRT of 2 + 2 views of 24 x 32 pixels; overrides as in `recipe`."""
  config = configs.small('srt')
  config.model.update(
    features=16,
    heads=2,
    decoder_heads=2,
    mlp_features=16,
    conv_features=4,
    encoder_layers=1,
    decoder_layers=1,
  )
  config.objective.rays = 32
  config.optimizer.warmup_steps = 2
  config.data.update(
    dir=str(data_dir),
    batch=8,
    image_size=24,
    image_width=32,
    contexts=2,
    targets=2,
    min_length=4,
    threads=2,
  )
  config.data.mix = {'skies': configs.part(begin=6, end=6)}
  return _short(config, changes)


def recipe(data_dir, **changes):
  """The recipe, with overrides as `section__key=value`."""
  config = configs.small()
  config.model.update(
    features=16,
    heads=2,
    patch_size=8,
    encoder_layers=1,
    renderer_layers=1,
    pose_dim=4,
    registers=1,
    **PUBLISHED,
  )
  config.objective.unmasked_prob = 0.25
  config.objective.augmentation = configs.base().objective.augmentation
  config.optimizer.update(
    name='adamw',
    learning_rate=1e-3,
    final_learning_rate=1e-4,
    warmup_steps=2,
  )
  config.data.update(
    dir=str(data_dir),
    batch=8,
    image_size=32,
    ramp_steps=4,
    threads=2,
  )
  config.eval.update(pairs=2, targets=3)
  config.data.mix = {'squares': configs.part(begin=3, end=6)}
  return _short(config, changes)


def baseline_recipe(method, data_dir, **changes):
  """RUST or RayZer on the data of `recipe`; overrides as there."""
  config = configs.like(recipe(data_dir).unlock(), method)
  config.model.update(scene_layers=1, decoder_layers=1)
  if method == 'rayzer':
    config.model.scene_tokens = 4
  return _short(config, changes)


def _short(config, changes):
  """A few steps, and a small evaluation."""
  config.train.update(
    steps=6, log_every=2, eval_every=0, save_every=3, keep=2, accumulate=1
  )
  # LPIPS would take longer than all the rest.
  config.eval.update(window=4, batch=8, panel=3, lpips=False)
  for name, value in changes.items():
    section, _, key = name.partition('__')
    config[section][key] = value
  return config.lock()


def batch(built, rng):
  """A batch of noise on the mesh."""
  made = {}
  for name, shape in built.abstract_batch().items():
    if name == 'images':
      made[name] = rng.integers(0, 256, shape.shape, np.uint8)
    elif name == 'frames':
      frames = rng.integers(0, 30, shape.shape, np.int32)
      made[name] = np.sort(frames, axis=1)
    elif name == 'intrinsics':
      made[name] = rng.uniform(0.5, 1, shape.shape).astype(np.float32)
    else:
      eyes = rng.normal(size=(*shape.shape[:2], 3))
      made[name] = cameras.look_at(
        eyes, -eyes, np.array([0.0, 0.0, 1.0])
      ).astype(np.float32)
  return sharding.to_mesh(built.mesh, made)


def three_steps(config, devices):
  """Parameters after three steps on noise, on so many devices, and losses."""
  built = build.build(config, jax.devices()[:devices])
  rng = np.random.default_rng(0)
  state, losses = built.init(), []
  program = built.compile(StepKind.SPLIT, weights=None)
  for _ in range(3):
    state, metrics = program(state, batch(built, rng), None)
    losses.append(float(metrics['loss']))
  return jax.device_get(state.params), losses


def make_data(folder):
  """Converts the squares; returns the data folder."""
  convert_run.convert(Squares(), folder, workers=0, quiet=True)
  return folder


def make_posed_data(folder):
  """Converts the skies; returns the data folder."""
  convert_run.convert(Skies(), folder, workers=0, quiet=True)
  return folder


def stop_at(step, read):
  """Log.read, interrupted when the metrics of `step` are due."""
  calls = []

  def stopping(self):
    calls.append(self)
    if len(calls) * 2 >= step:
      raise KeyboardInterrupt
    return read(self)

  return stopping
