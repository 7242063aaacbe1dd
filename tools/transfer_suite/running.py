"""Training and evaluating members: what is to be done, and doing it."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

from ml_collections import ConfigDict

from transfer_suite.members import Member
from xfactor import config as configs
from xfactor.data import files
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.training.resilience import shutdown

TRAIN, PROBE = 'train', 'probe'
_POLL = 0.2  # Seconds between looks whether to stop.
_STATE = 'benchmark.json'  # In a run's folder: its recipe and what is done.

# Runs a command whose output goes to a file, until it ends or is to stop;
# returns the exit code.
Runner = Callable[[Sequence[str], pathlib.Path, threading.Event], int]


@dataclasses.dataclass(frozen=True)
class Stage:
  """A command of a run.

  Attributes:
    name: `TRAIN`, `PROBE` where that is all there is to test, or an oracle's.
    command: Its arguments.
    key: Digest of all that its outcome depends on.
  """

  name: str
  command: Sequence[str]
  key: str


@dataclasses.dataclass(frozen=True)
class Run:
  """A member, trained from one seed.

  Attributes:
    member: What is trained.
    seed: Of its training.
    workdir: Its folder.
    stages: What is to be done, in order.
    recipe: Its training's settings by their dotted names.
  """

  member: Member
  seed: int
  workdir: pathlib.Path
  stages: Sequence[Stage]
  recipe: dict[str, Any]

  @property
  def name(self) -> str:
    """Of member and seed."""
    return self.workdir.name

  @property
  def log(self) -> pathlib.Path:
    """Where all that its commands say is."""
    return self.workdir / 'log.txt'

  def left(self) -> list[Stage]:
    """The stages that are not done, or not so."""
    done = self._state()['done']
    return [x for x in self.stages if done.get(x.name) != x.key]

  def finish(self, stage: Stage) -> None:
    """Notes that a stage is done."""
    done = self._state()['done'] | {stage.name: stage.key}
    self._write(done)

  def begin(self) -> None:
    """Notes the recipe before the first stage.

    Raises:
      UserError: If the folder is that of another training.
    """
    state = self._state()
    begun = state['done'] or (self.workdir / 'checkpoints').exists()
    for name, value in self.recipe.items():
      was = state['recipe'].get(name, value)
      if begun and was != value:
        raise UserError(
          f'{self.workdir} was trained with {name}={was}, and not with '
          f'{value}; give another --out, or delete that folder'
        )
    self._write(state['done'])

  def _state(self) -> dict[str, Any]:
    path = self.workdir / _STATE
    if not path.exists():
      return {'recipe': {}, 'done': {}}
    return files.read_json(path)

  def _write(self, done: dict[str, str]) -> None:
    self.workdir.mkdir(parents=True, exist_ok=True)
    state = {'recipe': self.recipe, 'done': done}
    files.write_json(self.workdir / _STATE, state)


def plan(
  members: Sequence[Member],
  seeds: Sequence[int],
  out: pathlib.Path,
  asked: dict[str, oracles_base.PoseOracle],
  *,
  options: dict[str, str],
  stores: Sequence[store_lib.FrameStore],
  recipes: str,
  suite: str,
) -> list[Run]:
  """All runs, seed by seed, so that a part of them compares all members.

  Args:
    members: To be trained.
    seeds: Of their trainings.
    out: Where the runs' folders are.
    asked: The oracles by name.
    options: Of theirs, as text.
    stores: The splits to train and to test on.
    recipes: The recipe's file.
    suite: Its second argument.
  """
  digests = [store.digest for store in stores]
  versions = {k: (x.version, x.settings()) for k, x in asked.items()}
  probed = all(x.clip(0).world_to_camera is not None for x in stores)

  def run(member: Member, seed: int) -> Run:
    workdir = out / f'{member.name}-seed{seed}'
    config = ConfigDict(member.config)
    config.seed = seed
    leaves = json.loads(config.to_json_best_effort())
    recipe = {
      name: _leaf(leaves, name)
      for name in configs.leaf_paths(config)
      if not name.startswith('eval.')
    }
    arguments = [
      f'--config={recipes}:{member.name},{suite}',
      f'--workdir={workdir}',
      f'--config.data.dir={config.data.dir}',
      f'--config.train.steps={member.updates}',
      f'--config.seed={seed}',
    ]
    tests = {
      name: [f'--oracle={name}', f'--oracle_options={options.get(name, "")}']
      for name in (asked if member.draws else ())
    }
    if probed:  # With the first oracle, where there is one.
      tests.setdefault(next(iter(tests), PROBE), []).append('--probe')
    train = [sys.executable, '-m', 'xfactor.main', *arguments]
    stages = [Stage(TRAIN, train, files.digest(recipe, digests))]
    for name, more in tests.items():
      command = [sys.executable, '-m', 'xfactor.eval', *arguments, *more]
      key = files.digest(leaves, digests, more, versions.get(name))
      stages.append(Stage(name, command, key))
    return Run(member, seed, workdir, stages, recipe)

  return [run(member, seed) for seed in seeds for member in members]


def _leaf(tree: dict[str, Any], name: str) -> Any:
  for key in name.split('.'):
    tree = tree[key]
  return tree


def execute(
  command: Sequence[str], log: pathlib.Path, stop: threading.Event
) -> int:
  """The runner; SIGTERM tells the process to stop."""
  with log.open('a') as file:
    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    told = False
    while True:
      try:
        return process.wait(_POLL)
      except subprocess.TimeoutExpired:
        if stop.is_set() and not told:
          process.terminate()
          told = True


def complete(run: Run, runner: Runner, stop: threading.Event) -> str:
  """Does what is left of a run.

  Returns:
    Why it failed; empty if it did not.

  Raises:
    interruption.Interrupted: If it is to stop, and can go on from there.
  """
  for stage in run.left():
    if stop.is_set():
      raise shutdown.Interrupted
    before = run.log.stat().st_size if run.log.exists() else 0
    code = runner(stage.command, run.log, stop)
    if code == shutdown.EXIT_CODE:
      stop.set()  # Before others begin.
    if code and stop.is_set():
      raise shutdown.Interrupted
    if code:
      return f'{stage.name}: {_reason(run.log, before, code)}'
    run.finish(stage)
  return ''


def _reason(log: pathlib.Path, begin: int, code: int) -> str:
  """The last error in a log from byte `begin` on, or its last line."""
  said = log.read_bytes()[begin:].decode(errors='replace').splitlines()
  lines = [line.strip() for line in said if line.strip()]
  errors = [line for line in lines if line.startswith('error: ')]
  if errors:
    return errors[-1].removeprefix('error: ')
  return f'exit code {code}' + (f' ({lines[-1]})' if lines else '')


def complete_all(
  runs: Sequence[Run], jobs: int, runner: Runner
) -> Iterator[tuple[Run, str, float]]:
  """Completes runs, `jobs` at once.

  Yields:
    A run, why it failed (empty if it did not), and the seconds that it took.

  Raises:
    interruption.Interrupted: If it was told to stop, after all have.
  """
  stop, stopped = threading.Event(), False

  def timed(run: Run) -> tuple[Run, str, float]:
    began = time.monotonic()
    return run, complete(run, runner, stop), time.monotonic() - began

  with (
    shutdown.handling() as told,
    told.deferred(),
    futures.ThreadPoolExecutor(jobs) as pool,
  ):
    order = {pool.submit(timed, run): i for i, run in enumerate(runs)}
    waiting = set(order)
    try:
      while waiting:
        done, waiting = futures.wait(waiting, _POLL, futures.FIRST_COMPLETED)
        for future in sorted(done, key=order.get):
          try:
            yield future.result()
          except shutdown.Interrupted:
            stopped = True
        if stopped or told.requested:
          stop.set()
    finally:
      stop.set()
  if stopped:  # A member was told to stop, and not this process.
    raise shutdown.Interrupted
