"""Volumetric SRT on NMR ShapeNet, as described by stelzner/srt.

  python -m xfactor.main --config=configs/vsrt_nmr.py --workdir=runs/vsrt_nmr \\
      --config.data.dir=/data

As configs/srt_nmr.py with a volume in place of the light field: 128 coarse and
64 fine samples along each of 256 rays, 32 scenes per update. The network cannot
be built as published; here it can (docs/methods/srt.md).
Hardware: not known; an update has a third of the work of srt_nmr. Not run yet:
the data is not available on the development machines.

Lower bounds on the step time on 16 TPU v5e chips of 15.75 GiB, 2 scenes each
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_ahead.py
--config=configs/vsrt_nmr.py --topology=v5e:4x4`):

  model.remat  GiB a chip  ms of computing  of HBM
  full                1.6              3.5     4.1
  dots                2.9              2.9     7.5

The recipe uses full, whose bound is lower.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the recipe of SRT on NMR with a NeRF decoder."""
  config = configs.beside(__file__, 'srt_nmr')
  config.model.decoder = 'nerf'
  config.objective.rays = 256
  config.data.batch = 32
  config.eval.batch = 32
  return config
