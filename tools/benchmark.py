"""Measures training, data handling and pose oracles.

  python tools/benchmark.py [step] [pipeline] [start] [convert]
    [--config=configs/tiny.py] [--nobaseline]
  python tools/benchmark.py compile [--config=configs/tiny.py] [--nobaseline]
  python tools/benchmark.py rays [--config=configs/srt_tiny.py] [--batch=8]
    [--size=64] [--rays=1024] [--torch]
  python tools/benchmark.py [checkpoint] [eval] [--config=configs/tiny.py]
  python tools/benchmark.py [attention] [lpips] [augment]
    [--config=configs/tiny.py]
  python tools/benchmark.py growth [--config=configs/tiny.py] [--out=growth.png]
    [--factors=0.5,2] [--contexts=1,2,4]
  python tools/benchmark.py learn [--config=configs/tiny.py] [--updates=400]
  python tools/benchmark.py scaling [--members=base,width_128] [--updates=1200]
    [--data_dir=data] [--out=runs/scaling]
  python tools/benchmark.py cuts
  python tools/benchmark.py oracle --oracle=known_scene --data_dir=/data
    --name=synthetic [--oracle_options=...] [--clips=N] [--out=paths.png]

`step`: the recipe's train step with the token split, compared with the public
formulation with the same number of registers and with the published 32.
`compile`: only the compilation of that step.
`pipeline`: the training pipeline on records, compared with reading the same
frames from loose files with PIL.
`start`: time from process start to the first batch, with a million clips.
`convert`: conversion of 720p pictures and video to records and its --verify, on
one core; also with pictures decoded in full instead of at a reduced scale, with
tone mapping, and with a lens's distortion undone.

The following run only if they are named:
`rays`: the train steps of SRT and improved SRT, with the recipe's widths,
compared with a plain formulation and without each optimization; rays rendered
per second. With --torch only these steps, compared with PyTorch on a CPU.
`checkpoint`: how long saving the recipe's train state takes and how long it
blocks training; time to restore it.
`eval`: held-out reconstruction in batches, compared with one by one.
`attention`, `lpips`, `augment`: these parts of the train step, in each
implementation available on this machine, compared with the plain one.
`growth`: step time and memory as batch, views, image size and width grow.
`learn`: which part of a recipe does not learn motion: held-out scores during
training of the renderer given the true motions, of the pose encoder supervised
with them, and of both together; the data sets must have cameras.
`scaling`: when poses of the members of configs/scaling.py start to transfer,
and the rank of their transfers, after the FLOPs of --updates of the first.
`cuts`: cuts that are found in sequences of known cuts, fades and fast pans,
compared with PySceneDetect (pip install scenedetect-headless).
`oracle`: error and rejection rate of a pose oracle on frames with known
cameras, unchanged, blurred and noisy.

Comparisons of implementations first check that both sides compute the same.
Then runs alternate, and each ratio compares two neighbouring runs. A table
shows medians, and the median ratio to the first column with its minimum and
maximum. CPU time (all threads) is the more stable number on a busy machine.
Exit codes: 0 measured, 1 the two sides do not compute the same, 2 bad input
(one line on stderr says what).
"""

import functools
import math
import os
import pathlib
import re
import sys
from typing import Any

from absl import flags
from benchmarks import (
  checkpoint,
  convert,
  cuts,
  evaluating,
  growth,
  learn,
  measuring,
  oracle,
  parts,
  pipeline,
  rays,
  scaling,
  start,
  step,
)
from ml_collections import ConfigDict

from xfactor import cli, parsing
from xfactor.data import files
from xfactor.data.records import store
from xfactor.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]

_CONFIG = parsing.define_config(
  'Recipe; default: configs/tiny.py, for `rays` configs/srt_tiny.py.'
)
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Pairs of runs.', lower_bound=1)
_COMPILES = flags.DEFINE_integer(
  'compiles', 2, 'Pairs of compilations.', lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  'batch',
  None,
  "Examples per update; default: the recipe's, 8 for `rays`.",
  lower_bound=1,
)
_BASELINE = flags.DEFINE_bool(
  'baseline',
  True,
  'Also measure the public formulation in `step` and `compile`; disable it to '
  'measure batches that do not fit in memory with it.',
)
_SIZES = flags.DEFINE_list(
  'sizes', ['256', '64'], 'Frame sizes for `pipeline` and `convert`, in pixels.'
)
_ISOLATE = flags.DEFINE_bool(
  'isolate',
  True,
  'Measure each variant in its own process, so that memory peaks are '
  'separate; ignored on TPUs, which serve one process.',
)
_CLIPS = flags.DEFINE_integer(
  'clips',
  None,
  'Clips in the data set that `start` opens (default: a million) or that '
  '`oracle` evaluates (default: all).',
  lower_bound=1,
)
_ORACLE = flags.DEFINE_enum(
  'oracle', None, oracle.NAMES, 'Pose oracle that `oracle` measures.'
)
_ORACLE_OPTIONS = flags.DEFINE_string(
  'oracle_options', '', 'Options of --oracle, for example weights=model.pt.'
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'Folder of converted data sets, for `oracle` and `scaling` (there: data).',
)
_NAME = flags.DEFINE_string(
  'name', None, 'Data set with cameras, for `oracle`.'
)
_SPLIT = flags.DEFINE_string('split', 'test', 'Split of --name.')
_FRAMES = flags.DEFINE_integer(
  'frames', 5, 'Frames per clip, for `oracle`.', lower_bound=2
)
_WINDOW = flags.DEFINE_integer(
  'window',
  None,
  'Length of the central window that --frames are spread over; default: the '
  'whole clip.',
)
_SIZE = flags.DEFINE_integer(
  'size',
  None,
  "Image size in pixels. `oracle`: the records' by default; `rays`: 64.",
  lower_bound=8,
)
_RAYS = flags.DEFINE_integer(
  'rays', 1024, 'Rays per scene and update, for `rays`.', lower_bound=1
)
_TORCH = flags.DEFINE_bool(
  'torch', False, 'Compare `rays` with PyTorch: pip install -e .[torch].'
)
_FACTORS = flags.DEFINE_list(
  'factors',
  ['0.5', '2'],
  "Factors for the recipe's batch, image size and width, for `growth`.",
)
_CONTEXTS = flags.DEFINE_list(
  'contexts', ['1', '2', '4'], 'Numbers of context views, for `growth`.'
)
_UPDATES = flags.DEFINE_integer(
  'updates',
  None,
  'Updates of each of the three trainings of `learn` (default: 400), or of the '
  'first member of `scaling` (default: 1200).',
  lower_bound=1,
)
_MEMBERS = flags.DEFINE_list(
  'members', [], 'Members of configs/scaling.py for `scaling`; default: all.'
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  'PNG to write: paths of 12 clips for `oracle`, all curves for `growth`. For '
  '`scaling`, the folder of its runs (default: runs/scaling).',
)
_JSON = flags.DEFINE_string('json', None, 'JSON file to write the numbers to.')

NAMES = ('step', 'pipeline', 'start', 'convert')
# Run only if they are named.
ASKED = (
  'compile',
  'cuts',
  'oracle',
  'rays',
  'checkpoint',
  'eval',
  'growth',
  'learn',
  'scaling',
  *parts.BENCHMARKS,
)
# Required method of the benchmarks that do not take every recipe.
METHODS = {
  'step': 'xfactor',
  'compile': 'xfactor',
  'rays': 'srt',
  'eval': 'xfactor',
  'growth': 'xfactor',
  'learn': 'xfactor',
} | dict.fromkeys(parts.BENCHMARKS, 'xfactor')


def _recipe() -> ConfigDict:
  config = _CONFIG.value.copy_and_resolve_references()
  if _BATCH.value:
    config.data.batch = _BATCH.value
  return config


def _plain(config: ConfigDict) -> ConfigDict:
  """Returns the recipe as in the public formulation.

  It adds no position embeddings and processes a batch in one step.
  """
  config = config.copy_and_resolve_references()
  config.train.accumulate = 1
  if config.method == 'xfactor':
    config.model.position_grid = 0
  return config


def _sizes() -> list[int]:
  if not all(size.isdecimal() and int(size) >= 8 for size in _SIZES.value):
    raise UserError(f'--sizes takes numbers from 8, not {_SIZES.value}')
  return [int(size) for size in _SIZES.value]


def _numbers(flag: flags.FlagHolder, kind: type) -> list[Any]:
  """Returns the numbers of a list flag, which must be positive."""
  try:
    numbers = [kind(x) for x in flag.value]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) <= 0 or not all(map(math.isfinite, numbers)):
    raise UserError(
      f'--{flag.name} takes numbers above 0 ({kind.__name__}), not {flag.value}'
    )
  return numbers


def _oracle() -> list[Any]:
  for flag in _ORACLE, _DATA_DIR, _NAME:
    if flag.value is None:
      raise UserError(f'the benchmark oracle needs --{flag.name}')
  return oracle.run(
    store.open_split(_DATA_DIR.value, _NAME.value, _SPLIT.value),
    name=_ORACLE.value,
    options=_ORACLE_OPTIONS.value,
    clips=_CLIPS.value,
    frames=_FRAMES.value,
    window=_WINDOW.value,
    size=_SIZE.value,
    out=_OUT.value,
  )


def _run(names: list[str]) -> dict[str, Any]:
  """Runs the benchmarks and prints their tables; returns the numbers."""
  recipe, sizes = _recipe(), _sizes()
  config = _plain(recipe)
  factors, contexts = _numbers(_FACTORS, float), _numbers(_CONTEXTS, int)
  for name in names or NAMES:
    if name not in (*NAMES, *ASKED):
      raise UserError(
        f'there is no benchmark {name!r}; choose from '
        f'{", ".join((*NAMES, *ASKED))}'
      )
    if METHODS.get(name, config.method) != config.method:
      raise UserError(
        f'the benchmark {name} takes recipes of config.method='
        f'{METHODS[name]!r}, not {config.method!r}; give another --config'
      )
  numbers = {'machine': measuring.machine()}
  print(', '.join(f'{k}: {v}' for k, v in numbers['machine'].items()))
  common = {'repeats': _REPEATS.value, 'isolate': _ISOLATE.value}
  sizes_of_rays = {
    'batch': _BATCH.value or 8,
    'size': _SIZE.value or 64,
    'count': _RAYS.value,
  }
  steps = functools.partial(
    step.run,
    config,
    compiles=_COMPILES.value,
    isolate=_ISOLATE.value,
    baseline=_BASELINE.value,
  )
  benchmarks = {
    'step': lambda: steps(repeats=_REPEATS.value),
    'compile': lambda: steps(repeats=0),
    'pipeline': lambda: pipeline.run(config, sizes=sizes, **common),
    'start': lambda: start.run(
      config, clips=max(_CLIPS.value or 1_000_000, 1000), **common
    ),
    'convert': lambda: convert.run(sizes=sizes, **common),
    'rays': lambda: (
      rays.run_torch(config, **sizes_of_rays, **common)
      if _TORCH.value
      else rays.run(
        config,
        **sizes_of_rays,
        repeats=_REPEATS.value,
        compiles=_COMPILES.value,
      )
    ),
    'checkpoint': lambda: checkpoint.run(config, repeats=_REPEATS.value),
    'eval': lambda: evaluating.run(config, repeats=_REPEATS.value),
    'growth': lambda: growth.run(
      config,
      factors=factors,
      contexts=contexts,
      repeats=_REPEATS.value,
      out=_OUT.value,
    ),
    'learn': lambda: learn.run(recipe, updates=_UPDATES.value or 400),
    'scaling': lambda: scaling.run(
      _MEMBERS.value,
      updates=_UPDATES.value or 1200,
      data_dir=_DATA_DIR.value or 'data',
      out=_OUT.value or 'runs/scaling',
    ),
    'cuts': cuts.run,
    'oracle': _oracle,
  } | {
    name: functools.partial(
      measured, config, repeats=_REPEATS.value, compiles=_COMPILES.value
    )
    for name, measured in parts.BENCHMARKS.items()
  }
  for name in names or NAMES:
    tables = benchmarks[name]()
    numbers[name] = [table.summary() for table in tables]
    print('\n'.join(f'{table}\n' for table in tables), flush=True)
  return numbers


def main(argv: list[str]) -> int:
  """Runs the named benchmarks; returns the exit code."""
  # The benchmark's processes share a GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  with cli.reporting_user_errors():
    try:
      numbers = _run(argv[1:])
    except measuring.Unequal as e:
      print(f'error: {e}', file=sys.stderr)
      return 1
    if _JSON.value:
      files.write_json(_JSON.value, numbers)
  return 0


def _parse_flags(argv: list[str], doc: str) -> list[str]:
  """Parses flags, before or after the names of benchmarks."""
  flags.FLAGS.set_gnu_getopt()
  if not any(re.match('--?config(=|$)', argument) for argument in argv):
    # A default of the flag would be loaded together with the overrides before
    # errors are reported.
    recipe = 'srt_tiny' if 'rays' in argv else 'tiny'
    argv = [argv[0], f'--config={ROOT / f"configs/{recipe}.py"}', *argv[1:]]
  return parsing.parse(argv, doc, words=True)


if __name__ == '__main__':
  cli.run(main, _parse_flags)
