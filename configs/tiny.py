"""Tiny stereo model on synthetic rooms: minutes on a laptop CPU.

  python -m xfactor.main --config=configs/tiny.py --workdir=runs/tiny

Makes missing data: 200 rooms in which a camera pans, or pans and tilts, at
three spots each, 32 x 32 pixels. 0.4 M parameters.
Hardware: two CPU cores, under ten minutes; README.md shows the results.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the README's first recipe."""
  config = configs.small()
  config.data.mix = {'rooms': configs.part(begin=3, end=8)}
  config.data.make = {
    'rooms': {
      'source': 'synthetic',
      'scenes': 200,
      'walks': 3,
      'frames': 64,
      'size': 32,
      'paths': 'pan,pan+tilt',
      'field_of_view': 65.0,
      'with_depth': False,
    }
  }
  config.data.ramp_steps = 600
  config.train.steps = 2_000
  config.train.log_every = 20
  config.train.eval_every = 0
  config.train.save_every = 200
  config.eval.window = 7
  config.eval.transfer_window = 13
  return config
