"""Stereo-monocular XFactor at the paper's size (arXiv 2510.13063, section 5).

  python -m xfactor.main --config=configs/sm.py --workdir=runs/sm \\
      --config.data.dir=/data

Data: co3dv2, dl3dv, re10k and mvimgnet in equal shares, with the window
schedule of the public code. 305 M parameters, 256 x 256 pixels, batch 256,
100,000 updates, with LPIPS; 243 model TFLOP per update without LPIPS.
Hardware: the paper used 2 H200 GPUs; with fewer devices, set
config.train.accumulate. Not run yet: the data is not available on the
development machines.

On 16 TPU chips, 16 split examples per chip, a step is compute-bound
(`JAX_OPTIMIZATION_LEVEL=O1 python tools/compile_ahead.py --config=configs/sm.py
--topology=v5e:4x4 --config.objective.unmasked_prob=0.0`):

  chips      model.remat  lpips_dtype  GiB a chip  of     least ms  MFU below
  v5e:4x4    full         float32             5.5  15.75       155       50 %
  v5e:4x4    dots         float32            10.2  15.75       136       57 %
  v5e:4x4    dots         bfloat16            9.9  15.75        87       89 %
  v6e:4x4    dots         float32            10.4  31.25        29       57 %
  v5p:2x2x4  dots         float32            10.1  95.74        58       57 %
  v5p:2x2x4  none         float32            47.5  95.74        58       57 %

Use dots on these: it does not recompute matrix products, and whole examples
need as much (10.1 GiB on v5e). The recipe uses full, which fits everywhere
(0.94 GiB with one example a chip, v6e:16x16). With dots, LPIPS in float32 is
43 % of the computation: 18 passes of bfloat16. The recipe's
objective.lpips_dtype=mixed takes 7 (docs/gpus.md, Precision).

Expected (published, not measured here; table 1 of the paper has the multi-view
model): AUC@20 of 55.2 on RE10K.
"""

from ml_collections import ConfigDict

from xfactor import config as configs


def get_config() -> ConfigDict:
  """Returns the paper's stereo recipe on its four data sets."""
  config = configs.base()
  config.data.mix = {
    'co3dv2': configs.part(begin=9, end=20),
    'dl3dv': configs.part(begin=5, end=10),
    're10k': configs.part(begin=40, end=100),
    'mvimgnet': configs.part(begin=5, end=10),
  }
  config.mesh.fsdp = -1
  config.eval.window = 10
  return config
