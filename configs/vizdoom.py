"""A tiny stereo model on camera flights through levels of Freedoom.

  python tools/convert_datasets.py --dataset=vizdoom --data_dir=data --walks=288
  python -m xfactor.main --config=configs/vizdoom.py --workdir=runs/vizdoom

Needs `pip install -e .[vizdoom]`. 252 walks through 60 levels to train on, 36
through 8 other levels to test on, 64 x 64 pixels, 2.2 M parameters. Hardware:
two CPU cores, an hour or two; README.md shows the curve and the pictures.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """The tiny model, longer, on a world that we did not make."""
  config = configs.small()
  config.data.mix = {'vizdoom': configs.part(begin=4, end=16)}
  config.data.ramp_steps = 1_000
  config.optimizer.warmup_steps = 200
  config.train.steps = 4_000
  config.train.log_every = 50
  config.train.eval_every = 500
  config.train.save_every = 250
  config.eval.window = 12
  return config
