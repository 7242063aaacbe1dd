"""Converts checkpoints from and to the public XFactor and SRT code.

  python tools/import_checkpoint.py --source=DIR_OR_FILE --out=runs/official

reads a checkpoint of the public XFactor code (the folder checkpoints-0, its
parent, or one ckpt-N.flax), of the public SRT code (model.pt or its folder) or
a .safetensors file, and writes a run of this code. Evaluate it, resume it (with
--config.allow_change=true, since its data are unknown), or start from it with
--config.init_from=runs/official.

  python tools/import_checkpoint.py --source=model.pt --out=runs/nmr \\
      --config=configs/srt_nmr.py

gives the run this recipe, with the sizes of the arrays. Without --config the
recipe comes from config.yaml next to model.pt, or from defaults.

  python tools/import_checkpoint.py --source=runs/mine --out=DIR --to=official
  python tools/import_checkpoint.py --source=runs/mine --out=m.safetensors \\
      --to=safetensors

export the newest checkpoint of a run. 'official' is the public XFactor format;
an imported checkpoint that was not trained further is restored bit for bit.

Exit codes: 0 done, 2 bad input (one line on stderr says what).
"""

import jax
from absl import flags

from xfactor import cli, parsing
from xfactor.exchange import convert as exchange_convert
from xfactor.exchange import snapshot

_SOURCE = flags.DEFINE_string(
  'source', None, 'Checkpoint to read; its format is detected from its content.'
)
_OUT = flags.DEFINE_string('out', None, 'Folder or file to write.')
_TO = flags.DEFINE_enum(
  'to',
  'ours',
  snapshot.FORMATS,
  'Format to write; default: a run of this code.',
)
_CONFIG = parsing.define_config('Recipe of the written run.', required=False)
_CONTEXTS = flags.DEFINE_integer(
  'contexts',
  None,
  'Context views of the model, which its arrays do not contain: 1 (default) '
  'for the stereo, 5 for the multi-view XFactor checkpoint.',
  lower_bound=1,
)
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size',
  None,
  'Image size in training, which is not in the arrays; default: 256.',
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace an existing checkpoint.'
)
flags.mark_flags_as_required(['source', 'out'])


def main(_) -> int:
  with cli.reporting_user_errors():
    jax.config.update('jax_platforms', 'cpu')  # Needs no accelerator.
    facts = exchange_convert.convert(
      _SOURCE.value,
      _OUT.value,
      to=_TO.value,
      config=_CONFIG.value,
      contexts=_CONTEXTS.value,
      image_size=_IMAGE_SIZE.value,
      overwrite=_OVERWRITE.value,
    )
    for key, value in facts.items():
      print(f'{key:>11}  {value}')
  return 0


if __name__ == '__main__':
  cli.run(main)
