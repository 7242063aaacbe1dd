"""Shared by the binaries: flags, exit codes, joining a cluster."""

import contextlib
import errno
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from absl import app, flags

from xfactor import parsing, streams
from xfactor.errors import UserError
from xfactor.evaluation import own_recipe
from xfactor.training.resilience import shutdown

_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, if no cluster is detected.'
)
_PROCESSES = flags.DEFINE_integer(
  'processes', None, 'Number of processes, with --coordinator.'
)
_PROCESS = flags.DEFINE_integer(
  'process', None, 'Number of this process, with --coordinator.'
)
_HEARTBEAT = flags.DEFINE_integer(
  'heartbeat', 100, 'Seconds of silence until a process counts as dead.', 1
)

# Seconds to wait for other processes before printing a hint.
_PATIENCE = 20.0


def run(
  main: Callable[[list[str]], int | None],
  parse: Callable[..., list[str]] = parsing.parse,
) -> None:
  """Runs a command; exits with the code that `main` returns.

  Args:
    main: Function that takes the words of the command line that are not flags.
    parse: Function that parses flags; takes the command line and the docstring
      of the module of `main`.
  """
  streams.survive()
  # absl adds its own. Orbax's import has added one that repeats each line.
  logging.root.handlers.clear()
  shutdown.leave_when_told()
  doc = sys.modules[main.__module__].__doc__
  try:
    app.run(main, flags_parser=lambda argv: parse(argv, doc))
  except SystemExit as e:
    if e.code in (shutdown.EXIT_CODE, 128 + signal.SIGINT):
      shutdown.leave_cluster()
      # Threads of JAX may still compile: Python's own exit would crash.
      shutdown.leave(e.code)
    raise


def parse_with_own_recipe(argv: list[str], doc: str) -> list[str]:
  """Parses flags; without --config the recipe is that of --workdir's run."""
  workdir = parsing.given(argv, 'workdir')
  if workdir and parsing.given(argv, 'config') is None:
    recipe = f'--config={own_recipe.__file__}:{workdir}'
    argv = [argv[0], recipe, *argv[1:]]
  return parsing.parse(argv, doc)


@contextlib.contextmanager
def reporting_user_errors() -> Iterator[None]:
  """Turns expected errors into one line on stderr and an exit code.

  2 for a UserError, 1 for a run that diverged, 42 for a stop request after
  which nothing is lost, 130 for Ctrl-C elsewhere.
  """
  try:
    yield
  except UserError as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(2)
  except OSError as e:
    if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
      raise
    print(f'error: {e}; free some space, then run it again', file=sys.stderr)
    sys.exit(2)
  except FloatingPointError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(1)
  except shutdown.Interrupted:
    print('stopped; run the same command to resume', file=sys.stderr)
    sys.exit(shutdown.EXIT_CODE)
  except KeyboardInterrupt:
    print('stopped; run the same command to resume', file=sys.stderr)
    sys.exit(130)


def initialize_distributed() -> None:
  """Joins the other processes of the run; must come before any JAX call.

  Uses the flags if --coordinator is given, JAX's detection on TPUs or under
  Slurm with several tasks, and otherwise a single process. JAX aborts if the
  other processes do not join within five minutes.
  """
  avoid_idle_libtpu()
  given = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  if any(value is not None for value in given):
    if any(value is None for value in given):
      raise UserError(
        'give --coordinator, --processes and --process together, or none'
      )
    check_cluster(*given)
    _join(*given)
  elif _in_cluster():
    _join()
  elif _on_tpu_vm():
    # Outside Google Cloud, assume a single TPU host.
    with contextlib.suppress(ValueError, OSError):
      _join()


def check_cluster(coordinator: str, processes: int, process: int) -> None:
  """Raises UserError for flags with which JAX would wait, or abort."""
  if not 0 <= process < processes:
    raise UserError(
      f'--process={process} must be from 0 to {processes - 1}, because of '
      f'--processes={processes}'
    )
  host, _, port = coordinator.rpartition(':')
  host = host.strip('[]')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(
      f'--coordinator={coordinator} must be HOST:PORT of process 0'
    )
  try:
    socket.getaddrinfo(host, int(port))
  except OSError as e:
    raise UserError(
      f'the host of --coordinator={coordinator} cannot be found '
      f'({e.strerror}); give the name or the address of process 0'
    ) from e
  if process == 0:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
      socket.create_server(
        ('', int(port)), family=family, dualstack_ipv6=both
      ).close()
    except OSError as e:
      raise UserError(
        f'port {port} of --coordinator={coordinator} cannot be used '
        f'({e.strerror}): another process may have it; give another port'
      ) from e


def split_cpu(devices: int) -> None:
  """Lets JAX see the CPU as several devices; must come before any JAX call.

  For a small step, cores are used better by splitting the batch than by
  splitting each operation. Has no effect on other platforms; a number in
  XLA_FLAGS takes precedence.
  """
  if 'xla_force_host_platform_device_count' not in os.environ.get(
    'XLA_FLAGS', ''
  ):
    jax.config.update('jax_num_cpu_devices', devices)


def _join(*given: str | int) -> None:
  hint = threading.Timer(
    _PATIENCE,
    lambda: print(
      'waiting for the other processes of the run: has the command been '
      'started on all hosts (gcloud ... --worker=all)?',
      file=sys.stderr,
      flush=True,
    ),
  )
  hint.daemon = True
  hint.start()
  try:
    jax.distributed.initialize(
      *given, heartbeat_timeout_seconds=_HEARTBEAT.value
    )
  finally:
    hint.cancel()


def _in_cluster() -> bool:
  workers = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  return ',' in workers or int(os.environ.get('SLURM_STEP_NUM_TASKS', '1')) > 1


def _on_tpu_vm() -> bool:
  return (
    _has_libtpu()
    and 'TPU_SKIP_MDS_QUERY' not in os.environ
    and jax.config.jax_platforms != 'cpu'
  )


def avoid_idle_libtpu() -> None:
  """Selects the CPU if libtpu is installed but the machine has no TPU."""
  if (
    _has_libtpu()
    # JAX sets it at import if there are no TPUs.
    and 'TPU_SKIP_MDS_QUERY' in os.environ
    and jax.config.jax_platforms is None
    and importlib.util.find_spec('jax_plugins') is None
  ):
    jax.config.update('jax_platforms', 'cpu')


def _has_libtpu() -> bool:
  return importlib.util.find_spec('libtpu') is not None
