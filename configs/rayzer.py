"""RayZer at XFactor's size, on XFactor's data (Jiang et al., ICCV 2025).

  python -m xfactor.main --config=configs/rayzer.py --workdir=runs/rayzer \\
      --config.data.dir=/data

The baseline of arXiv 2510.13063's table 1: data, windows, loss, updates and
optimizer as configs/sm.py; 8 layers each for the cameras, the scene and the
picture, 1,024 wide, 3,072 scene tokens. models/baselines.py says which choices
are the paper's and which are ours.
Hardware: as configs/sm.py. Not yet run at this size: the data cannot be had on
the machines that this was written on.

On 16 TPU v5e chips of 15.75 GiB, 16 examples each, computing bounds a step
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_tpu.py
--config=configs/rayzer.py --topology=v5e:4x4`): with model.remat=full, the
recipe's own, 12.3 GiB a chip, 728 ms, MFU below 73 %; with dots it does not fit
(22.2 GiB).

Expected (published, not measured here; table 1 of arXiv 2510.13063): AUC@20 of
7.6 on RE10K, 5.9 on DL3DV, 2.6 on MVImgNet, 2.7 on CO3Dv2.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """RayZer where XFactor's stereo model was."""
  return configs.like(configs.beside(__file__, 'sm'), 'rayzer')
