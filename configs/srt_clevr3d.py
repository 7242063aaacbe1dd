"""SRT on CLEVR3D (of ObSuRF), as stelzner/srt trains it.

  python -m xfactor.main --config=configs/srt_clevr3d.py \\
      --workdir=runs/srt_clevr3d --config.data.dir=/data

One input view of 160 x 120 pixels (every second of 320 x 240), rays of all
three views at full size, the input's included, 8,192 of each scene in an
update; 256 scenes, 4 M updates, Adam. All is relative to the input's camera.
Hardware: as configs/srt_nmr.py. Not yet run here: the data cannot be had on the
machines that this was written on.

On 16 TPU v5e chips of 15.75 GiB, 16 scenes each, a step takes at least
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_tpu.py
--config=configs/srt_clevr3d.py --topology=v5e:4x4`):

  model.remat  GiB a chip  ms of computing  of HBM
  full                3.8             16.7     9.9
  dots                6.6             14.4    17.2

Full, the recipe's own, is the lower bound.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Published SRT on CLEVR3D."""
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
