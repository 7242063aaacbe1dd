"""How the binaries join a cluster, and how they end."""

import os
import socket
import subprocess
import sys
import time

import jax
import pytest
from absl import flags

from tests import commands
from xfactor import cli
from xfactor.errors import UserError
from xfactor.training.resilience import shutdown


@pytest.fixture
def joined(monkeypatch):
  """What jax.distributed.initialize was called with."""
  for name in ('TPU_WORKER_HOSTNAMES', 'SLURM_STEP_NUM_TASKS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  calls = []
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda *args, **kwargs: calls.append((args, kwargs)),
  )
  parsed = flags.FLAGS.is_parsed()
  flags.FLAGS.mark_as_parsed()
  yield calls
  if not parsed:
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
  ('flags_before', 'devices'),
  [
    ('--xla_cpu_enable_fast_math=false', 3),
    ('--xla_force_host_platform_device_count=2', 2),
  ],
)
def test_a_cpu_is_split_without_xla_flags(flags_before, devices):
  """And not at all where they say how often."""
  code = (
    'import os, jax\n'
    'from xfactor import cli\n'
    'cli.split_cpu(3)\n'
    'print(os.environ["XLA_FLAGS"], jax.device_count())'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'XLA_FLAGS': flags_before, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout.split() == [flags_before, str(devices)], done.stderr


def test_alone_nothing_is_joined(joined):
  cli.initialize_distributed()
  assert not joined


@pytest.mark.parametrize(
  ('name', 'value'),
  [('TPU_WORKER_HOSTNAMES', 'a,b'), ('SLURM_STEP_NUM_TASKS', '2')],
)
def test_clusters_are_joined(joined, monkeypatch, name, value):
  monkeypatch.setenv(name, value)
  cli.initialize_distributed()
  assert joined == [((), {'heartbeat_timeout_seconds': 100})]


def test_hosts_with_tpus_are_joined(joined, monkeypatch):
  """Google's VMs have no variable that tells of the other workers."""
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY')
  monkeypatch.setattr(cli.importlib.util, 'find_spec', lambda name: name)
  cli.initialize_distributed()
  assert not joined  # The tests run with jax_platforms=cpu.
  platforms = jax.config.jax_platforms
  jax.config.update('jax_platforms', None)
  try:
    cli.initialize_distributed()
  finally:
    jax.config.update('jax_platforms', platforms)
  assert len(joined) == 1


@pytest.mark.parametrize(
  ('cluster', 'said'),
  [
    (('localhost:{}', 2, 2), '--process=2 must be from 0 to 1'),
    (('localhost:{}', 2, -1), '--process=-1 must be from 0 to 1'),
    (('localhost', 2, 0), 'must be HOST:PORT'),
    (('localhost:http', 2, 0), 'must be HOST:PORT'),
    (('no-such-host.invalid:{}', 2, 1), 'cannot be found'),
  ],
)
def test_clusters_that_cannot_be_are_refused(cluster, said):
  coordinator, *rest = cluster
  with pytest.raises(UserError, match=said):
    cli.check_cluster(coordinator.format(commands.free_port()), *rest)


def test_a_busy_port_is_refused_by_the_process_that_opens_it():
  with socket.create_server(('127.0.0.1', 0)) as server:
    coordinator = f'127.0.0.1:{server.getsockname()[1]}'
    with pytest.raises(UserError, match='cannot be used .* another port'):
      cli.check_cluster(coordinator, 2, 0)
    cli.check_cluster(coordinator, 2, 1)
  cli.check_cluster(f'127.0.0.1:{commands.free_port()}', 2, 0)


def test_who_waits_for_others_is_told_what_to_do(joined, monkeypatch, capsys):
  monkeypatch.setattr(cli, '_PATIENCE', 0.01)
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_, **__: time.sleep(1)
  )
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '2')
  cli.initialize_distributed()
  assert '--worker=all' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('error', 'code'),
  [
    (UserError('bad'), 2),
    (FloatingPointError('diverged'), 1),
    (shutdown.Interrupted(), 42),
    (KeyboardInterrupt(), 130),
  ],
)
def test_how_it_ends_is_in_the_exit_code(error, code, capsys):
  with pytest.raises(SystemExit) as caught, cli.reporting_user_errors():
    raise error
  assert caught.value.code == code
  said = capsys.readouterr().err
  assert len(said.splitlines()) == 1
  assert str(error) in said


def test_warnings_are_said_once():
  code = """
from absl import flags, logging
import orbax.checkpoint  # Adds a handler to the root logger.
from xfactor import cli
def main(_):
  logging.warning('one warning')
cli.run(main, parse=lambda argv, _: flags.FLAGS(argv))
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.stderr.count('one warning') == 1, done.stderr
