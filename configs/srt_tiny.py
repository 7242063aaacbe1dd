"""Tiny improved SRT on generated solids: posed views, on a laptop CPU.

  python -m xfactor.main --config=configs/srt_tiny.py --workdir=runs/srt_tiny

Makes missing data: 1,200 scenes of a few solids, 12 views of 64 x 64 pixels
each, within 60 degrees; two minutes of CPU. The inputs are three views (every
second pixel), the targets rays of two other views. Hardware: a CPU core for 50
minutes; docs/methods/srt.md shows the results.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the posed recipe of the documentation."""
  config = configs.small('srt')
  config.model.conv_blocks = 2
  config.model.start_octave = -3
  config.model.octaves = 4  # With all 15, learning takes longer to start.
  config.objective.input_stride = 2
  config.objective.canonical = False
  config.objective.rays = 256
  config.data.mix = {'solids': configs.part(begin=12, end=12)}
  config.data.make = {'solids': {'scenes': 1200, 'arc': 60}}
  config.data.batch = 8
  config.data.contexts = 3
  config.data.targets = 2
  config.train.steps = 8_000
  config.train.log_every = 50
  config.train.eval_every = 1_000
  config.train.save_every = 250
  config.eval.window = 12
  return config
