"""Converts raw data to records.

  python tools/convert_datasets.py --dataset=video --source=FOLDER_OF_VIDEOS \\
      --data_dir=/data --name=my_videos --size=256

The options of the chosen data set (--size above) are the fields of its class in
xfactor/data/sources; `--dataset=NAME --options` lists them. Run the same
command again to continue after an interruption; run it on several hosts at
once, on a shared --data_dir or gs://, and they share the work.

  python tools/convert_datasets.py --verify=/data      re-reads and checks all
  python tools/convert_datasets.py --preview=/data     writes NAME-preview.png

Items that cannot be converted are named at the end, and the others are
converted.

Exit codes: 0 success or already converted, 1 --verify found problems or, with
--strict, items were skipped, 2 bad input (one line on stderr says what), 130
stopped by Ctrl-C.
"""

import os
import shlex
import sys

from absl import app, flags

from xfactor import parsing, streams
from xfactor.data import sources
from xfactor.data.convert import options, plan, splits
from xfactor.data.convert import run as convert_run
from xfactor.data.convert import summary as convert_summary
from xfactor.errors import UserError

_DATASET = flags.DEFINE_enum(
  'dataset', None, sources.NAMES, 'Data set to convert.'
)
_VERIFY = flags.DEFINE_string(
  'verify', None, 'Verify converted data: a --data_dir or one data set in it.'
)
_PREVIEW = flags.DEFINE_string(
  'preview', None, 'Preview converted data: a --data_dir or one data set in it.'
)
_PREVIEW_CLIPS = flags.DEFINE_integer(
  'preview_clips', 8, 'Number of clips in a preview.', lower_bound=1
)
_OUT = flags.DEFINE_string('out', '.', 'Folder to write previews to.')
_SOURCE = flags.DEFINE_string('source', None, 'Folder of the raw data.')
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Folder to write data sets to.'
)
_NAME = flags.DEFINE_string('name', None, 'Name of the new data set.')
_WORKERS = flags.DEFINE_integer(
  'workers',
  os.cpu_count(),
  'Worker processes; 0: none. The result does not depend on it.',
  lower_bound=0,
)
_TEST_FRACTION = flags.DEFINE_float(
  'test_fraction',
  None,
  'Share of the clips in the test split, chosen by a hash of their ids, if '
  'the data set has no splits; default: 0.1.',
)
_SPLITS = flags.DEFINE_string(
  'splits',
  None,
  'Explicit lists of sequence ids: FILE.json with {"train": [...], ...}, or '
  'test=FILE.json with the list of one split; see '
  'xfactor/data/convert/splits.py.',
)
_SPLIT = flags.DEFINE_list(
  'split', None, 'Splits to convert, or the one to preview (default: train).'
)
_RUNNER = flags.DEFINE_enum(
  'runner',
  'local',
  ('local', 'beam'),
  'Run in local processes or on Apache Beam workers.',
)
_BEAM_OPTIONS = flags.DEFINE_string(
  'beam_options',
  '',
  "Options of Beam, for example '--runner=DataflowRunner --project=P'.",
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'List what would be converted and write nothing.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace an existing data set.'
)
_STRICT = flags.DEFINE_bool(
  'strict', False, 'Exit with code 1 if any item could not be converted.'
)
_OPTIONS = flags.DEFINE_bool('options', False, "List the data set's options.")


def _make_source(args: list[str]) -> tuple[sources.Source, float]:
  """Returns the source and the share of clips that the converter holds out."""
  test_fraction = _TEST_FRACTION.value
  own = options.names(_DATASET.value)
  # Data sets with their own splitting take this as a source option.
  if test_fraction is not None and 'test_fraction' in own:
    args = [*args, f'--test_fraction={test_fraction}']
    test_fraction = None
  if _SOURCE.value is not None:
    args = [*args, f'--source={_SOURCE.value}']
  chosen = options.parse(_DATASET.value, args)
  source = sources.make(_DATASET.value, **chosen)
  return source, 0.1 if test_fraction is None else test_fraction


def _look(args: list[str]) -> int:
  """Verifies or previews converted data; returns the exit code."""
  if args:
    raise UserError(
      f'{args[0]}: --verify and --preview take no data set options; remove it'
    )
  # Not above: each worker process imports what this module imports.
  from xfactor.data import findings, preview, verify

  if _VERIFY.value is not None:
    report = verify.verify(_VERIFY.value, _WORKERS.value)
    print(findings.table(report))
    return 0 if report.ok else 1
  split, *others = _SPLIT.value or [None]
  if others:
    raise UserError(f'--preview shows one split, not {len(others) + 1}')
  paths = preview.write(
    _PREVIEW.value,
    name=_NAME.value,
    split=split,
    num_clips=_PREVIEW_CLIPS.value,
    out=_OUT.value,
  )
  print(*paths, sep='\n')
  return 0


def _run(args: list[str]) -> int:
  """Converts or describes the data set; returns the exit code."""
  if _DATASET.value is None:
    raise UserError('give --dataset=NAME to convert, --verify or --preview')
  if _OPTIONS.value:
    print(options.describe(_DATASET.value))
    return 0
  if not _DATA_DIR.value:
    raise UserError('give --data_dir=FOLDER to write the data set to')
  source, test_fraction = _make_source(args)
  what = {
    'name': _NAME.value,
    'test_fraction': test_fraction,
    'lists': splits.read(_SPLITS.value) if _SPLITS.value else None,
    'only': _SPLIT.value,
  }
  if _DRY_RUN.value:
    made = plan.make_plan(source, _DATA_DIR.value, **what)
    print(convert_summary.describe(made))
    return 0
  beam = _RUNNER.value == 'beam'
  summary = convert_run.convert(
    source,
    _DATA_DIR.value,
    workers=_WORKERS.value,
    overwrite=_OVERWRITE.value,
    beam_options=shlex.split(_BEAM_OPTIONS.value) if beam else None,
    **what,
  )
  print(convert_summary.report(summary))
  return 1 if _STRICT.value and summary.skipped else 0


def main(argv: list[str]) -> int:
  """Runs the conversion; returns the exit code."""
  # Names in the data need not be printable in the user's encoding.
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors='backslashreplace')
  try:
    if _VERIFY.value is not None or _PREVIEW.value is not None:
      return _look(argv[1:])
    return _run(argv[1:])
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; run the same command again to continue', file=sys.stderr)
    return 130


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses absl flags; the rest are options of the data set."""
  return parsing.parse(argv, __doc__, known_only=True)


def run() -> None:
  """Runs the command `xfactor-convert`."""
  streams.survive()
  app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
  run()
