"""A tiny stereo model on synthetic scenes: minutes on a laptop's CPU.

  python -m xfactor.main --config=configs/tiny.py --workdir=runs/tiny
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """The README's first recipe."""
  config = configs.base()
  config.model.features = 128
  config.model.heads = 4
  config.model.patch_size = 8
  config.model.encoder_layers = 3
  config.model.renderer_layers = 3
  config.model.pose_dim = 16
  config.model.registers = 4
  config.model.dtype = 'float32'
  config.model.remat = 'none'
  config.objective.lpips_weight = 0.0
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 50
  config.data.mix = {'synthetic': configs.part(begin=4, end=12)}
  config.data.make = {'synthetic': {'scenes': 128, 'frames': 24, 'size': 64}}
  config.data.batch = 16
  config.data.image_size = 64
  config.data.ramp_steps = 200
  config.train.steps = 400
  config.train.log_every = 20
  config.train.eval_every = 0
  config.train.save_every = 100
  config.eval.window = 8
  config.eval.batch = 16
  return config
