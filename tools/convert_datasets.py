"""Converts raw data to records.

  python tools/convert_datasets.py --dataset=video --source=FOLDER_OF_VIDEOS \\
      --data_dir=/data --name=my_videos --size=256

The options of the chosen data set (--size above) are the fields of its class in
xfactor/data/sources; `--dataset=NAME --options` lists them. Run the same
command again to continue after an interruption. Exit codes: 0 converted or
already there, 2 bad input (one line on stderr says what), 130 stopped by
Ctrl-C.
"""

import os
import sys

from absl import app, flags

from xfactor.data import convert, sources
from xfactor.errors import UserError

_DATASET = flags.DEFINE_enum(
  'dataset', None, sources.NAMES, 'What to convert.', required=True
)
_SOURCE = flags.DEFINE_string('source', None, 'Folder of the raw data.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where data sets go.')
_NAME = flags.DEFINE_string('name', None, "The new data set's name.")
_WORKERS = flags.DEFINE_integer(
  'workers',
  os.cpu_count(),
  'Processes; 0 to work in this one. The result does not depend on it.',
  lower_bound=0,
)
_TEST_FRACTION = flags.DEFINE_float(
  'test_fraction',
  None,
  'Share of the clips that become the test split, by a hash of their ids, '
  'where the data set does not say itself; 0.1 by default.',
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'List, and write nothing.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a data set.')
_OPTIONS = flags.DEFINE_bool('options', False, "List the data set's options.")


def _make_source(args: list[str]) -> tuple[sources.Source, float]:
  """Returns the source, and the share of clips that the converter holds out."""
  test_fraction = _TEST_FRACTION.value
  own = convert.option_names(_DATASET.value)
  # A data set that splits by itself has this as an option of its own.
  if test_fraction is not None and 'test_fraction' in own:
    args = [*args, f'--test_fraction={test_fraction}']
    test_fraction = None
  if _SOURCE.value is not None:
    args = [*args, f'--source={_SOURCE.value}']
  options = convert.parse_options(_DATASET.value, args)
  source = sources.make(_DATASET.value, **options)
  return source, 0.1 if test_fraction is None else test_fraction


def _run(args: list[str]) -> str:
  """Does what the flags say; returns what to print."""
  if _OPTIONS.value:
    return convert.list_options(_DATASET.value)
  if not _DATA_DIR.value:
    raise UserError('give --data_dir=FOLDER, where the data set goes')
  source, test_fraction = _make_source(args)
  if _DRY_RUN.value:
    plan = convert.make_plan(
      source, _DATA_DIR.value, _NAME.value, test_fraction
    )
    return convert.describe(plan)
  summary = convert.convert(
    source,
    _DATA_DIR.value,
    name=_NAME.value,
    workers=_WORKERS.value,
    test_fraction=test_fraction,
    overwrite=_OVERWRITE.value,
  )
  return convert.report(summary)


def main(argv: list[str]) -> int:
  """Runs the conversion; returns the exit code."""
  try:
    print(_run(argv[1:]))
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; run the same command again to continue', file=sys.stderr)
    return 130
  return 0


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses absl's flags; the others are options of the data set."""
  try:
    return flags.FLAGS(argv, known_only=True)
  except flags.Error as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
