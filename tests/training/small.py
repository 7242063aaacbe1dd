"""A recipe small enough to train in a test, and data for it."""

import dataclasses

import numpy as np

from xfactor import config as configs
from xfactor.data import convert, images, sources
from xfactor.training import sharding


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


def recipe(data_dir, **changes):
  """The recipe, with overrides as `section__key=value`."""
  config = configs.small()
  config.model.update(
    features=16,
    heads=2,
    encoder_layers=1,
    renderer_layers=1,
    pose_dim=4,
    registers=1,
  )
  config.objective.unmasked_prob = 0.25
  config.optimizer.warmup_steps = 2
  config.data.update(
    dir=str(data_dir),
    batch=8,
    image_size=32,
    ramp_steps=4,
    threads=2,
  )
  config.data.mix = {'squares': configs.part(begin=3, end=6)}
  config.train.update(steps=6, log_every=2, eval_every=0, save_every=3, keep=2)
  # LPIPS would take longer than all the rest.
  config.eval.update(window=4, batch=8, panel=3, lpips=False)
  for name, value in changes.items():
    section, _, key = name.partition('__')
    config[section][key] = value
  return config.lock()


def batch(built, rng):
  """A batch of noise on the mesh."""
  shapes = built.abstract_batch()
  images = rng.integers(0, 256, shapes['images'].shape, np.uint8)
  frames = rng.integers(0, 30, shapes['frames'].shape, np.int32)
  return sharding.to_mesh(
    built.mesh, {'images': images, 'frames': np.sort(frames, axis=1)}
  )


def make_data(folder):
  """Converts the squares; returns the data folder."""
  convert.convert(Squares(), folder, workers=0, quiet=True)
  return folder
