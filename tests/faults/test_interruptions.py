"""Runs that are told to stop, killed, or left alone by their peers."""

import os
import signal
import time

import jax
import numpy as np
import pytest

from tests import commands
from tests.faults import runs
from tests.training import small
from xfactor.training.resilience import checkpoints as checkpoints_lib

STEPS = 100
INTERVAL = 10
FLAGS = (
  f'--config.train.steps={STEPS}',
  f'--config.train.save_every={INTERVAL}',
  '--config.train.eval_every=50',
)


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  folder = tmp_path_factory.mktemp('interruptions')
  return runs.write_recipe(folder, small.make_data(folder / 'data'))


@pytest.fixture(scope='module')
def straight(recipe):
  """A run that nothing happened to."""
  with runs.Run(recipe, recipe.parent / 'straight', *FLAGS) as run:
    run.complete()
  return run.workdir


def state(workdir):
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  try:
    return checkpoints.read()[0]
  finally:
    checkpoints.close()


def newest(workdir):
  return (runs.saved(workdir) or [0])[-1]


def logs(workdir):
  return len(list(workdir.glob('tensorboard/*')))


@pytest.mark.soak
def test_a_run_survives_signals_at_random_moments(
  recipe, straight, tmp_path, record_property
):
  """Five times SIGTERM, five SIGKILL: the end is that of the straight run.

  Moments are a number of updates, 0 being somewhere in start-up, and a pause
  after it. SIGTERM loses nothing; SIGKILL loses what came after a save, and
  that save if it was still being written.
  """
  rng = np.random.default_rng(0)
  rows = []
  for signum in rng.permutation([signal.SIGTERM, signal.SIGKILL] * 5):
    updates, pause = int(rng.integers(0, 6)), rng.uniform(0, 0.2)
    before, started = newest(tmp_path), logs(tmp_path)
    with runs.Run(recipe, tmp_path, *FLAGS) as run:
      if updates:
        assert run.until(lambda: run.reached() >= before + updates)  # noqa: B023
      else:
        assert run.until(lambda: logs(tmp_path) > started)  # noqa: B023
      time.sleep(pause)
      run.tell(signum)
      told = time.monotonic()
      (code,) = run.codes()
    seconds = time.monotonic() - told
    reached, kept = max(run.reached(), before), newest(tmp_path)
    rows.append((signal.Signals(signum).name, updates, code, reached, kept))
    rows[-1] += (reached - kept, seconds)
    if signum == signal.SIGTERM:
      assert code == 42, run.output()[-3000:]
      assert kept == reached
    else:
      assert code == -signal.SIGKILL
      assert kept >= reached - 2 * INTERVAL
  with runs.Run(recipe, tmp_path, *FLAGS) as run:
    run.complete()
  jax.tree.map(np.testing.assert_array_equal, state(tmp_path), state(straight))
  print('\nsignal   after  code  reached  saved  lost  seconds')
  for row in rows:
    print('{:7}  {:5}  {:4}  {:7}  {:5}  {:4}  {:7.1f}'.format(*row))
  record_property('tried', len(rows))
  record_property('lost', sum(row[5] for row in rows))


COMPILING = """
import functools
import itertools
import sys
import jax
import jax.numpy as jnp
from xfactor import cli
from xfactor.training.resilience import shutdown


def f(x, scale):
  for i in range(150):
    x = jnp.tanh(x @ x) + jnp.sort(x, axis=i % 2) * scale
  return x


def main(_):
  with cli.reporting_user_errors(), shutdown.handling():
    for i in itertools.count(1):  # Until a signal ends it.
      program = jax.jit(functools.partial(f, scale=0.1 / i))
      lowered = program.lower(jax.ShapeDtypeStruct((64, 64), 'float32'))
      open(FILE, 'w').close()
      lowered.compile()


if __name__ == '__main__':
  cli.run(main)
"""


def stop_compiling(folder, signum, pause):
  """Exit code and what was written, of a process that is told to stop."""
  script, file = folder / 'script.py', folder / 'compiling'
  script.write_text(COMPILING.replace('FILE', repr(str(file))))
  file.unlink(missing_ok=True)
  out = str(folder / 'out')
  process = commands.start(script, stdout=out, stderr=out)
  while not file.exists():
    assert process.is_alive(), (folder / 'out').read_text()
    time.sleep(0.01)
  time.sleep(pause)
  os.kill(process.pid, signum)
  process.join(runs.PATIENCE)
  return process.exitcode, (folder / 'out').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_jax_compiles_is_no_crash(tmp_path, signum):
  code, said = stop_compiling(tmp_path, signum, 0.3)
  assert code == 42, said
  assert 'Fatal' not in said


@pytest.mark.soak
@pytest.mark.parametrize('moment', range(20))
def test_twenty_signals_while_jax_compiles_are_no_crash(tmp_path, moment):
  signum = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[moment % 3]
  pause = np.random.default_rng(moment).uniform(0, 4)
  code, said = stop_compiling(tmp_path, signum, pause)
  assert code == 42, said


@pytest.mark.slow
@pytest.mark.parametrize('where', ['compile', 'evaluation'])
def test_what_hangs_in_c_is_left_with_nothing_lost(
  recipe, straight, tmp_path, where
):
  """As a long compilation does: Python's signal handlers wait for it."""
  flags = ('--config.train.steps=4', '--config.train.eval_every=2')
  with runs.Run(recipe, tmp_path, *flags, hang=where) as run:
    assert run.until(run.hangs), run.output()
    run.tell(signal.SIGTERM)
    assert run.codes() == [42], run.output()
  assert newest(tmp_path) == {'compile': 0, 'evaluation': 2}[where]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all(recipe, straight, tmp_path):
  with runs.Run(recipe, tmp_path, *FLAGS, hang='data') as run:
    assert run.until(run.hangs), run.output()
    run.tell(signal.SIGINT)
    assert run.until(lambda: 'stop requested' in run.output())
    run.tell(signal.SIGINT)
    assert run.codes() == [130]


@pytest.mark.slow
def test_the_watchdog_ends_what_hangs(recipe, straight, tmp_path):
  flags = (*FLAGS, '--config.train.watchdog_minutes=0.35')
  with runs.Run(recipe, tmp_path, *flags, hang='data') as run:
    assert run.codes() == [137], run.output()
  assert 'watchdog_minutes' in run.output()
  stacks = (tmp_path / 'stacks-0.txt').read_text()
  assert 'in hang' in stacks
  assert 'loop.py' in stacks


@pytest.mark.soak
def test_two_processes_stop_together_and_miss_each_other(
  recipe, straight, tmp_path, record_property
):
  """One is told to stop, twice; then one is killed; then one is suspended."""
  losses = runs.losses(straight)
  rows = []

  def cluster(*flags, **options):
    return runs.Run(recipe, tmp_path, *FLAGS, *flags, processes=2, **options)

  def trained(run, updates):
    target = newest(tmp_path) + updates
    assert run.until(lambda: run.reached() >= target), run.output()

  def note(run, what, began):
    codes = [process.exitcode for process in run.processes]
    seconds = time.monotonic() - began
    lost = max(0, run.reached() - newest(tmp_path))
    rows.append((what, str(codes), newest(tmp_path), lost, seconds))

  with cluster() as run:
    trained(run, 3)
    run.tell(signal.SIGTERM, process=1)
    began = time.monotonic()
    assert run.codes() == [42, 42], run.output() + run.output(1)
    note(run, 'SIGTERM to one in training', began)
  stopped = newest(tmp_path)
  assert stopped == run.reached()

  with cluster('--config.train.eval_every=1', hang='evaluation') as run:
    assert run.until(run.hangs), run.output()
    run.tell(signal.SIGTERM, process=1)
    began = time.monotonic()
    assert run.codes() == [42, 42], run.output() + run.output(1)
    note(run, 'SIGTERM to one in evaluation', began)
  # Nothing was trained if the evaluation of the stop before is made up for.
  assert newest(tmp_path) == max(run.reached(), stopped)

  with cluster() as run:
    trained(run, 3)
    run.tell(signal.SIGKILL, process=1)
    began = time.monotonic()
    (code,) = run.codes(among=[0])
    run.codes()
    note(run, 'SIGKILL to one', began)
  assert code not in (0, 2, 42), run.output()
  assert newest(tmp_path) >= run.reached() - 2 * INTERVAL

  with cluster(
    '--config.train.watchdog_minutes=0.35', '--heartbeat=600'
  ) as run:
    trained(run, 3)
    run.tell(signal.SIGSTOP, process=1)
    began = time.monotonic()
    assert run.codes(among=[0]) == [137], run.output()
    run.tell(signal.SIGKILL, process=1)
    run.codes()
    note(run, 'SIGSTOP to one', began)
  assert newest(tmp_path) >= run.reached() - 2 * INTERVAL

  with cluster() as run:
    run.complete()
  record_property('tried', len(rows))
  record_property('lost', sum(row[3] for row in rows))
  print('\nwhat happened                 codes      saved  lost  seconds')
  for row in rows:
    print('{:28}  {:9}  {:5}  {:4}  {:7.1f}'.format(*row))
  found = runs.losses(tmp_path)
  assert found.keys() == losses.keys()
  np.testing.assert_allclose(
    [found[i] for i in losses], list(losses.values()), rtol=1e-3
  )
