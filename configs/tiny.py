"""A tiny stereo model on synthetic rooms: minutes on a laptop's CPU.

  python -m xfactor.main --config=configs/tiny.py --workdir=runs/tiny

Makes its data where they are missing: 128 rooms of 24 frames, 64 x 64 pixels.
2.2 M parameters, L1 loss only. Hardware: two CPU cores, under ten minutes;
README.md shows what comes out.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """The README's first recipe."""
  config = configs.small()
  config.data.mix = {'synthetic': configs.part(begin=4, end=12)}
  config.data.make = {'synthetic': {'scenes': 128, 'frames': 24, 'size': 64}}
  config.data.ramp_steps = 200
  config.train.steps = 400
  config.train.log_every = 20
  config.train.eval_every = 0
  config.train.save_every = 100
  config.eval.window = 8
  return config
