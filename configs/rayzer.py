"""RayZer at XFactor's size, on XFactor's data (Jiang et al., ICCV 2025).

  python -m xfactor.main --config=configs/rayzer.py --workdir=runs/rayzer \\
      --config.data.dir=/data

The baseline of table 1 of arXiv 2510.13063: data, windows, loss, updates and
optimizer as in configs/sm.py; 8 layers each for the cameras, the scene and the
picture, width 1,024, 3,072 scene tokens. The docstring of
xfactor/methods/autoencoding/blocks.py lists the paper's choices and ours.
Hardware: as configs/sm.py. Not run yet at this size: the data is not available
on the development machines.

On 16 TPU v5e chips of 15.75 GiB, 16 examples per chip, a step is compute-bound
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_ahead.py
--config=configs/rayzer.py --topology=v5e:4x4`): with model.remat=full, which
the recipe uses, 12.3 GiB a chip, 728 ms, MFU below 73 %; dots does not fit
(22.2 GiB).

Expected (published, not measured here; table 1 of arXiv 2510.13063): AUC@20 of
7.6 on RE10K, 5.9 on DL3DV, 2.6 on MVImgNet, 2.7 on CO3Dv2.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the recipe of configs/sm.py with RayZer as the method."""
  return configs.like(configs.beside(__file__, 'sm'), 'rayzer')
