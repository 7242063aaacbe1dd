"""Shared by the binaries: flags, exit codes, joining a cluster."""

import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator

import jax
from absl import flags, logging

from xfactor.errors import UserError
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


def parse_flags(argv: list[str]) -> list[str]:
  """Parses absl flags; for bad flags, prints one line and exits with code 2.

  A supervisor restarts on other codes, which does not fix a wrong flag.
  """
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
      # Config files are loaded lazily: this access shows errors here.
      flags.FLAGS['config'].value.is_locked  # noqa: B018
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # Orbax logs much at INFO.
    return rest
  except (flags.Error, UserError) as e:
    message = str(e)
  except (AttributeError, KeyError) as e:
    # Locked configs raise: 'stesp'\nDid you mean "steps" instead of "stesp"?
    answer = str(e).replace('\\n', ' ').strip('\'"').replace("'", '', 1)
    message = (
      f'the recipe or an override has no such key: {answer} (all keys are in '
      'xfactor/config.py)'
    )
  except OSError as e:
    # The last line of ml_collections' message has the path and the cause.
    cause = str(e).strip().split('\n')[-1].strip()
    message = f'cannot load the recipe: {cause}'
  except SyntaxError as e:
    message = f'{e.filename}, line {e.lineno}: {e.msg}'
  except (ImportError, TypeError, ValueError) as e:
    message = ' '.join(str(e).split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


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
    _join(*given)
  elif _in_cluster():
    _join()
  elif _on_tpu_vm():
    # Outside Google Cloud, assume a single TPU host.
    with contextlib.suppress(ValueError, OSError):
      _join()


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
