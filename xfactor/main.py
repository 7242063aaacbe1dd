"""Trains a recipe: python -m xfactor.main --config=FILE --workdir=DIR.

The same command starts and resumes a run. Any value of the recipe can be
overridden: --config.train.steps=1000. Exit codes: 0 complete, 42 stopped by
SIGTERM, SIGHUP or Ctrl-C and saved, 137 killed because it hung, 2 bad input
(explained in one line on stderr), 1 other errors. Run it again after 42 and
137.
"""

from absl import flags
from ml_collections import ConfigDict

from xfactor import cli, parsing
from xfactor.training import build as builds
from xfactor.training import held_out, loop

_CONFIG = parsing.define_config('The recipe, e.g. configs/tiny.py.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run: checkpoints, logs, pictures.'
)
flags.mark_flag_as_required('workdir')


def _make_probe(config: ConfigDict, build: builds.Build) -> held_out.Probe:
  # Imported late, so that evaluation loads only when it is needed.
  from xfactor.evaluation import motion

  return motion.make(config, build)


def main(_) -> int:
  with cli.reporting_user_errors():
    cli.split_cpu(_CONFIG.value.cpu_devices)
    cli.initialize_distributed()
    loop.train(_CONFIG.value, _WORKDIR.value, _make_probe)
  return 0


def run() -> None:
  """Runs the command `xfactor-train`."""
  cli.run(main)


if __name__ == '__main__':
  run()
