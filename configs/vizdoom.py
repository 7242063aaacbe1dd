"""Small stereo model on camera flights through levels of Freedoom.

  python tools/convert_datasets.py --dataset=vizdoom --data_dir=data --walks=288
  python -m xfactor.main --config=configs/vizdoom.py --workdir=runs/vizdoom

Needs `pip install -e .[vizdoom]`. Trains on 252 walks through 60 levels, tests
on 36 walks through 8 other levels, 64 x 64 pixels. Hardware: two CPU cores,
half an hour; not yet run with these settings.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the small recipe on a world made by others."""
  config = configs.small()
  config.model.update(features=96, renderer_layers=3, patch_size=8)
  config.data.image_size = 64
  config.train.accumulate = 8
  config.data.mix = {'vizdoom': configs.part(begin=2, end=6)}
  config.data.mirror_prob = 0.5
  config.data.ramp_steps = 1_500
  config.train.steps = 4_000
  config.train.log_every = 50
  config.train.eval_every = 500
  config.train.save_every = 250
  config.eval.window = 6
  config.eval.transfer_window = 11
  return config
