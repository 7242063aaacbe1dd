r"""A tiny stereo model on your own videos: an hour on a laptop's CPU.

  python tools/convert_datasets.py --dataset=video --source=FOLDER \
      --data_dir=data --size=64 --stride=2
  python -m xfactor.main --config=configs/phone.py --workdir=runs/phone

docs/tutorial.md goes through it, from filming to a moved scene. 64 x 64 pixels,
2.2 M parameters, L1 loss only. Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """The tiny model on videos of one place, a few dozen of some seconds."""
  config = configs.small()
  config.data.mix = {'video': configs.part(begin=3, end=10)}
  config.data.ramp_steps = 1_000
  config.optimizer.warmup_steps = 200
  config.train.steps = 4_000
  config.train.log_every = 50
  config.train.eval_every = 500
  config.train.save_every = 250
  config.eval.window = 8
  return config
