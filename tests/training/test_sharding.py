"""Meshes: what they refuse, where arrays lie, and that they change nothing."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.training import small
from xfactor.errors import UserError
from xfactor.training import build, sharding


def test_every_parameter_has_a_rule_and_moments_follow():
  built = build.build(small.recipe('data', mesh__fsdp=4, mesh__data=2))
  state = built.abstract_state()
  adam = state.opt_state[1][0]
  for name, leaf in state.params.items():
    assert leaf.sharding == adam.mu[name].sharding == adam.nu[name].sharding
  qkv = 'renderer/trunk/stack/layers/qkv/kernel'
  assert state.params[qkv].sharding.spec == P(None, 'fsdp', 'tensor')
  assert adam.count.sharding.spec == P()


def test_a_new_parameter_needs_a_rule():
  mesh = sharding.make_mesh(sharding.Config())
  with pytest.raises(ValueError, match='strange/weight'):
    sharding.param_shardings(
      mesh, {'strange/weight': jax.ShapeDtypeStruct((2,), 'float32')}
    )


def test_what_an_axis_does_not_divide_stays_whole():
  mesh = sharding.make_mesh(sharding.Config(data=1, fsdp=8))
  (place,) = sharding.param_shardings(
    mesh, {'a/embed/kernel': jax.ShapeDtypeStruct((6, 16), 'float32')}
  ).values()
  assert place.spec == P(None, 'tensor')


@pytest.mark.parametrize(
  'axes', [{'data': 3}, {'data': -1, 'fsdp': -1}, {'data': -1, 'fsdp': 16}]
)
def test_meshes_that_do_not_fit_are_refused(axes):
  with pytest.raises(UserError, match='8 devices'):
    sharding.make_mesh(sharding.Config(**axes))


def test_batches_that_the_mesh_does_not_divide_are_refused():
  with pytest.raises(UserError, match='config.data.batch=12 must be a mult'):
    build.build(small.recipe('data', data__batch=12))
  with pytest.raises(UserError, match='config.train.accumulate'):
    build.build(small.recipe('data', train__accumulate=2))
  with pytest.raises(UserError, match='config.train.accumulate=3'):
    build.build(small.recipe('data', train__accumulate=3))


def three_steps(devices, **changes):
  config = small.recipe('data', **changes)
  built = build.build(config, jax.devices()[:devices])
  rng = np.random.default_rng(0)
  state, losses = built.init(), []
  program = built.compile(whole=False, weights=None)
  for _ in range(3):
    state, metrics = program(state, small.batch(built, rng), None)
    losses.append(float(metrics['loss']))
  return jax.device_get(state.params), losses


@pytest.fixture(scope='module')
def one_device():
  return three_steps(1)


@pytest.mark.parametrize(
  'axes',
  [
    {'mesh__data': 8},
    {'mesh__data': 2, 'mesh__fsdp': 4},
    {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2},
  ],
  ids=lambda axes: '-'.join(map(str, axes.values())),
)
def test_the_mesh_changes_nothing(one_device, axes):
  """Eight devices: same losses and parameters after three steps as one."""
  params, losses = three_steps(math.prod(axes.values()), **axes)
  np.testing.assert_allclose(losses, one_device[1], rtol=1e-5)
  for name, array in params.items():
    np.testing.assert_allclose(
      array, one_device[0][name], atol=1e-5, err_msg=name
    )


def test_accumulation_changes_nothing():
  """Also not which augmentation an example of several views gets."""
  whole, losses = three_steps(1, data__contexts=2)
  params, in_parts = three_steps(1, data__contexts=2, train__accumulate=4)
  np.testing.assert_allclose(in_parts, losses, rtol=1e-5)
  for name, array in params.items():
    np.testing.assert_allclose(array, whole[name], atol=1e-5, err_msg=name)
