"""Python commands in processes that find their libraries imported.

Importing JAX, Orbax and the rest takes longer than most of what commands are
tested for. A server imports them once for all tests of a process, and forks.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

# Seconds: far more than anything takes.
_PATIENCE = 600
ROOT = pathlib.Path(__file__).resolve().parents[1]

_SERVER = multiprocessing.get_context('forkserver')
# Not the binaries: each defines its flags where it is run.
_SERVER.set_forkserver_preload(
  [
    'tests.commands',
    'tests.training.small',
    'xfactor.api',
    'xfactor.cli',
    'xfactor.data.sources.synthetic',
    'xfactor.evaluation.reports.evaluation',
    'xfactor.evaluation.transfer_test',
    'xfactor.training.aot.report',
    'xfactor.training.loop',
  ]
)


def start(
  *args: object, stdout: str, stderr: str, **environment: str
) -> BaseProcess:
  """Starts `python ARGS` in the root: a file there, or -m and a module.

  What it says is added to files.
  """
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
  process = _SERVER.Process(
    target=_main, args=([str(x) for x in args], environment, stdout, stderr)
  )
  process.start()
  return process


def run(*args: object, **environment: str) -> subprocess.CompletedProcess:
  """Runs it to its end, as subprocess.run with text would; None if it hangs."""
  with (
    tempfile.NamedTemporaryFile('r') as stdout,
    tempfile.NamedTemporaryFile('r') as stderr,
  ):
    process = start(
      *args, stdout=stdout.name, stderr=stderr.name, **environment
    )
    process.join(_PATIENCE)
    process.kill()
    return subprocess.CompletedProcess(
      args, process.exitcode, stdout.read(), stderr.read()
    )


def free_port() -> int:
  """Returns a port of 127.0.0.1 that nothing listens to."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def _main(
  command: list[str], environment: dict[str, str], stdout: str, stderr: str
) -> None:
  for stream, path in (sys.stdout, stdout), (sys.stderr, stderr):
    with open(path, 'a') as file:
      os.dup2(file.fileno(), stream.fileno())
  # One that is killed leaves semaphores behind; not to the tests' tracker.
  resource_tracker._resource_tracker._fd = None
  os.chdir(ROOT)
  os.environ.clear()
  os.environ.update(environment)
  if programs := environment.get('JAX_COMPILATION_CACHE_DIR'):
    import jax  # As others import this where JAX must not be.

    # Read when JAX was imported.
    jax.config.update('jax_compilation_cache_dir', programs)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  try:
    if command[0] == '-m':
      sys.argv = command[1:]
      sys.path[0] = str(ROOT)
      runpy.run_module(command[1], run_name='__main__', alter_sys=True)
    else:
      sys.argv = command
      sys.path[0] = os.path.dirname(ROOT / command[0])
      runpy.run_path(command[0], run_name='__main__')
  finally:
    # What the interpreter does at its end, and multiprocessing does not.
    threading._shutdown()
    atexit._run_exitfuncs()
