"""Strict settings, eight virtual devices and quick compiling for all tests."""

import functools
import gc
import inspect
import logging
import os
import pathlib
import signal
import sys
import tempfile
import types
import typing
from importlib import metadata

# Tests press Ctrl-C, which shells make background jobs ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile much and run little: the compiler is told not to try hard.
QUICK = '--xla_backend_optimization_level=0'
if metadata.version('jax').startswith('0.10.'):  # Later ones lack the flag.
  QUICK += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} {QUICK} '
  '--xla_force_host_platform_device_count=8'
)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import typeguard  # noqa: E402

# Programs that several tests compile are compiled once in a run of the tests.
CACHE = os.path.join(tempfile.gettempdir(), f'xfactor-tests-{os.getppid()}')
jax.config.update('jax_compilation_cache_dir', CACHE)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def check_types_faster():
  """Spares most of what checks cost, none of which is the check itself.

  jaxtyping binds the arguments of functions that have no annotations, too, and
  of each check; typeguard reads a function's signature at each of its calls.
  """
  jaxtyped, union = jaxtyping.jaxtyped, typeguard.check_union
  check = jaxtyping.check_type_orig

  def where_annotated(**options):
    checked = jaxtyped(**options)

    def decorate(fn):
      plain = inspect.isfunction(fn) and not fn.__annotations__
      return fn if plain else checked(fn)

    return decorate

  def check_type(argname, value, expected_type, memo=None, **names):
    if isinstance(expected_type, types.UnionType):
      union(argname, value, expected_type, memo)
    elif expected_type is not typing.Any:
      check(argname, value, expected_type, memo, **names)

  signature = functools.cache(inspect.signature)
  typeguard.inspect = types.SimpleNamespace(
    **(vars(inspect) | {'signature': signature})
  )
  typeguard.check_type = check_type
  jaxtyping.jaxtyped = where_annotated


check_types_faster()

# What the tools keep beside them is tested, too.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'tools'))
GOLDEN = os.path.join(os.path.dirname(__file__), 'golden')


@pytest.fixture
def no_coroutines_left(monkeypatch):
  """Clears coroutines away, before their log records get hold of them."""
  monkeypatch.setattr(logging.getLogger('asyncio'), 'disabled', True)
  gc.freeze()  # Or what all tests before have made is searched, too: seconds.
  yield
  gc.collect()
  gc.unfreeze()


@pytest.fixture(scope='session')
def golden():
  """Loads one of the golden files by name."""

  def load(name):
    with np.load(os.path.join(GOLDEN, f'{name}.npz')) as arrays:
      return dict(arrays)

  return load
