r"""Small stereo model on your own videos: an hour on a laptop CPU.

  python tools/convert_datasets.py --dataset=video --source=FOLDER \
      --data_dir=data --size=64 --stride=2
  python -m xfactor.main --config=configs/phone.py --workdir=runs/phone

docs/tutorial.md explains all steps, from filming to a moved scene. 32 x 32
pixels (`configs/phone.py:video,64`: 64 x 64). `configs/phone.py:NAME` uses the
data set NAME instead of `video`. Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config(which: str = 'video') -> ConfigDict:
  """Returns the recipe; `which` is NAME or NAME,64 for 64 pixels."""
  name, _, size = which.partition(',')
  config = configs.small()
  if size == '64':
    config.model.update(features=96, renderer_layers=3, patch_size=8)
    config.data.image_size = 64
    config.train.accumulate = 8
  config.data.mix = {name: configs.part(begin=2, end=4)}
  config.data.mirror_prob = 0.5
  config.data.ramp_steps = 1_000
  config.train.steps = 4_000
  config.train.log_every = 50
  config.train.eval_every = 500
  config.train.save_every = 250
  config.eval.window = 4
  config.eval.transfer_window = 7
  return config
