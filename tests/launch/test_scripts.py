"""The scripts as scripts: clean, and the one for Slurm."""

import os
import pathlib
import subprocess
import sysconfig

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / 'launch'
SHELLCHECK = os.path.join(sysconfig.get_path('scripts'), 'shellcheck')
SBATCH = LAUNCH / 'slurm.sbatch'


@pytest.mark.parametrize(
  'script', sorted(LAUNCH.iterdir()), ids=lambda path: path.name
)
def test_shellcheck_has_nothing_to_say(script):
  result = subprocess.run(
    [SHELLCHECK, '--external-sources', script.name],
    cwd=LAUNCH,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
  ('code', 'restarts', 'requeued'),
  [(0, 0, False), (2, 0, False), (42, 99, True), (1, 0, True), (1, 5, False)],
)
def test_slurm_requeues_what_can_go_on(tmp_path, code, restarts, requeued):
  for name, exit_code in (('srun', code), ('scontrol', 0)):
    tool = tmp_path / name
    tool.write_text(
      f'#!/bin/sh\nprintf "%s|" "$@" >>{tmp_path}/{name}.calls\n'
      f'exit {exit_code}\n'
    )
    tool.chmod(0o755)
  result = subprocess.run(
    ['bash', str(SBATCH), 'python', '-c', 'a b'],
    env={
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'SLURM_JOB_ID': '7',
      'SLURM_RESTART_COUNT': str(restarts),
    },
  )
  assert result.returncode == code
  assert (tmp_path / 'srun.calls').read_text().endswith('|python|-c|a b|')
  assert (tmp_path / 'scontrol.calls').exists() == requeued
  if requeued:
    assert (tmp_path / 'scontrol.calls').read_text() == 'requeue|7|'


def test_slurm_starts_what_jax_detects():
  """A process for each GPU, all GPUs visible to each (jax #16788, #28194)."""
  options = dict(
    line.removeprefix('#SBATCH --').partition('=')[::2]
    for line in SBATCH.read_text().splitlines()
    if line.startswith('#SBATCH')
  )
  assert options['ntasks-per-node'] == options['gpus-per-node']
  assert 'gpus-per-task' not in options
  assert '--gpu-bind=none' in SBATCH.read_text()
