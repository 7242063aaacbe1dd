"""What the binaries share: flags, exit codes, joining a cluster."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
from absl import flags, logging

from xfactor.errors import UserError

_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where no cluster is detected.'
)
_PROCESSES = flags.DEFINE_integer(
  'processes', None, 'Number of processes, with --coordinator.'
)
_PROCESS = flags.DEFINE_integer(
  'process', None, 'Number of this process, with --coordinator.'
)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses absl flags; bad ones are one line and exit code 2.

  A supervisor restarts on other codes, which would not cure a wrong flag.
  """
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
      # A file that cannot be loaded is only noticed when it is looked into.
      flags.FLAGS['config'].value.is_locked  # noqa: B018
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # Orbax tells all it does.
    return rest
  except (flags.Error, UserError) as e:
    message = str(e)
  except (AttributeError, KeyError) as e:
    # Locked configs answer: 'stesp'\nDid you mean "steps" instead of "stesp"?
    answer = str(e).replace('\\n', ' ').strip('\'"').replace("'", '', 1)
    message = (
      f'the recipe or an override has no such key: {answer} (all keys are in '
      'xfactor/config.py)'
    )
  except OSError as e:
    # ml_collections puts the path and the cause into its last line.
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
  """Turns a UserError into one line and exit code 2, Ctrl-C into 130."""
  try:
    yield
  except UserError as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print('stopped; the same command goes on from here', file=sys.stderr)
    sys.exit(130)


def initialize_distributed() -> None:
  """Joins the other processes of the run; must come before any JAX call.

  With --coordinator, as the flags say; on a TPU pod or under Slurm with
  several tasks, as JAX detects; else this process is alone.
  """
  given = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  if any(value is not None for value in given):
    if any(value is None for value in given):
      raise UserError(
        'give --coordinator, --processes and --process together, or none'
      )
    jax.distributed.initialize(*given)
  elif _in_cluster():
    jax.distributed.initialize()


def _in_cluster() -> bool:
  workers = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  return ',' in workers or int(os.environ.get('SLURM_STEP_NUM_TASKS', '1')) > 1
