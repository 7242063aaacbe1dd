"""Bytes that are sent by programs of known traffic, and what must be sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.training import small
from xfactor.training import build
from xfactor.training.aot import bounds, hlo, report, topologies, traffic

LENGTH = 2048
BYTES = 4 * LENGTH


def devices_of(platform, monkeypatch):
  """Eight devices, and the name of their topology."""
  if platform == 'cuda' and not topologies.has_cuda():
    pytest.skip('the extra [cuda] is not installed')
  for key, value in topologies.ENVIRONMENT.items():
    monkeypatch.setenv(key, value)  # Takes back what `describe` sets.
  name = {'cpu': 'cpu:8', 'cuda': 'h200:8', 'tpu': 'v5e:2x4'}[platform]
  return topologies.describe(name).devices


def transfers_of(function, devices, shape, spec, hosts=(0,) * 8):
  """Transfers of a function of one array, run on the shards of a mesh."""
  mesh = jax.make_mesh(
    (2, 4), ('a', 'b'), axis_types=(AxisType.Auto,) * 2, devices=devices
  )
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False
  )
  x = jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, spec)
  )
  program = jax.jit(mapped).lower(x).compile()
  return traffic.transfers(hlo.parse(program.as_text()), mesh.shape, hosts)


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
def test_traffic_in_loops_is_counted(platform, monkeypatch):
  """A sum over one axis and a gather over the other in each turn of a scan."""
  turns = 5

  def program(x):
    def turn(total, _):
      gathered = jax.lax.all_gather(x * total.sum(), 'b', tiled=True)
      return jax.lax.psum(total + gathered, 'a'), None

    return jax.lax.scan(turn, jnp.ones(4 * LENGTH), None, length=turns)[0]

  found = transfers_of(
    program, devices_of(platform, monkeypatch), (4 * LENGTH,), P('b')
  )
  sent = traffic.total(found, lambda x: f'{x.kind} {x.axes}')
  assert sent == {
    'all-gather b': turns * 4 * BYTES * 3 / 4,
    'all-reduce a': turns * 4 * BYTES * 2 / 2,
  }


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
def test_a_scattered_sum_sends_half_of_a_whole_one(platform, monkeypatch):
  def program(x):
    x = jax.lax.psum_scatter(2 * x, 'b', tiled=True)
    return x * x

  # TPUs reduce small arrays whole.
  found = transfers_of(
    program, devices_of(platform, monkeypatch), (LENGTH, 1024), P()
  )
  sent = traffic.total(found, lambda x: x.axes)
  assert sent == {'b': 1024 * BYTES * 3 / 4}


def test_what_leaves_a_host_is_told():
  """Of a sum over both axes, with each half of the first on a host."""

  def program(x):
    return jax.lax.psum(x, ('a', 'b'))

  hosts = (0,) * 4 + (1,) * 4
  (found,) = transfers_of(program, jax.devices(), (LENGTH,), P(), hosts)
  assert found.axes == 'a x b'
  assert found.sent == 2 * BYTES * 7 / 8
  # Each host sends its half of the sums once in each direction.
  assert found.network == 2 * BYTES / 8


WIDE = {'model__features': 64, 'model__heads': 4}


def least(**changes):
  config = small.recipe('data', **WIDE, **changes)
  built = build.build(config)
  traced = built.trace(built.step_kinds()[0], weights=None)
  counted = report.step_products(built, traced)
  sizes = [np.prod(x.shape) for x in built.functional.shapes.values()]
  return bounds.least_bytes(built, counted), 4 * sum(sizes), counted


def test_data_parallel_steps_must_add_their_gradients():
  found, size, _ = least(mesh__data=8)
  assert found == {
    'gather': 0,
    'reduce': pytest.approx(2 * size * 7 / 8),
    'tensor': 0,
  }


@pytest.mark.slow
def test_fsdp_must_gather_twice():
  found, size, _ = least(mesh__data=1, mesh__fsdp=8)
  # But for what is not split.
  assert 0.8 < found['gather'] / (2 * size * 7 / 8) <= 1


@pytest.mark.slow
def test_the_tensor_axis_adds_products():
  """Of the last layers of attention and MLPs forward, of the first backward."""
  found, _, counted = least(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  assert found['tensor'] == pytest.approx(2 * counted.sums / 4 / 2)
  halves = least(mesh__data=8)[0]
  assert found['tensor'] > 0 == halves['tensor']
