"""What a step does with what is not finite or jumps, and who asks for what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from xfactor.methods.base import StepKind
from xfactor.methods.xfactor import method as xfactor_method
from xfactor.training import build, control, step


@pytest.fixture(scope='module')
def stepper():
  """Does a step: (state, whether it is poisoned, ...) to (state, metrics)."""
  built = build.build(small.recipe('data'), jax.devices()[:2])
  real = xfactor_method.to_float
  with pytest.MonkeyPatch.context() as patch:
    # White corners, which noise does not have, give nothing but NaN.
    patch.setattr(
      xfactor_method,
      'to_float',
      lambda images: jnp.where(
        (images[:, :, :2, :2] == 255).all(), jnp.nan, real(images)
      ),
    )
    program = built.compile(StepKind.SPLIT, weights=None, controlled=True)

  def run(state, *, poisoned=False, limit=np.inf, requests=(0, 0)):
    rng = np.random.default_rng(int(state.step))
    batch = small.batch(built, rng)
    if poisoned:
      images = np.array(batch['images'])
      images[:, :, :2, :2] = 255
      batch['images'] = jax.device_put(images, batch['images'].sharding)
    told = control.make(built.mesh, 0, limit)
    told = control.Control(
      jax.device_put(np.int32(requests), told.requests.sharding),
      told.max_grad_norm,
    )
    state, metrics = program(state, batch, None, told)
    return state, jax.device_get(metrics)

  return built, run


def learned(state):
  return jax.device_get((state.params, state.opt_state))


def test_a_step_that_is_not_finite_only_counts(stepper):
  built, run = stepper
  state, first = run(built.init())
  before = learned(state)
  state, metrics = run(state, poisoned=True)
  assert not np.isfinite(metrics['loss'])
  assert (metrics['skipped'], metrics['spikes']) == (True, False)
  jax.tree.map(np.testing.assert_array_equal, learned(state), before)
  assert int(state.step) == 2
  state, metrics = run(state)
  assert (first['skipped'], metrics['skipped']) == (False, False)
  # It is the second update.
  assert metrics['learning_rate'] == np.float32(built.schedule(1))
  name = 'pose_encoder/embed/kernel'
  assert not np.array_equal(learned(state)[0][name], before[0][name])


def test_a_gradient_above_the_limit_is_left_out(stepper):
  built, run = stepper
  state = built.init()
  before = learned(state)
  state, metrics = run(state, limit=1e-6)
  assert (metrics['skipped'], metrics['spikes']) == (False, True)
  jax.tree.map(np.testing.assert_array_equal, learned(state), before)
  state, metrics = run(state, limit=10 * float(metrics['grad_norm']))
  assert not metrics['spikes']


def test_what_is_not_finite_is_no_spike(stepper):
  built, run = stepper
  _, metrics = run(built.init(), poisoned=True, limit=1e-6)
  assert (metrics['skipped'], metrics['spikes']) == (True, False)


def test_all_hear_the_largest_request(stepper):
  built, run = stepper
  state, metrics = run(built.init(), requests=(control.NOTHING, control.STOP))
  assert metrics['request'] == control.STOP
  _, metrics = run(state, requests=(control.SAVE, control.NOTHING))
  assert metrics['request'] == control.SAVE


def test_norms_by_module_make_up_the_norm(stepper):
  built, run = stepper
  state, metrics = run(built.init())
  names = list(step.modules(state.params))
  assert len(metrics['module_norms']) == len(names) == len(set(names))
  assert 'renderer/head' in {'/'.join(name.split('/')[:2]) for name in names}
  np.testing.assert_allclose(
    np.linalg.norm(metrics['module_norms']), metrics['grad_norm'], rtol=1e-5
  )
