"""Trains models with equal budgets and tests whether their poses transfer.

  python tools/transfer_benchmark.py --suite=turning --budget=4000
    [--seeds=0,1,2] [--members=xfactor,rust,...] [--oracles=rerender,...]
    [--oracle_options=learned:weights=DIR] [--jobs=1] [--out=runs/transfer]

  python tools/transfer_benchmark.py --experiment=all
    [--jobs=2] [--out=runs/experiment]

Each member of --recipes (configs/transfer.py) is trained by `xfactor.main` in
OUT/MEMBER-seedN and evaluated by `xfactor.eval`: held-out pictures, the
transfer test with each oracle, the pose probe. The budget is a number of
updates or of training FLOPs, for example 30TFLOP; FLOPs are converted to
updates of each member. By default, all oracles that suit the suite and are
available run; oracles named by --oracles must be available.

--experiment runs the parts that docs/experiment.md registers, all or some of
them (main,parallax,...), and prints their budget first. The learning rate of
each member is chosen on validation scenes in OUT/rates, or taken from
OUT/rates/scores.json (a copy of docs/experiment/rates.json, to continue on
another machine). The results are in OUT/PART, figures in OUT/figures, the runs
in OUT/runs. --budget, --seeds, --members and --oracles replace what is
registered, to try the command. --plan only prints the budget.

OUT/results.md has a table for each oracle and the differences to `xfactor`,
OUT/results.json all numbers, OUT/curves.json the curves and the numbers of each
pair, and OUT/pictures.png the same motions as transferred by every member. The
same command resumes after an interruption and retries failed members. With
--jobs, each job has its share of the CPU's cores, or all share a GPU. Exit
codes: 0 complete, 1 a member failed (its row has the reason, its log.txt the
output), 2 bad input (one line on stderr says what), 42 stopped (SIGTERM,
Ctrl-C): run the command again.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from transfer_suite import (
  experiment,
  figures,
  members,
  rates,
  running,
  suites,
  tables,
)

from xfactor import cli
from xfactor.data import images, views
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import oracles, pairs
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.training import data as data_lib

_ROOMS = ('rerender', 'known_scene', 'learned', 'colmap')
_SERVING = {
  'turning': _ROOMS,
  'textures': ('rerender',),
  'moving': _ROOMS,
  'parallax': _ROOMS,
  # The learned oracle does not pass its gate on this data.
  'levels': ('rerender', 'known_scene', 'colmap'),
}
SUITES = tuple(_SERVING)
_COLMAP_PIXELS = 256  # It rejects nearly all smaller pictures.
_OPTIONS = {'learned': 'weights=runs/pose_oracle'}

_SUITE = flags.DEFINE_enum('suite', None, SUITES, 'World.')
_EXPERIMENT = flags.DEFINE_list(
  'experiment', None, 'Parts of docs/experiment.md, or all.'
)
_PLAN = flags.DEFINE_bool('plan', False, 'Only print the budget.')
_BUDGET = flags.DEFINE_string(
  'budget',
  None,
  'Budget of each member: updates, or FLOPs, for example 30TFLOP.',
)
_SEEDS = flags.DEFINE_list(
  'seeds', None, 'Seeds of the trainings; default: 0,1,2, or as registered.'
)
_MEMBERS = flags.DEFINE_list(
  'members', None, 'Members of --recipes; default: all.'
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  'Folder for all results; default: runs/transfer, or runs/experiment.',
)
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


def open_data(
  config: ConfigDict, name: str, split: str
) -> list[store_lib.FrameStore]:
  """Opens the training split and another one; makes data if they are missing.

  Args:
    config: Recipe.
    name: Data set.
    split: Split to test on.

  Raises:
    UserError: If a split is missing.
  """
  data_lib.make(config)
  return [
    store_lib.open_split(config.data.dir, name, x)
    for x in (config.data.mix[name].split, split)
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


def choose_rates(
  names: Sequence[str], recipes: dict[str, Any], out: pathlib.Path
) -> tuple[dict[str, float], dict[str, str]]:
  """Returns the best rate of each member, or why there is none.

  Trains the members that have no scores in OUT/rates/scores.json, and writes
  those.

  Args:
    names: Members that need a rate.
    recipes: Result of `members.load`, with `RATES`.
    out: Folder of the experiment.
  """
  scores_file = out / 'rates/scores.json'
  known = rates.read(scores_file, recipes['RATES'])
  wanted = [name for name in names if name not in known]
  failures = {}
  if wanted:
    made, failures = try_rates(wanted, recipes, out / 'rates')
    rates.write(scores_file, made)
    known |= made
  best = rates.best({name: known[name] for name in names if name in known})
  for name in set(names) - set(best) - set(failures):
    failures[name] = 'training failed with every learning rate'
  print(
    'learning rates: '
    + ', '.join(f'{name} {rate:g}' for name, rate in best.items())
  )
  return best, failures


def try_rates(
  names: Sequence[str], recipes: dict[str, Any], out: pathlib.Path
) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
  """Trains members with each rate; returns scores, and why members have none.

  Args:
    names: Members to train.
    recipes: Result of `members.load`, with `RATES`.
    out: Folder of the runs.
  """
  suite = experiment.RATES_SUITE
  chosen, failures = members.make(
    recipes,
    names,
    suite=suite,
    budget=_BUDGET.value or experiment.RATES_BUDGET,
    data_dir=_DATA_DIR.value,
  )
  runs = rates.plan(
    chosen,
    recipes['RATES'],
    out,
    stores=open_data(chosen[0].config, chosen[0].data, rates.SPLIT),
    recipes=_RECIPES.value,
    suite=suite,
  )
  every = [run for by_rate in runs.values() for run in by_rate.values()]
  todo = [run for run in every if run.left()]
  for run in every:
    run.begin()
  for run, failure, seconds in running.complete_all(
    todo, _JOBS.value, running.execute
  ):
    said = f'failed: {failure}' if failure else f'{rates.score(run):.1f} %'
    print(f'{run.workdir}, {seconds:.0f} s: {said}', flush=True)
  return rates.scores(runs), failures


def run_part(part: experiment.Part, out: pathlib.Path, *, tuned: bool) -> bool:
  """Trains and tests the members of a part.

  Args:
    part: The part.
    out: Folder for its results and runs; of the whole experiment if `tuned`.
    tuned: Whether learning rates are chosen, instead of those of the recipes.

  Returns:
    Whether all members succeeded.

  Raises:
    UserError: If flags or data do not fit.
  """
  recipes = members.load(_RECIPES.value)
  best, failures = {}, {}
  if tuned:
    rate_of = {
      name: recipes['RATE_OF'].get(name, name) for name in part.members
    }
    best, failures = choose_rates(list(rate_of.values()), recipes, out)
  chosen, bad = members.make(
    recipes,
    part.members or None,
    suite=part.suite,
    budget=part.budget,
    data_dir=_DATA_DIR.value,
  )
  if tuned:
    bad |= {
      name: failures[rate_of[name]]
      for name in part.members
      if rate_of[name] in failures
    }
    chosen = [
      members.at_rate(x, best[rate_of[x.name]])
      for x in chosen
      if x.name not in bad
    ]
  if not chosen:
    raise UserError(f'no member of {part.name} can be trained; see {out}')
  config, data = chosen[0].config, chosen[0].data
  options = parse_oracle_options(_ORACLE_OPTIONS.value)
  asked = make_oracles(
    part.oracles, options, part.suite, config.data.image_size
  )
  stores = open_data(config, data, config.eval.split)
  bad |= check_data(chosen, asked.values(), stores[1])
  runs = running.plan(
    [member for member in chosen if member.name not in bad],
    part.seeds,
    out / 'runs' / part.suite if tuned else out,
    asked,
    options=options,
    stores=stores,
    recipes=_RECIPES.value,
    suite=part.suite,
    motions=part.motions,
  )
  motions = part.motions and store_lib.open_split(
    config.data.dir, part.motions, config.eval.split
  )
  by = f', motions of {part.motions}' if part.motions else ''
  table = tables.Table(
    f'{part.suite}, {part.budget} a member{by}',
    list(asked),
    bad,
    scenes=scenes_of(config, stores[1], motions),
  )
  if tuned:
    out = out / part.name
  return suites.complete(runs, table, out, jobs=_JOBS.value)


def scenes_of(
  config: ConfigDict,
  store: store_lib.FrameStore,
  motions: store_lib.FrameStore | None,
) -> list[str]:
  """Returns the name of the scene of each pair; clips of one may be several."""
  return [
    re.split('[-/]', store.clip_id(scene.clip))[0]
    for _, scene in pairs.pairs_of(config, store, motions)
  ]


def planned(out: pathlib.Path) -> list[experiment.Part]:
  """Returns the parts to run; prints the budget of an experiment.

  Raises:
    UserError: If flags do not fit.
  """
  budget, seeds = _BUDGET.value, _SEEDS.value
  if seeds is not None and not (seeds and all(x.isdigit() for x in seeds)):
    raise UserError(f'--seeds={",".join(seeds)}: give integers such as 0,1,2')
  given = {
    'budget': budget,
    'seeds': seeds and tuple(dict.fromkeys(map(int, seeds))),
    'members': _MEMBERS.value and tuple(dict.fromkeys(_MEMBERS.value)),
    'oracles': _ORACLES.value and tuple(_ORACLES.value),
  }
  given = {key: value for key, value in given.items() if value}
  if _EXPERIMENT.value:
    parts = [
      dataclasses.replace(part, **given)
      for part in experiment.chosen(_EXPERIMENT.value)
    ]
    recipes = members.load(_RECIPES.value)
    print(
      experiment.budget(
        parts, recipes['RATE_OF'], recipes['RATES'], out, _JOBS.value
      ),
      flush=True,
    )
    if 'members' not in given:
      parts = list(map(experiment.with_earlier, parts))
    return parts
  if not (_SUITE.value and budget):
    raise UserError(
      f'give --suite, one of {", ".join(SUITES)}, and --budget, e.g. 4000; or '
      '--experiment=all'
    )
  suite = _SUITE.value
  default = {'members': (), 'seeds': (0, 1, 2), 'oracles': None}
  return [experiment.Part(suite, suite, **default | given)]


def main(_: list[str]) -> int:
  """Runs the tool; returns the exit code."""
  with cli.reporting_user_errors():
    tuned = bool(_EXPERIMENT.value)
    out = _OUT.value or ('runs/experiment' if tuned else 'runs/transfer')
    out = pathlib.Path(out)
    parts = planned(out)
    if _PLAN.value:
      return 0
    # Members run in processes that need the accelerator.
    jax.config.update('jax_platforms', 'cpu')
    # Members share compiled programs and, in parallel, a GPU's memory.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{out}/compile_cache')
    if _JOBS.value > 1:
      os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    done = []
    for part in parts:
      done.append(run_part(part, out, tuned=tuned))
      if tuned and (plots := figures.write(out)):
        print(f'figures: {", ".join(map(str, plots))}', flush=True)
    return 0 if all(done) else 1


if __name__ == '__main__':
  cli.run(main)
