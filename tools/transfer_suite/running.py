"""Plans and runs the training and evaluation of members."""

import dataclasses
import json
import os
import pathlib
import queue
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
_POLL = 0.2  # Seconds between checks for a stop request.
_STATE = 'benchmark.json'  # In a run's folder: its recipe and finished stages.

# Runs a command with its output appended to a file, until it ends or the event
# is set; returns the exit code.
Runner = Callable[[Sequence[str], pathlib.Path, threading.Event], int]


@dataclasses.dataclass(frozen=True)
class Stage:
  """A command of a run.

  Attributes:
    name: `TRAIN`, that of a transfer test, or `PROBE` if only the probe runs.
    command: Program and arguments.
    key: Digest of everything that its result depends on.
    oracle: Oracle of a transfer test; empty for other commands.
    motions: Data set that gives its motions, if it is another one.
  """

  name: str
  command: Sequence[str]
  key: str
  oracle: str = ''
  motions: str = ''

  @property
  def file(self) -> str:
    """End of the name of the file that a transfer test writes."""
    prefix = f'by-{self.motions}_' if self.motions else ''
    return f'{prefix}tps-{self.oracle}.json'


@dataclasses.dataclass(frozen=True)
class Run:
  """A member trained with one seed.

  Attributes:
    member: Member that is trained.
    seed: Seed of the training.
    workdir: Folder of the run.
    stages: Stages of the run, in order.
    recipe: Training settings by dotted name.
  """

  member: Member
  seed: int
  workdir: pathlib.Path
  stages: Sequence[Stage]
  recipe: dict[str, Any]

  @property
  def name(self) -> str:
    """Name of member and seed."""
    return self.workdir.name

  @property
  def log(self) -> pathlib.Path:
    """File with the output of its commands."""
    return self.workdir / 'log.txt'

  def left(self) -> list[Stage]:
    """Returns the stages that are not done with their current key."""
    done = self._state()['done']
    return [x for x in self.stages if done.get(x.name) != x.key]

  def finish(self, stage: Stage, seconds: float) -> None:
    """Records that a stage is done, and how long it took."""
    state = self._state()
    self._write(
      state['done'] | {stage.name: stage.key},
      state['seconds'] | {stage.name: seconds},
    )

  def seconds(self) -> dict[str, float]:
    """Returns the duration of each stage that is done, since its last start."""
    return self._state()['seconds']

  def begin(self) -> None:
    """Records the recipe before the first stage.

    Raises:
      UserError: If the folder belongs to another training.
    """
    state = self._state()
    begun = state['done'] or (self.workdir / 'checkpoints').exists()
    for name, value in self.recipe.items():
      was = state['recipe'].get(name, value)
      if begun and was != value:
        raise UserError(
          f'{self.workdir} was trained with {name}={was}, not with {value}; '
          'give another --out, or delete that folder'
        )
    self._write(state['done'], state['seconds'])

  def _state(self) -> dict[str, Any]:
    path = self.workdir / _STATE
    if not path.exists():
      return {'recipe': {}, 'done': {}, 'seconds': {}}
    return {'seconds': {}} | files.read_json(path)

  def _write(self, done: dict[str, str], seconds: dict[str, float]) -> None:
    self.workdir.mkdir(parents=True, exist_ok=True)
    state = {
      'recipe': self.recipe,
      'flops': self.member.flops * self.member.updates,
      'done': done,
      'seconds': seconds,
    }
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
  motions: str | None = None,
) -> list[Run]:
  """Returns all runs, ordered by seed, so that early results compare members.

  Args:
    members: Members to train.
    seeds: Seeds of the trainings.
    out: Folder that contains the folders of the runs.
    asked: Oracles by name.
    options: Options of the oracles by name, as text.
    stores: Training and test splits.
    recipes: Path of the file of recipes.
    suite: Suite, the second argument of its `get_config`.
    motions: Data set that gives the motions; None: that of the scenes.
  """
  digests = [store.digest for store in stores]
  versions = {k: (x.version, x.settings()) for k, x in asked.items()}
  probed = not motions and all(
    x.clip(0).world_to_camera is not None for x in stores
  )

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
      f'--config.eval.split={config.eval.split}',
      f'--config.optimizer.learning_rate={config.optimizer.learning_rate}',
      '--config.optimizer.final_learning_rate='
      f'{config.optimizer.final_learning_rate}',
    ]
    tests = {
      name: [f'--oracle={name}', f'--oracle_options={options.get(name, "")}']
      for name in (asked if member.draws else ())
    }
    if motions:
      for words in tests.values():
        words.append(f'--motions={motions}')
    if probed:  # Together with the first oracle, if any.
      tests.setdefault(next(iter(tests), PROBE), []).append('--probe')
    train = [sys.executable, '-m', 'xfactor.main', *arguments]
    stages = [Stage(TRAIN, train, files.digest(recipe, digests))]
    for name, more in tests.items():
      command = [sys.executable, '-m', 'xfactor.eval', *arguments, *more]
      key = files.digest(leaves, digests, more, versions.get(name))
      if name == PROBE:
        stages.append(Stage(name, command, key))
        continue
      # Does not replace the test with the motions of the data set itself.
      called = f'{name} by {motions}' if motions else name
      stages.append(Stage(called, command, key, name, motions or ''))
    return Run(member, seed, workdir, stages, recipe)

  return [run(member, seed) for seed in seeds for member in members]


def _leaf(tree: dict[str, Any], name: str) -> Any:
  for key in name.split('.'):
    tree = tree[key]
  return tree


def execute(
  command: Sequence[str], log: pathlib.Path, stop: threading.Event
) -> int:
  """Runs a command; sends SIGTERM if it should stop."""
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
  """Runs the remaining stages of a run.

  Returns:
    Reason of a failure; empty if there was none.

  Raises:
    shutdown.Interrupted: If a stop was requested; the run can be resumed.
  """
  for stage in run.left():
    if stop.is_set():
      raise shutdown.Interrupted
    before = run.log.stat().st_size if run.log.exists() else 0
    began = time.monotonic()
    code = runner(stage.command, run.log, stop)
    if code == shutdown.EXIT_CODE:
      stop.set()  # Other runs must not start.
    if code and stop.is_set():
      raise shutdown.Interrupted
    if code:
      return f'{stage.name}: {_reason(run.log, before, code)}'
    run.finish(stage, time.monotonic() - began)
  return ''


def _reason(log: pathlib.Path, begin: int, code: int) -> str:
  """Returns the last error in a log after byte `begin`, or its last line."""
  said = log.read_bytes()[begin:].decode(errors='replace').splitlines()
  lines = [line.strip() for line in said if line.strip()]
  errors = [line for line in lines if line.startswith('error: ')]
  if errors:
    return errors[-1].removeprefix('error: ')
  return f'exit code {code}' + (f' ({lines[-1]})' if lines else '')


def core_shares(jobs: int) -> list[set[int]]:
  """Divides the cores of this process among jobs; a core may be in two.

  Returns:
    Numbers of cores for each job; nothing with one job, or where the system has
    no affinities.
  """
  if jobs == 1 or not hasattr(os, 'sched_setaffinity'):
    return []
  cores = sorted(os.sched_getaffinity(0))
  return [set(cores[i::jobs]) or {cores[i % len(cores)]} for i in range(jobs)]


def _pin(shares: queue.SimpleQueue) -> None:
  """Moves a thread, and the processes that it will start, to its cores."""
  if not shares.empty():
    os.sched_setaffinity(0, shares.get())


def complete_all(
  runs: Sequence[Run], jobs: int, runner: Runner
) -> Iterator[tuple[Run, str, float]]:
  """Completes runs, `jobs` in parallel.

  Yields:
    A run, the reason of its failure (empty if none), and its seconds.

  Raises:
    shutdown.Interrupted: If a stop was requested, after all runs have stopped.
  """
  stop, stopped = threading.Event(), False

  def timed(run: Run) -> tuple[Run, str, float]:
    began = time.monotonic()
    return run, complete(run, runner, stop), time.monotonic() - began

  shares = queue.SimpleQueue()
  for share in core_shares(jobs):
    shares.put(share)
  with (
    shutdown.handling() as told,
    told.deferred(),
    futures.ThreadPoolExecutor(
      jobs, initializer=_pin, initargs=(shares,)
    ) as pool,
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
  if stopped:  # Also if only a member received the signal.
    raise shutdown.Interrupted
