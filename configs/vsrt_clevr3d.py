"""Volumetric SRT on CLEVR3D (from ObSuRF), as described by stelzner/srt.

  python -m xfactor.main --config=configs/vsrt_clevr3d.py \\
      --workdir=runs/vsrt_clevr3d --config.data.dir=/data

As configs/srt_clevr3d.py with a volume in place of the light field: 128 coarse
and 64 fine samples along each of 256 rays, 32 scenes per update. The network
cannot be built as published; here it can (docs/methods/srt.md).
Hardware: as configs/vsrt_nmr.py. Not run yet: the data is not available on the
development machines.

Lower bounds on the step time on 16 TPU v5e chips of 15.75 GiB, 2 scenes each
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_ahead.py
--config=configs/vsrt_clevr3d.py --topology=v5e:4x4`):

  model.remat  GiB a chip  ms of computing  of HBM
  full                1.8              5.0     4.5
  dots                3.0              4.1     7.7

The recipe uses full, whose bound is lower.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the recipe of SRT on CLEVR3D with a NeRF decoder."""
  config = configs.beside(__file__, 'srt_clevr3d')
  config.model.decoder = 'nerf'
  config.objective.rays = 256
  config.data.batch = 32
  config.eval.batch = 32
  return config
