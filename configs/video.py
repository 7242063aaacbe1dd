"""Stereo model on your own footage (videos or frames), on one GPU.

  python tools/convert_datasets.py --dataset=video --source=FOLDER \\
      --data_dir=data --size=128
  python -m xfactor.main --config=configs/video.py --workdir=runs/video

If converted with --name=NAME, use --config=configs/video.py:NAME. 59 M
parameters at 128 x 128 pixels. Windows suit walks and pans at 30 frames per
second: convert with --stride if the camera hardly moves between frames.
Hardware: one GPU of 8 GiB or more (not run on one yet); `train.accumulate`
trades time for memory. LPIPS needs `pip install -e .[perceptual]`.

On 4 TPU v5e chips of 15.75 GiB, 8 split examples per chip
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_ahead.py
--config=configs/video.py --topology=v5e:2x2
--config.objective.unmasked_prob=0.0`):

  model.remat  GiB a chip  least ms  bound by   MFU below
  full                1.8        16  computing       46 %
  none                9.4        24  HBM             31 %

Keep full, which the recipe uses.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config(name: str = 'video') -> ConfigDict:
  """Returns a medium-sized stereo recipe on the data set `name`."""
  config = configs.base()
  config.model.features = 512
  config.model.heads = 8
  config.model.encoder_layers = 6
  config.model.renderer_layers = 6
  config.model.patch_size = 8
  config.model.pose_dim = 64
  config.data.mix = {name: configs.part(begin=5, end=20)}
  config.data.batch = 32
  config.data.image_size = 128
  config.data.ramp_steps = 10_000
  config.optimizer.warmup_steps = 1_000
  config.train.steps = 30_000
  config.eval.window = 10
  config.eval.batch = 32
  return config
