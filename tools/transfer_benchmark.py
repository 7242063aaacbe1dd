"""Trains models with equal budgets and tests whether their poses transfer.

  python tools/transfer_benchmark.py --suite=synthetic --budget=4000
    [--seeds=0,1,2] [--members=xfactor,rust,...] [--oracles=known_scene,...]
    [--oracle_options=learned:weights=DIR] [--jobs=1] [--out=runs/transfer]

Each member of --recipes (configs/transfer.py) is trained by `xfactor.main` in
OUT/MEMBER-seedN and evaluated by `xfactor.eval`: held-out pictures, the
transfer test with each oracle, the pose probe. The budget is a number of
updates or of training FLOPs, for example 30TFLOP; FLOPs are converted to
updates of each member. By default, all oracles that suit the suite and are
available run; oracles named by --oracles must be available.

OUT/results.md has a table for each oracle, OUT/results.json all numbers, and
OUT/pictures.png the same motions as transferred by every member. The same
command resumes after an interruption and retries failed members. Exit codes: 0
complete, 1 a member failed (its row has the reason, its log.txt the output), 2
bad input (one line on stderr says what), 42 stopped (SIGTERM, Ctrl-C): run the
command again.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from transfer_suite import members, running, suites, tables

from xfactor import cli
from xfactor.data import images, views
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import oracles, pairs
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.training import data as data_lib

SUITES = ('synthetic', 'vizdoom')
_SERVING = {
  'synthetic': ('known_scene', 'learned', 'colmap'),
  # The learned oracle does not pass its gate on this data.
  'vizdoom': ('known_scene', 'colmap'),
}
_COLMAP_PIXELS = 256  # It rejects nearly all smaller pictures.
_OPTIONS = {'learned': 'weights=runs/pose_oracle'}

_SUITE = flags.DEFINE_enum('suite', None, SUITES, 'Data set.')
_BUDGET = flags.DEFINE_string(
  'budget',
  None,
  'Budget of each member: updates, or FLOPs, for example 30TFLOP.',
)
_SEEDS = flags.DEFINE_list('seeds', '0,1,2', 'Seeds of the trainings.')
_MEMBERS = flags.DEFINE_list(
  'members', None, 'Members of --recipes; default: all.'
)
_OUT = flags.DEFINE_string('out', 'runs/transfer', 'Folder for all results.')
_ORACLES = flags.DEFINE_list(
  'oracles', None, 'Pose oracles; default: all that suit.'
)
_ORACLE_OPTIONS = flags.DEFINE_multi_string(
  'oracle_options', [], 'Options of an oracle: NAME:KEY=VALUE,KEY=VALUE.'
)
_JOBS = flags.DEFINE_integer('jobs', 1, 'Members to run in parallel.', 1)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', 'data', 'Folder of converted data sets.'
)
_RECIPES = flags.DEFINE_string(
  'recipes',
  'configs/transfer.py',
  'Python file that defines `MEMBERS` (the names), '
  '`get_config("MEMBER,SUITE")` and `PROBE_ONLY` (members without a renderer).',
)


def open_data(config: ConfigDict) -> list[store_lib.FrameStore]:
  """Opens the training and test splits; makes them if the recipe says how.

  Raises:
    UserError: If a split is missing.
  """
  data_lib.make(config)
  ((name, part),) = config.data.mix.items()
  return [
    store_lib.open_split(config.data.dir, name, split)
    for split in (part.split, config.eval.split)
  ]


def make_oracles(
  wanted: Sequence[str] | None,
  options: dict[str, str],
  suite: str,
  pixels: int,
) -> dict[str, oracles_base.PoseOracle]:
  """Returns the oracles by name.

  Args:
    wanted: Names of oracles; None for all that suit the suite and are
      available.
    options: Options of the oracles by name, as text.
    suite: Data set.
    pixels: Size of its pictures.

  Raises:
    UserError: If a wanted oracle is not available, or none is.
  """
  made = {}
  for name in dict.fromkeys(wanted or _SERVING[suite]):
    if not wanted and name == 'colmap' and pixels < _COLMAP_PIXELS:
      continue
    try:
      parsed = oracles.parse_options(options.get(name, ''))
      made[name] = oracles.make(name, **parsed)
    except UserError as e:
      if wanted:
        raise
      print(f'skipped: {e}')
  if not made:
    raise UserError(
      "no pose oracle is available; run pip install -e '.[oracles]' for "
      'known_scene, or name others with --oracles'
    )
  return made


def check_data(
  chosen: Sequence[members.Member],
  asked: Iterable[oracles_base.PoseOracle],
  store: store_lib.FrameStore,
) -> dict[str, str]:
  """Returns, by name, why members cannot be tested on a split.

  Raises:
    UserError: If an oracle does not accept the clips.
  """
  length = int(store.num_frames[0])
  frames = views.eval_frames(length, 2, length)
  clip = [images.decode(data) for data in store.clip_frames(0, frames)]
  for oracle in asked:
    oracle(np.stack(clip), oracles_base.Scene(store, 0, frames))
  failures = {}
  for member in chosen:
    try:
      if member.draws:
        pairs.pairs_of(member.config, store)
    except UserError as e:
      failures[member.name] = str(e)
  return failures


def parse_oracle_options(texts: Sequence[str]) -> dict[str, str]:
  """Returns the options of `NAME:OPTIONS` by NAME, over the defaults.

  Raises:
    UserError: If there is no such oracle.
  """
  parsed = dict(_OPTIONS)
  for text in texts:
    name, _, options = text.partition(':')
    if name not in oracles.NAMES or not options:
      raise UserError(
        f'--oracle_options={text}: give NAME:KEY=VALUE, with one of '
        f'{", ".join(oracles.NAMES)}'
      )
    parsed[name] = options
  return parsed


def main(_: list[str]) -> int:
  """Runs the tool; returns the exit code."""
  with cli.reporting_user_errors():
    suite, budget = _SUITE.value, _BUDGET.value
    if not (suite and budget):
      raise UserError(
        f'give --suite, one of {", ".join(SUITES)}, and --budget, e.g. 4000'
      )
    if not _SEEDS.value or not all(x.isdigit() for x in _SEEDS.value):
      raise UserError(
        f'--seeds={",".join(_SEEDS.value)}: give integers such as 0,1,2'
      )
    # Members run in processes that need the accelerator.
    jax.config.update('jax_platforms', 'cpu')
    out = pathlib.Path(_OUT.value)
    # Members share compiled programs and, in parallel, a GPU's memory.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{out}/compile_cache')
    if _JOBS.value > 1:
      os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    chosen, failures = members.make(
      members.load(_RECIPES.value),
      _MEMBERS.value,
      suite=suite,
      budget=budget,
      data_dir=_DATA_DIR.value,
    )
    config = chosen[0].config
    options = parse_oracle_options(_ORACLE_OPTIONS.value)
    asked = make_oracles(_ORACLES.value, options, suite, config.data.image_size)
    stores = open_data(config)
    failures |= check_data(chosen, asked.values(), stores[1])
    runs = running.plan(
      [member for member in chosen if member.name not in failures],
      list(dict.fromkeys(map(int, _SEEDS.value))),
      out,
      asked,
      options=options,
      stores=stores,
      recipes=_RECIPES.value,
      suite=suite,
    )
    table = tables.Table(f'{suite}, {budget} a member', list(asked), failures)
    return 0 if suites.complete(runs, table, out, jobs=_JOBS.value) else 1


if __name__ == '__main__':
  cli.run(main)
