"""A small stereo model that learns all six motions of a camera in an hour.

  pip install -e '.[vizdoom]'
  python -m xfactor.main --config=configs/laptop.py --workdir=runs/laptop

Makes its data where they are missing: procedural rooms and levels of Freedoom
through which a camera turns, slides, rises and pushes ahead, 64 x 64 pixels.
Windows grow from small motions to large ones; no camera is ever told.
Hardware: two CPU cores, one hour; README.md shows what comes out.
"""

from ml_collections import ConfigDict

from xfactor import config as configs

_ALL = 'pan+tilt+roll+slide+rise+push'


def get_config() -> ConfigDict:
  """Rooms and levels in equal shares."""
  config = configs.small()
  config.model.update(
    features=96, encoder_layers=2, renderer_layers=3, patch_size=8
  )
  config.data.image_size = 64
  config.data.mix = {
    'rooms_6dof': configs.part(begin=3, end=8),
    'levels_6dof': configs.part(begin=3, end=8),
  }
  shared = {'frames': 64, 'size': 64, 'paths': _ALL, 'with_depth': False}
  config.data.make = {
    'rooms_6dof': {
      'source': 'synthetic',
      'scenes': 300,
      'walks': 2,
      'field_of_view': 65.0,
      'turn': 1.5,
      'move': 0.04,
      **shared,
    },
    'levels_6dof': {
      'source': 'vizdoom',
      'walks': 600,
      'turn': 1.5,
      'move': 0.08,
      **shared,
    },
  }
  config.data.ramp_steps = 2_000
  config.train.steps = 8_000
  config.train.log_every = 50
  config.train.eval_every = 1_000
  config.train.save_every = 250
  config.eval.window = 7
  config.eval.transfer_window = 13
  return config
