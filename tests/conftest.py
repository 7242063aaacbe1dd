"""Strict settings, eight virtual devices and quick compiling for all tests."""

import gc
import logging
import os
import tempfile
from importlib import metadata

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
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Programs that several tests compile are compiled once in a run of the tests.
CACHE = os.path.join(tempfile.gettempdir(), f'xfactor-tests-{os.getppid()}')
jax.config.update('jax_compilation_cache_dir', CACHE)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
jax.config.update('jax_numpy_rank_promotion', 'raise')

GOLDEN = os.path.join(os.path.dirname(__file__), 'golden')


@pytest.fixture
def no_coroutines_left(monkeypatch):
  """Clears coroutines away, before their log records get hold of them."""
  monkeypatch.setattr(logging.getLogger('asyncio'), 'disabled', True)
  yield
  gc.collect()


@pytest.fixture(scope='session')
def golden():
  """Loads one of the golden files by name."""

  def load(name):
    with np.load(os.path.join(GOLDEN, f'{name}.npz')) as arrays:
      return dict(arrays)

  return load
