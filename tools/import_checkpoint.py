"""Takes checkpoints from the public XFactor and SRT codes and to them.

  python tools/import_checkpoint.py --source=DIR_OR_FILE --out=runs/official

reads what the public XFactor code saved (the folder checkpoints-0, its parent,
or one ckpt-N.flax), what the public SRT code did (model.pt or its folder) or a
.safetensors file, and writes a run of ours: evaluate it, go on with it
(--config.allow_change=true, for its data are not known), or start from it by
--config.init_from=runs/official.

  python tools/import_checkpoint.py --source=model.pt --out=runs/nmr \\
      --config=configs/srt_nmr.py

gives the run this recipe, with the sizes of the arrays. Without --config it is
that of the file config.yaml beside model.pt, or made of defaults.

  python tools/import_checkpoint.py --source=runs/mine --out=DIR --to=official
  python tools/import_checkpoint.py --source=runs/mine --out=m.safetensors \\
      --to=safetensors

write the newest checkpoint of a run of ours for others; 'official' is XFactor's
format, into which what was imported and not trained on goes back bit for bit.

Exit codes: 0 done, 2 bad input (one line on stderr says what).
"""

import jax
from absl import app, flags
from ml_collections import config_flags

from xfactor import cli
from xfactor.exchange import convert as exchange_convert
from xfactor.exchange import snapshot

_SOURCE = flags.DEFINE_string(
  'source', None, 'Checkpoint; its format is told by its content.'
)
_OUT = flags.DEFINE_string('out', None, 'Folder or file to write.')
_TO = flags.DEFINE_enum(
  'to',
  'ours',
  snapshot.FORMATS,
  'Format to write: a run of ours by default.',
)
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The recipe of the run that is written.', lock_config=True
)
_CONTEXTS = flags.DEFINE_integer(
  'contexts',
  None,
  'Views the model is given, which its arrays do not tell: 1 (the default) of '
  'the stereo, 5 of the multi-view XFactor checkpoint.',
  lower_bound=1,
)
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size',
  None,
  'Pixels along a side that it was trained at, likewise; 256 by default.',
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a checkpoint.')
flags.mark_flags_as_required(['source', 'out'])


def main(_) -> int:
  with cli.reporting_user_errors():
    jax.config.update('jax_platforms', 'cpu')  # Chips are for training.
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
  app.run(main, flags_parser=cli.parse_flags)
