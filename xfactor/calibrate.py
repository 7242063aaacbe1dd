"""Fits cameras to latent poses: python -m xfactor.calibrate --workdir=DIR.

Encodes pairs of frames of the recipe's training splits whose cameras are known,
and fits a map from camera motions to latent poses and one back; the networks
are not trained. Writes calibration-STEP.npz into the run's folder, which
xfactor.load and xfactor.render --path read, and tests it on the held-out split:
scenes rendered from cameras, and cameras found in clips
(calibration-STEP.json). --datasets=NAMES names other data sets of
--config.data.dir. Exit codes are those of xfactor.main.
"""

from absl import flags
from etils import epath

from xfactor import api, cli, parsing
from xfactor.data.records import store as store_lib
from xfactor.evaluation import camera_test, oracles, pairs

_CONFIG = parsing.define_config(
  "Recipe; default: the run's own.", required=False
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; the newest if unset.')
_DATASETS = flags.DEFINE_list(
  'datasets', None, "Data sets with cameras; the recipe's if unset."
)
_WINDOW = flags.DEFINE_integer(
  'window',
  None,
  'Largest number of frames of a pair; that of the training if unset.',
  lower_bound=2,
)
_PAIRS = flags.DEFINE_integer(
  'pairs', 4096, 'Number of pairs of frames to fit to.', lower_bound=1
)
_ONE_UNIT = flags.DEFINE_bool(
  'one_unit',
  None,
  'Whether all clips have one unit of length; if unset, only those of rendered '
  'worlds do.',
)
_TEST = flags.DEFINE_bool('test', True, 'Test it on the held-out split.')
_ORACLE = flags.DEFINE_enum(
  'oracle', None, oracles.NAMES, 'Pose oracle that finds the rendered paths.'
)
_ORACLE_OPTIONS = flags.DEFINE_string(
  'oracle_options', '', 'Options of --oracle, for instance hold_out=True.'
)
flags.mark_flag_as_required('workdir')


def main(_) -> int:
  with cli.reporting_user_errors():
    cli.avoid_idle_libtpu()
    config, workdir = _CONFIG.value, epath.Path(_WORKDIR.value)
    model = api.load(workdir, _STEP.value)
    print(f'step {model.step} of {workdir}', flush=True)
    names = _DATASETS.value or list(config.data.mix)
    made = api.calibrate(
      model,
      [store_lib.open_split(config.data.dir, x, _split(x)) for x in names],
      window=_WINDOW.value,
      pairs=_PAIRS.value,
      one_unit=_ONE_UNIT.value,
    )
    print(made.calibration.describe(), flush=True)
    results = {}
    oracle = _ORACLE.value and oracles.make(
      _ORACLE.value, **oracles.parse_options(_ORACLE_OPTIONS.value)
    )
    for name in names if _TEST.value else ():
      store = store_lib.open_split(config.data.dir, name, config.eval.split)
      chosen = pairs.pairs_of(config, store)
      results[name] = camera_test.evaluate(made, store, chosen, oracle)
      print(camera_test.table(name, results[name]), flush=True)
    if results:
      path = model.workdir / f'calibration-{model.step}.json'
      camera_test.write(path, results)
  return 0


def _split(name: str) -> str:
  mix = _CONFIG.value.data.mix
  return mix[name].split if name in mix else 'train'


def run() -> None:
  """Runs the command `xfactor-calibrate`."""
  cli.run(main, cli.parse_with_own_recipe)


if __name__ == '__main__':
  run()
