"""Processes agree on what is good, even if only one of them sees the damage."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

from tests import commands
from tests.training import tiny
from xfactor.errors import UserError
from xfactor.training.resilience import checkpoint_files, checksums
from xfactor.training.resilience import checkpoints as checkpoints_lib


def run(workdir, what, processes=2):
  """Runs `main` in some processes of two devices; returns what each says."""
  address = f'127.0.0.1:{commands.free_port()}'
  flags = '--xla_force_host_platform_device_count=2'
  started = [
    subprocess.Popen(
      [sys.executable, '-m', __name__, address, str(processes), str(i)]
      + [str(workdir), what],
      env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  try:
    ended = [process.communicate(timeout=240) for process in started]
  finally:
    for process in started:
      process.kill()
  for process, (_, err) in zip(started, ended, strict=True):
    assert process.returncode == 0, err
  return [json.loads(out.splitlines()[-1]) for out, _ in ended], ended


def main(address, processes, process, workdir, what):
  jax.distributed.initialize(address, int(processes), int(process))
  state = tiny.state(2, jax.device_count())
  said = {}
  if what == 'unlucky' and process == '1':
    # This process alone cannot read the newest one.
    real = checkpoint_files._read_state

    def read(folder, *args):
      if folder.name == '2':
        raise ValueError('DATA_LOSS: here')
      return real(folder, *args)

    checkpoint_files._read_state = read
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir)) as checkpoints:
    checkpoints.check_room(tiny.abstract(state))
    if what == 'save':
      for step in (1, 2):
        checkpoints.save(tiny.state(step, jax.device_count()), tiny.META)
        checkpoints.wait()
    elif what == 'refuse':
      try:
        checkpoints.restore(tiny.abstract(state), step=2)
      except UserError as e:
        said['error'] = str(e)
    else:
      state, _ = checkpoints.restore(tiny.abstract(state))
      said['fingerprints'] = checksums.compute(state)[0]
    said['steps'] = checkpoints.steps()
  print(json.dumps(said))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('saved')
  said, _ = run(workdir, 'save')
  assert said == [{'steps': [1, 2]}] * 2
  return workdir


def expected(step):
  return checksums.compute(tiny.state(step))[0]


def test_one_process_takes_what_two_saved(saved):
  state = tiny.state(2)
  options = {'create': False}
  with contextlib.closing(
    checkpoints_lib.Checkpoints(saved, **options)
  ) as found:
    got, _ = found.restore(tiny.abstract(state))
  assert tiny.same(got, state)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['flipped', 'unlucky'])
def test_all_fall_back_together(saved, tmp_path, kind):
  workdir = tmp_path / 'run'
  shutil.copytree(saved, workdir)
  if kind == 'flipped':
    tiny.flip(tiny.data_file(workdir / 'checkpoints/2'))
    said, _ = run(workdir, 'refuse')
    assert all('checkpoints/2 is damaged' in x['error'] for x in said)
    assert (workdir / 'checkpoints/2').exists()
  said, ended = run(workdir, kind)
  assert said == [{'fingerprints': expected(1), 'steps': [1]}] * 2
  assert 'now 2.damaged, step 1 is taken' in ended[0][1]
  assert (workdir / 'checkpoints/2.damaged').exists()


if __name__ == '__main__':
  main(*sys.argv[1:])
