"""RUST at XFactor's size, on XFactor's data (Sajjadi et al., CVPR 2023).

  python -m xfactor.main --config=configs/rust.py --workdir=runs/rust \\
      --config.data.dir=/data

The baseline of table 1 of arXiv 2510.13063: data, windows, loss, updates and
optimizer as in configs/sm.py; 8 layers each for the scene, the pose and the
picture, width 1,024, a latent pose of 8 numbers. The docstring of
xfactor/methods/autoencoding/blocks.py lists the paper's choices and ours.
Hardware: as configs/sm.py. Not run yet at this size: the data is not available
on the development machines.

On 16 TPU v5e chips of 15.75 GiB, 16 examples per chip, a step is compute-bound
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_ahead.py
--config=configs/rust.py --topology=v5e:4x4`): with model.remat=full 3.6 GiB a
chip, 109 ms, MFU below 38 %; with dots 6.7 GiB, 100 ms, 41 %. Use dots there;
LPIPS dominates.

Expected (published, not measured here): AUC@20 on RE10K of 13.8
according to one note on the paper's table 1, 11.3 according to another.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the recipe of configs/sm.py with RUST as the method."""
  return configs.like(configs.beside(__file__, 'sm'), 'rust')
