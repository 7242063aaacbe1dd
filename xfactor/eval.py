"""Evaluates a run: python -m xfactor.eval --workdir=DIR [--config=FILE].

Scores a checkpoint on the fixed held-out examples of the recipe's data sets and
writes eval/STEP.json, pictures and a page, eval/STEP/index.html, into the run's
folder or into --out. The recipe is that of the run; overrides of it, or another
--config, are named in the scores, which then lie in eval-HASH. The default is
the newest checkpoint; --step=N selects one, --step=all all that are not
evaluated yet. --follow waits for new checkpoints until that of the run's last
update. --oracle=NAME also runs the transfer test: True Pose
Similarity by that oracle, and FID; --motions=DATA_SET lets the clips of another
data set move the scenes. --probe also trains and tests the pose
probe. Exit codes are those of xfactor.main.
"""

import contextlib

import jax
from absl import flags

from xfactor import cli, parsing
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation import run as evaluation_run
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.training.resilience import shutdown

_CONFIG = parsing.define_config(
  "Recipe; default: the run's own.", required=False
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_OUT = flags.DEFINE_string(
  'out', None, 'Folder to write to instead of --workdir.'
)
_STEP = flags.DEFINE_string(
  'step', 'latest', 'Checkpoint: latest, a number, or all (not evaluated yet).'
)
_FOLLOW = flags.DEFINE_bool('follow', False, 'Wait for new checkpoints.')
_ORACLE = flags.DEFINE_enum(
  'oracle', None, oracles.NAMES, 'Pose oracle; runs the transfer test.'
)
_ORACLE_OPTIONS = flags.DEFINE_string(
  'oracle_options', '', 'Options of --oracle, for instance weights=model.pt.'
)
_TARGET_ORACLE = flags.DEFINE_enum(
  'target_oracle',
  None,
  oracles.NAMES,
  'Oracle of real frames; default: --oracle.',
)
_TARGET_ORACLE_OPTIONS = flags.DEFINE_string(
  'target_oracle_options', '', 'Options of --target_oracle.'
)
_MOTIONS = flags.DEFINE_string(
  'motions', None, 'Data set that gives the motions; default: its own.'
)
_LPIPS = flags.DEFINE_multi_enum(
  'lpips', None, ['vgg16', 'alexnet'], 'LPIPS networks (default: vgg16).'
)
_INCEPTION = flags.DEFINE_string(
  'inception', None, "Weights of pytorch-fid's Inception for the FID."
)
_PROBE = flags.DEFINE_bool(
  'probe', False, 'Train and test a pose probe; needs cameras.'
)
flags.mark_flag_as_required('workdir')


def _make(name: str | None, options: str) -> oracles_base.PoseOracle | None:
  return name and oracles.make(name, **oracles.parse_options(options))


def main(_) -> int:
  with cli.reporting_user_errors(), contextlib.ExitStack() as stack:
    cli.initialize_distributed()
    stack.enter_context(shutdown.handling())
    config, workdir = _CONFIG.value, _WORKDIR.value
    if not _ORACLE.value and (
      _INCEPTION.value or _TARGET_ORACLE.value or _MOTIONS.value
    ):
      raise UserError(
        '--inception, --target_oracle and --motions are for the transfer test; '
        'add --oracle=NAME'
      )
    evaluate = evaluation_run.Evaluation(
      config,
      workdir,
      lpips=_LPIPS.value,
      oracle=_make(_ORACLE.value, _ORACLE_OPTIONS.value),
      target_oracle=_make(_TARGET_ORACLE.value, _TARGET_ORACLE_OPTIONS.value),
      inception=_INCEPTION.value,
      probe=_PROBE.value,
      out=_OUT.value,
      motions=_MOTIONS.value,
    )
    for page in evaluation_run.pages(
      evaluate, config, workdir, _STEP.value, follow=_FOLLOW.value
    ):
      if jax.process_index() == 0:
        print(f'report: {page}', flush=True)
  return 0


def run() -> None:
  """Runs the command `xfactor-eval`."""
  cli.run(main, cli.parse_with_own_recipe)


if __name__ == '__main__':
  run()
