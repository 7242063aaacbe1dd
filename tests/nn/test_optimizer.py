"""Schedule, decay mask and updates against the official code's numbers."""

import functools
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import GOLDEN
from tests.golden_tolerance import ROUNDING, assert_close
from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.exchange import xfactor_names
from xfactor.nn import optimizer
from xfactor.training import step


@pytest.mark.parametrize(('key', 'steps'), [('2v', 100_000), ('mv', 200_000)])
def test_learning_rates_are_golden(golden, key, steps):
  arrays = golden('xf_optim')
  schedule = optimizer.make_schedule(optimizer.Config(), steps)
  rates = [schedule(count) for count in arrays[f'lr/{key}_steps']]
  np.testing.assert_allclose(rates, arrays[f'lr/{key}'], rtol=2 * ROUNDING)


def test_learning_rates_of_srt_are_golden(golden):
  """LrScheduler(1e-4, 2500, 4e6, 0.16) of stelzner/srt; the first is zero."""
  arrays = golden('srt_render_motions')
  config = configs.base('srt')
  schedule = optimizer.make_schedule(
    optimizer.Config(**config.optimizer), config.train.steps
  )
  rates = [schedule(count) for count in arrays['lr/it']]
  # Each relative to itself. Warm-up subtracts what is left from 1: float32 and
  # float64 differ by 8.1e-5 of the first rate, see golden_tolerance.
  np.testing.assert_allclose(rates, arrays['lr/value'], rtol=2 * 8.1e-5)
  assert rates[0] == 0


def test_no_clipping_without_a_norm():
  config = optimizer.Config(clip_norm=0.0, warmup_steps=0, weight_decay=0.0)
  tx = optimizer.make_optimizer(config, 10, {})
  params = {'a/kernel': jnp.ones(3)}
  state = tx.init(params)
  grads = {'a/kernel': jnp.array([300.0, -400.0, 0.0])}
  _, state = tx.update(grads, state, params)
  mu = optax.tree_utils.tree_get(state, 'mu')['a/kernel']
  np.testing.assert_allclose(mu, 0.1 * grads['a/kernel'], rtol=1e-6)


def test_unknown_decay():
  with pytest.raises(UserError, match='"cosine", "exponential" or "wsd"'):
    optimizer.make_schedule(optimizer.Config(decay='linear'), 10_000)


def test_wsd_warms_up_is_stable_and_decays():
  config = optimizer.Config(
    decay='wsd',
    learning_rate=8.0,
    initial_learning_rate=0.0,
    final_learning_rate=0.8,
    warmup_steps=4,
    decay_steps=4,
  )
  schedule = optimizer.make_schedule(config, 20)
  rates = [float(schedule(count)) for count in range(24)]
  np.testing.assert_allclose(rates[:5], [0, 2, 4, 6, 8], rtol=1e-6)
  np.testing.assert_allclose(rates[4:17], 8.0, rtol=1e-6)
  fall = 8 - 7.2 * np.sqrt([0.25, 0.5, 0.75])
  np.testing.assert_allclose(rates[17:20], fall, rtol=1e-6)
  np.testing.assert_allclose(rates[20:], 0.8, rtol=1e-6)
  # The end of a run does not matter before its decay.
  longer = optimizer.make_schedule(config, 40)
  assert [float(longer(count)) for count in range(17)] == rates[:17]
  assert optimizer.decay_start(config, 20) == 16
  assert optimizer.decay_start(optimizer.Config(), 20) is None


def test_wsd_without_decay_has_no_end():
  config = optimizer.Config(decay='wsd', decay_steps=0, warmup_steps=2)
  schedule = optimizer.make_schedule(config, 5)
  assert float(schedule(5)) == float(schedule(2)) == np.float32(4e-4)


def test_wsd_that_does_not_fit():
  config = optimizer.Config(decay='wsd', warmup_steps=4, decay_steps=7)
  with pytest.raises(UserError, match=r'decay_steps=7 .*steps=10 together'):
    optimizer.make_schedule(config, 10)


def test_the_decay_mask_is_golden():
  with open(os.path.join(GOLDEN, 'xf_wd_mask.json')) as f:
    theirs = json.load(f)
  arrays = {name: np.full(1, decays) for name, decays in theirs.items()}
  want = {k: v.all() for k, v in xfactor_names.to_ours(arrays).items()}
  assert optimizer.decay_mask(dict(want)) == want


@pytest.mark.parametrize('accumulate', [1, 3])
def test_trajectories_are_golden(golden, accumulate):
  """Clip, AdamW, schedule, mask and accumulation together.

  The official gradients of micro-step i come from RandomState(1000 + i); where
  it accumulates three, we are given three at once.
  """
  arrays = golden('xf_optim')
  start = {
    name.removeprefix('opt/start/'): array
    for name, array in arrays.items()
    if name.startswith('opt/start/')
  }
  config = optimizer.Config(
    learning_rate=4e-3,
    final_learning_rate=1e-3,
    warmup_steps=2,
    weight_decay=0.5,
  )
  # Our rules read our names; layers are not stacked here.
  renamed = {name: _ours(name) for name in start}
  tx = optimizer.make_optimizer(config, 8, {})
  params = {renamed[name]: jnp.asarray(x) for name, x in start.items()}
  state = tx.init(params)

  def gradient(micro):
    scale = np.float32(0.5 if micro % 2 else 0.005)

    def draw(shape):
      rng = np.random.RandomState(1000 + micro)
      return jnp.asarray(rng.standard_normal(shape).astype(np.float32) * scale)

    return {renamed[name]: draw(x.shape) for name, x in start.items()}

  @jax.jit
  def update(params, state, gradients):
    def take(i):
      return jax.tree.map(lambda g: g[i[0]], gradients)

    mean = step.accumulate_gradients(
      take, (jnp.arange(accumulate),), accumulate
    )
    updates, state = tx.update(mean, state, params)
    return optax.apply_updates(params, updates), state

  checked = 0
  for first in range(0, 6, accumulate):
    gradients = [gradient(first + i) for i in range(accumulate)]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    params, state = update(params, state, stacked)
    prefix = f'opt/acc{accumulate}_after{first + accumulate}/'
    for key in arrays:
      if key.startswith(prefix):
        checked += 1
        assert_close(
          params[renamed[key.removeprefix(prefix)]], arrays[key], err_msg=key
        )
  assert checked == 9 * (3 if accumulate == 1 else 2)


@pytest.mark.parametrize('size', [0.1, 30.0, np.inf, np.nan])
def test_clipping_is_that_of_optax(size):
  rng = np.random.default_rng(0)
  grads = {k: rng.standard_normal(7, np.float32) for k in 'abc'}
  grads['b'][2] = size
  wanted, _ = optax.clip_by_global_norm(5.0).update(grads, optax.EmptyState())
  got, _ = optimizer.clip_by_global_norm(5.0).update(grads, optax.EmptyState())
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=3e-7), got, wanted
  )


def _ours(name):
  as_first = re.sub(r'layers_\d+', 'layers_0', name)
  (ours,) = xfactor_names.to_ours({as_first: np.zeros(1)})
  return f'{name}:{ours}'


def test_rules_cover_what_they_know_and_nothing_else():
  with pytest.raises(ValueError, match='new/thing'):
    optimizer.decay_mask({'new/thing': None})


def test_warmup_longer_than_the_run_is_refused():
  with pytest.raises(UserError, match='config.optimizer.warmup_steps'):
    optimizer.make_schedule(optimizer.Config(warmup_steps=10), 10)


MATRIX = 'trunk/stack/layers/out/kernel'


def muon(shapes, **changes):
  config = optimizer.Config(
    name='muon', learning_rate=0.1, warmup_steps=0, clip_norm=0.0, **changes
  )
  return optimizer.make_optimizer(config, 10, shapes)


def test_muon_turns_matrices_and_leaves_the_rest_to_adam():
  """All directions of a stacked matrix move alike, layer by layer."""
  rng = np.random.default_rng(0)
  params = {
    MATRIX: jnp.zeros((2, 8, 16)),
    'embed/kernel': jnp.zeros((8, 16)),
    'trunk/stack/layers/out/bias': jnp.zeros((2, 16)),
  }
  grads = {
    key: jnp.asarray(rng.normal(size=x.shape) * 1e-2, jnp.float32)
    for key, x in params.items()
  }
  # One direction is fifty times as strong as the weakest.
  grads[MATRIX] += 0.05 * jnp.ones((2, 8, 16))
  tx = muon(params, weight_decay=0.0)
  updates, _ = tx.update(grads, tx.init(params), params)
  for layer in updates[MATRIX]:
    singular = np.linalg.svd(layer, compute_uv=False)
    assert singular.max() < 2.5 * singular.min()
    # 0.2 sqrt(16) times the rate, however large the gradient.
    assert singular.mean() == pytest.approx(0.1 * 0.2 * 4, rel=0.3)
  assert (jnp.vdot(updates[MATRIX], grads[MATRIX])) < 0
  for key in ('embed/kernel', 'trunk/stack/layers/out/bias'):
    # Adam's first step with Nesterov momentum: of one size whatever the
    # gradient's.
    size = 0.1 * (0.9 / (1 - 0.9**2) * 0.1 + 0.1 / 0.1 * 1.0)
    np.testing.assert_allclose(
      updates[key], -size * np.sign(grads[key]), rtol=1e-2
    )


def test_muon_decays_by_the_same_mask():
  params = {
    MATRIX: jnp.ones((2, 8, 16)),
    'embed/kernel': jnp.ones((8, 16)),
    'trunk/stack/layers/out/bias': jnp.ones((2, 16)),
    'registers': jnp.ones((2, 16)),
  }
  params['pose_encoder/registers'] = params.pop('registers')
  still = {key: jnp.zeros(x.shape) for key, x in params.items()}
  tx = muon(params, weight_decay=0.5)
  updates, _ = tx.update(still, tx.init(params), params)
  for key, decays in optimizer.decay_mask(params).items():
    np.testing.assert_allclose(updates[key], -0.05 * decays, atol=1e-6)


def test_muon_without_a_matrix_and_unknown_optimizers_are_refused():
  with pytest.raises(UserError, match='finds no matrix'):
    muon({'embed/kernel': jnp.zeros((8, 16))})
  with pytest.raises(UserError, match='choose "adamw" or "muon"'):
    optimizer.make_optimizer(optimizer.Config(name='sgd'), 10_000, {})
