"""Jumps of the gradient, and the end of a run that diverges."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from xfactor.training import data
from xfactor.training.resilience import divergence


def limits(spikes, norms, first=0):
  """The limits of steps whose norms arrive one step late."""
  found = []
  for step, _ in enumerate(norms, first):
    found.append(spikes.limit(step))
    if step > first:
      spikes.add(norms[step - 1 - first])
  return found


def test_the_limit_is_a_multiple_of_the_running_median():
  norms = np.random.default_rng(0).uniform(1, 2, 300)
  found = limits(divergence.Spikes(5.0), norms)
  assert all(map(math.isinf, found[:33]))
  # Step n knows of those up to n - 2.
  assert found[33] == 5 * np.median(norms[:32])
  assert found[299] == 5 * np.median(norms[298 - 128 : 298])


def test_what_is_not_finite_is_no_part_of_the_median():
  norms = [1.0, math.nan, math.inf] * 40
  assert limits(divergence.Spikes(3.0), norms)[-1] == 3.0


def test_a_lasting_change_is_followed():
  norms = [1.0] * 200 + [100.0] * 200
  found = limits(divergence.Spikes(4.0), norms)
  assert found[210] == 4.0
  assert found[-1] == 400.0


def test_no_factor_allows_everything():
  assert all(map(math.isinf, limits(divergence.Spikes(0.0), [1.0] * 100)))


@pytest.mark.parametrize('stop', [20, 150])
def test_going_on_has_the_limits_of_a_straight_run(stop):
  """What is saved knows one step more than the next step is to know."""
  norms = np.random.default_rng(1).exponential(size=200).tolist()
  norms[stop - 3] = math.nan
  straight = limits(divergence.Spikes(2.0), norms)
  spikes = divergence.Spikes(2.0)
  limits(spikes, norms[:stop])
  spikes.add(norms[stop - 1])
  saved = json.loads(json.dumps(spikes.norms()))
  resumed = limits(
    divergence.Spikes(2.0, stop, saved), norms[stop:], first=stop
  )
  assert resumed == straight[stop:]


def test_the_file_says_what_was_wrong(tmp_path):
  config = small.recipe(small.make_data(tmp_path / 'data'))
  stream = data.open_pipeline(config)
  diagnosis = divergence.Diagnosis(
    tmp_path, 2, stream.config, ['encoder', 'head']
  )
  examples = {'part': np.array([0, 0]), 'clip': np.array([3, 5])}
  good = {'skipped': 0.0, 'loss': 1.0, 'grad_norm': 1.0}
  bad = {'skipped': 1.0, 'loss': math.nan, 'grad_norm': math.inf}
  norms = jnp.array([1.5, jnp.inf])
  for step, values in enumerate([bad, good, bad]):
    diagnosis.take(step, values, norms, examples)
  with pytest.raises(FloatingPointError, match=r'2 steps.*diagnosis-3.json'):
    diagnosis.take(3, bad, norms, examples)
  found = json.loads((tmp_path / 'diagnosis-3.json').read_text())
  assert [skipped['step'] for skipped in found['skipped']] == [2, 3]
  last = found['skipped'][-1]
  assert (last['loss'], last['grad_norm']) == ('nan', 'inf')
  assert last['module_norms'] == {'encoder': 1.5, 'head': 'inf'}
  # Every fourth clip is held out: 001 002 003 005 006 007 ...
  assert last['examples'] == [
    {'data': 'squares/train', 'clip': '005'},
    {'data': 'squares/train', 'clip': '007'},
  ]
