"""SRT on CLEVR3D (from ObSuRF), as trained by stelzner/srt.

  python -m xfactor.main --config=configs/srt_clevr3d.py \\
      --workdir=runs/srt_clevr3d --config.data.dir=/data

One input view of 160 x 120 pixels (every second of 320 x 240), rays of all
three views including the input at full size, 8,192 per scene and update; 256
scenes, 4 M updates, Adam. Coordinates are relative to the input's camera.
Hardware: as configs/srt_nmr.py. Not run yet: the data is not available on the
development machines.

Lower bounds on the step time on 16 TPU v5e chips of 15.75 GiB, 16 scenes each
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_ahead.py
--config=configs/srt_clevr3d.py --topology=v5e:4x4`):

  model.remat  GiB a chip  ms of computing  of HBM
  full                3.8             16.7     9.9
  dots                6.6             14.4    17.2

The recipe uses full, whose bound is lower.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the published recipe of SRT on CLEVR3D."""
  config = configs.base('srt')
  config.data.mix = {'clevr3d': configs.part(begin=3, end=3)}
  config.data.image_size, config.data.image_width = 240, 320
  config.data.min_length = 3
  config.data.targets = 2
  config.objective.input_stride = 2
  config.objective.include_inputs = True
  config.model.min_dist, config.model.max_dist = 0.035, 35.0
  config.mesh.fsdp = -1
  config.eval.split = 'val'
  config.eval.window = 3
  config.eval.rays = 8192
  return config
