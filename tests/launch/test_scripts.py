"""The scripts as scripts: clean; Slurm, SkyPilot and Docker."""

import os
import pathlib
import re
import subprocess
import sysconfig

import pytest
import yaml

from xfactor.training.resilience import shutdown, watchdog

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
TOOLS = pathlib.Path(sysconfig.get_path('scripts'))
SHELLCHECK = TOOLS / 'shellcheck'
SBATCH = LAUNCH / 'slurm.sbatch'
SCRIPTS = [*sorted(LAUNCH.glob('*.sh')), SBATCH]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
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


def test_hadolint_has_nothing_to_say():
  result = subprocess.run(
    [TOOLS / 'hadolint', LAUNCH / 'Dockerfile'], capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout + result.stderr


def install(text):
  """The commands that install xfactor, without extras and line ends."""
  text = ' '.join(text.replace('\\\n', ' ').split())
  found = re.search(r'python3 -m venv .* install (--\S+ )*-e \S+', text)
  return re.sub(r'--\S+ |"|\[\$EXTRAS\]', '', found[0])


@pytest.mark.parametrize('name', ['Dockerfile', 'sky.yaml'])
def test_images_are_installed_as_in_the_readme(name):
  expected = 'python3 -m venv .venv && . .venv/bin/activate && pip install -e .'
  assert expected in (ROOT / 'README.md').read_text()
  assert install((LAUNCH / name).read_text()) == expected


def test_skypilot_restarts_what_can_go_on():
  task = yaml.safe_load((LAUNCH / 'sky.yaml').read_text())
  recovery = task['resources']['job_recovery']
  assert recovery['recover_on_exit_codes'] == [
    shutdown.EXIT_CODE,
    watchdog.EXIT_CODE,
  ]


@pytest.mark.parametrize(
  ('extras', 'nodes', 'flags'),
  [
    ('cuda', 1, ''),
    ('cuda', 2, ' --coordinator=1.1.1.1:8476 --processes=2 --process=1'),
    ('tpu', 2, ''),
  ],
)
def test_skypilot_runs_one_process_per_machine(tmp_path, extras, nodes, flags):
  task = yaml.safe_load((LAUNCH / 'sky.yaml').read_text())
  activate = tmp_path / '.venv/bin/activate'
  activate.parent.mkdir(parents=True)
  activate.write_text('python() { echo "$@"; }; exec() { "$@"; }\n')
  result = subprocess.run(
    ['bash', '-euc', task['run']],
    cwd=tmp_path,
    env={
      'PATH': os.environ['PATH'],
      'EXTRAS': extras,
      'FLAGS': '--config=configs/sm.py --config.train.steps=9',
      'WORKDIR': 'gs://bucket/run',
      'SKYPILOT_NUM_NODES': str(nodes),
      'SKYPILOT_NODE_IPS': '1.1.1.1\n2.2.2.2',
      'SKYPILOT_NODE_RANK': '1',
    },
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout == (
    '-m xfactor.main --config=configs/sm.py --config.train.steps=9 '
    f'--workdir=gs://bucket/run{flags}\n'
  )
