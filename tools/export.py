"""Exports a trained XFactor for other programs.

  python tools/export.py --workdir=runs/tiny --to=onnx --out=exported

writes the newest checkpoint of a run into a folder:

  stablehlo    encoder.stablehlo, renderer.stablehlo: jax.export, for CPU,
               CUDA and TPU
  onnx         encoder.onnx, renderer.onnx
               (both: and calibration, if the checkpoint has one)
  safetensors  model.safetensors: parameters with the names of the public code
  torch        model.safetensors, xfactor_torch.py: a PyTorch state dict and its
               module
  web          a static page, in which a picture is moved by keys or like a
               video, in the browser

and, but for safetensors, model.json with the sizes. docs/export.md has an
example of each. Exit codes: 0 written, 2 bad input (one line on stderr says
what).
"""

import jax
from absl import flags

from xfactor import cli
from xfactor.export import formats

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run to export.')
_TO = flags.DEFINE_enum('to', None, formats.FORMATS, 'Format to write.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write.')
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace files in a folder that is not empty.'
)
flags.mark_flags_as_required(['workdir', 'to', 'out'])


def main(_) -> int:
  with cli.reporting_user_errors():
    jax.config.update('jax_platforms', 'cpu')  # Needs no accelerator.
    for path in formats.write(
      _WORKDIR.value, _OUT.value, to=_TO.value, overwrite=_OVERWRITE.value
    ):
      print(f'{path}  {path.stat().length / 1e6:.1f} MB')
  return 0


if __name__ == '__main__':
  cli.run(main)
