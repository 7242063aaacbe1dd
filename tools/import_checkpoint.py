"""Takes XFactor checkpoints from the public code and to it.

  python tools/import_checkpoint.py --source=DIR_OR_FILE --out=runs/official

reads what the public code saved (the folder checkpoints-0, its parent, or one
ckpt-N.flax) or a .safetensors file, and writes a run of ours: evaluate it, go
on with it (--config.allow_change=true, for its data are not known), or
start from it by --config.init_from=runs/official.

  python tools/import_checkpoint.py --source=runs/mine --out=DIR --to=official
  python tools/import_checkpoint.py --source=runs/mine --out=m.safetensors \\
      --to=safetensors

write the newest checkpoint of a run of ours for others. What was imported and
not trained on goes back to the public format bit for bit.

Exit codes: 0 done, 2 bad input (one line on stderr says what).
"""

import jax
from absl import app, flags

from xfactor import cli
from xfactor.training import interchange

_SOURCE = flags.DEFINE_string(
  'source', None, 'Checkpoint; its format is told by its content.'
)
_OUT = flags.DEFINE_string('out', None, 'Folder or file to write.')
_TO = flags.DEFINE_enum(
  'to',
  'ours',
  interchange.FORMATS,
  'Format to write: a run of ours by default.',
)
_CONTEXTS = flags.DEFINE_integer(
  'contexts',
  1,
  'Views the model is given, which its arrays do not tell: 1 of the stereo, 5 '
  'of the multi-view checkpoint.',
  lower_bound=1,
)
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size', 256, 'Pixels along a side that it was trained at, likewise.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a checkpoint.')
flags.mark_flags_as_required(['source', 'out'])


def main(_) -> int:
  with cli.reporting_user_errors():
    jax.config.update('jax_platforms', 'cpu')  # Chips are for training.
    facts = interchange.convert(
      _SOURCE.value,
      _OUT.value,
      to=_TO.value,
      contexts=_CONTEXTS.value,
      image_size=_IMAGE_SIZE.value,
      overwrite=_OVERWRITE.value,
    )
    for key, value in facts.items():
      print(f'{key:>11}  {value}')
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
