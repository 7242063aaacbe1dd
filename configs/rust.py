"""RUST at XFactor's size, on XFactor's data (Sajjadi et al., CVPR 2023).

  python -m xfactor.main --config=configs/rust.py --workdir=runs/rust \\
      --config.data.dir=/data

The baseline of arXiv 2510.13063's table 1: data, windows, loss, updates and
optimizer as configs/sm.py; 8 layers each for the scene, the pose and the
picture, 1,024 wide, a latent pose of 8 numbers. models/baselines.py says which
choices are the paper's and which are ours.
Hardware: as configs/sm.py. Not yet run at this size: the data cannot be had on
the machines that this was written on.

On 16 TPU v5e chips of 15.75 GiB, 16 examples each, computing bounds a step
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_tpu.py --config=configs/rust.py
--topology=v5e:4x4`): with model.remat=full 3.6 GiB a chip, 109 ms, MFU below
38 %; with dots 6.7 GiB, 100 ms, 41 %. Take dots there; LPIPS is the most of it.

Expected (published, not measured here): AUC@20 on RE10K 13.8 by one note on the
paper's table 1 and 11.3 by another.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """RUST where XFactor's stereo model was."""
  return configs.like(configs.beside(__file__, 'sm'), 'rust')
