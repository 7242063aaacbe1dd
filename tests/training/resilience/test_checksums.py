"""Fingerprints: equal on any mesh, different after any change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny
from xfactor.training.resilience import checksums


def reference(array):
  """In NumPy, a word after the other."""

  def mix(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)

  words = np.asarray(array).ravel()
  words = words.view(f'u{words.dtype.itemsize}').tolist()
  total = sum(mix(word ^ mix(i)) for i, word in enumerate(words))
  return f'{total % 2**32:08x}'


@pytest.fixture(scope='module')
def state():
  return tiny.state(3)


def test_any_mesh_gives_the_numbers_of_numpy(state):
  expected, _ = checksums.compute(state)
  for devices in (4, 1):
    assert checksums.compute(tiny.state(3, devices))[0] == expected
  on_host = jax.device_get(state)
  assert checksums.compute(on_host)[0] == expected
  leaves = checksums.named_leaves(on_host)
  assert expected == {name: reference(x) for name, x in leaves.items()}
  assert {'step', 'params/renderer/kernel', 'opt_state/1/mu/renderer/bias'} < (
    expected.keys()
  )


@pytest.mark.parametrize(
  'dtype', ['float16', 'bfloat16', 'int8', 'uint16', 'bool']
)
def test_other_types(dtype):
  x = jnp.asarray([[0, 1, 0], [1, 1, 0]], dtype)
  assert checksums.compute({'x': x})[0] == {'x': reference(x)}
  assert checksums.describe({'x': x}) == {'x': f'{dtype}[2,3]'}


def test_every_bit_and_every_place_counts(state):
  rng = np.random.default_rng(0)
  x = np.asarray(state.params['renderer/bias'])
  seen = {checksums.compute([x])[0]['0']}
  for word in range(x.size):
    for bit in range(32):
      changed = x.copy()
      changed.view(np.uint32)[word] ^= np.uint32(1 << bit)
      seen.add(checksums.compute([changed])[0]['0'])
  assert len(seen) == 1 + 32 * x.size
  seen = {checksums.compute([rng.permutation(x)])[0]['0'] for _ in range(99)}
  assert len(seen) == 99


def test_values_that_are_not_finite_are_named(state):
  assert checksums.compute(state)[1] == []
  (empty, moments) = state.opt_state
  nu = moments.nu | {
    'renderer/kernel': moments.nu['renderer/kernel'].at[3, 100].set(jnp.inf)
  }
  bad = dataclasses.replace(state, opt_state=(empty, moments._replace(nu=nu)))
  assert checksums.compute(bad)[1] == ['opt_state/1/nu/renderer/kernel']
