"""Meshes: what they refuse, where arrays lie, and that they change nothing."""

import functools
import math
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.training import small
from xfactor.errors import UserError
from xfactor.nn import optimizer, sharding
from xfactor.training import build


def test_every_parameter_has_a_rule_and_moments_follow():
  built = build.build(small.recipe('data', mesh__fsdp=4, mesh__data=2))
  state = built.abstract_state()
  adam = state.opt_state[1][0]
  for name, leaf in state.params.items():
    assert leaf.sharding == adam.mu[name].sharding == adam.nu[name].sharding
  qkv = 'renderer/trunk/stack/layers/qkv/kernel'
  assert state.params[qkv].sharding.spec == P(None, 'fsdp', 'tensor')
  out = 'renderer/trunk/stack/layers/out/kernel'
  assert state.params[out].sharding.spec == P(None, 'tensor', 'fsdp')
  assert adam.count.sharding.spec == P()


def test_the_momentum_of_muon_lies_with_its_matrices():
  config = small.recipe(
    'data', mesh__fsdp=4, mesh__data=2, optimizer__name='muon'
  )
  state = build.build(config).abstract_state()
  found = dict.fromkeys(state.params, 0)
  for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
    name = getattr(path[-1], 'key', None)
    if name in found:
      found[name] += 1
      assert leaf.sharding == state.params[name].sharding
    else:
      assert leaf.sharding.spec == P()
  matrices = {name for name in found if '/stack/layers/' in name}
  matrices = {name for name in matrices if name.endswith('/kernel')}
  # A momentum of Muon's, two moments of AdamW's.
  assert found == {name: 2 - (name in matrices) for name in found}
  qkv = 'renderer/trunk/stack/layers/qkv/kernel'
  assert qkv in matrices
  assert state.params[qkv].sharding.spec == P(None, 'fsdp', 'tensor')


@pytest.mark.parametrize(
  ('method', 'few'), [('rust', set()), ('rayzer', {'pose', 'focal'})]
)
def test_baselines_are_spread_and_decay_as_xfactor(method, few):
  """But for the matrices that tell the few numbers of a camera."""
  config = small.baseline_recipe(method, 'data', mesh__fsdp=4, mesh__data=2)
  built = build.build(config)
  params = built.abstract_state().params
  matrices = {name for name in params if name.endswith('/kernel')}
  whole = {n for n in matrices if 'fsdp' not in params[n].sharding.spec}
  assert whole == {f'{name}/layers/1/kernel' for name in few}
  out = 'decoder/stack/layers/out/kernel'
  assert params[out].sharding.spec == P(None, 'tensor', 'fsdp')
  decays = optimizer.decay_mask(params)
  assert {name for name in params if decays[name]} == matrices


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


@pytest.mark.slow
@pytest.mark.parametrize(
  'axes',
  [
    {'data': 3},
    {'data': -1, 'tensor': -1},
    {'data': -1, 'fsdp': 16},
    {'data': -1, 'fsdp': -1, 'tensor': 16},
    {'data': 0},
  ],
)
def test_meshes_that_do_not_fit_are_refused(axes):
  with pytest.raises(UserError, match='8 devices'):
    sharding.make_mesh(sharding.Config(**axes))


def chips(slices, each):
  """Stand-ins for devices of several slices, in no order."""
  devices = []
  for i in range(slices * each):
    chip = mock.Mock(spec=jax.Device, id=i, platform='gpu', device_kind='fake')
    chip.slice_index = i // each
    devices.append(chip)
  np.random.default_rng(0).shuffle(devices)
  return devices


@pytest.mark.parametrize(
  ('axes', 'shape'),
  [
    ({'data': -1, 'fsdp': 4}, (4, 4, 1)),
    ({'data': 2, 'fsdp': -1}, (2, 8, 1)),
    ({'data': -1, 'fsdp': 2, 'tensor': 2}, (4, 2, 2)),
    ({'data': -1, 'fsdp': -1}, (2, 8, 1)),
  ],
)
def test_only_data_crosses_slices(axes, shape):
  mesh = sharding.make_mesh(sharding.Config(**axes), chips(2, 8))
  assert mesh.devices.shape == shape
  slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
  assert (slices == slices[:, :1, :1]).all()
  # Neighbours along data are in one slice while it lasts.
  assert (np.diff(slices[:, 0, 0]) >= 0).all()


def test_other_axes_are_refused_across_slices():
  with pytest.raises(UserError, match='data=1 must be a multiple of 2'):
    sharding.make_mesh(sharding.Config(data=1, fsdp=-1), chips(2, 4))


@pytest.mark.parametrize(
  ('devices', 'shape'),
  [(1, (1, 1, 1)), (2, (1, 2, 1)), (24, (3, 8, 1)), (64, (8, 8, 1))],
)
def test_left_alone_fsdp_takes_up_to_8(devices, shape):
  config = sharding.Config(data=-1, fsdp=-1)
  mesh = sharding.make_mesh(config, chips(1, devices))
  assert mesh.devices.shape == shape


def test_batches_that_the_mesh_does_not_divide_are_refused():
  with pytest.raises(UserError, match='config.data.batch=12 must be a mult'):
    build.build(small.recipe('data', data__batch=12))
  with pytest.raises(UserError, match='config.train.accumulate'):
    build.build(small.recipe('data', train__accumulate=2))
  with pytest.raises(UserError, match='config.train.accumulate=3'):
    build.build(small.recipe('data', train__accumulate=3))


def three_steps(devices, **changes):
  return small.three_steps(small.recipe('data', **changes), devices)


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


@pytest.mark.slow
@pytest.mark.parametrize(
  'recipe',
  [
    functools.partial(small.baseline_recipe, 'rust'),
    functools.partial(small.baseline_recipe, 'rayzer'),
    # Poses are contrasted with those of the global batch.
    functools.partial(
      small.recipe, objective__contrast='simclr', objective__unmasked_prob=0.0
    ),
  ],
  ids=['rust', 'rayzer', 'simclr'],
)
def test_the_mesh_changes_no_other_objective(recipe):
  want, losses = small.three_steps(recipe(data_dir='data'), 1)
  axes = {'mesh__data': 2, 'mesh__fsdp': 2}
  params, found = small.three_steps(recipe(data_dir='data', **axes), 4)
  np.testing.assert_allclose(found, losses, rtol=1e-5)
  for name, array in params.items():
    np.testing.assert_allclose(array, want[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_accumulation_changes_nothing():
  """Also not which augmentation an example of several views gets."""
  whole, losses = three_steps(1, data__contexts=2)
  params, in_parts = three_steps(1, data__contexts=2, train__accumulate=4)
  np.testing.assert_allclose(in_parts, losses, rtol=1e-5)
  for name, array in params.items():
    np.testing.assert_allclose(array, whole[name], atol=1e-5, err_msg=name)
