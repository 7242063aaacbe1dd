"""FSDP sends weights and gradients, not activations."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests.training import small
from xfactor.training import aot, build

WIDE = {'model__features': 96, 'model__heads': 4}
RECIPES = {
  'stereo': lambda **mesh: small.recipe('data', **WIDE, **mesh),
  'multi-view': lambda **mesh: small.recipe(
    'data', data__contexts=3, **WIDE, **mesh
  ),
  'rust': lambda **mesh: small.baseline_recipe('rust', 'data', **WIDE, **mesh),
  'rayzer': lambda **mesh: small.baseline_recipe(
    'rayzer', 'data', **WIDE, **mesh
  ),
  'srt': lambda **mesh: small.posed_recipe(
    'data', **WIDE, model__mlp_features=192, **mesh
  ),
}


def sent_and_least(config):
  """Bytes that a device sends in a step, and the least that FSDP has to send.

  Each sharded parameter is gathered in the forward and in the backward pass.
  Its gradient is reduced: on CPUs by an all-reduce, which sends twice as much
  as a reduce-scatter does.
  """
  built = build.build(config)
  step = built.compile(built.step_kinds()[0], weights=None)
  sent = sum(x.sent for x in aot.collectives(step.as_text()).values())
  numbers = sum(math.prod(x.shape) for x in built.functional.shapes.values())
  ways = built.mesh.shape['fsdp']
  gathers = 2 * (ways - 1) / ways
  reduces = 2 * (jax.device_count() - 1) / jax.device_count()
  return sent, 4 * numbers * (gathers + reduces)


@pytest.mark.parametrize('turns', [1, 5])
def test_traffic_in_loops_is_counted(turns):
  """A program of known traffic: a sum and a gather in each turn of a scan."""
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P('x'), out_specs=P(), check_vma=False
  )
  def program(x):
    def turn(total, _):
      gathered = jax.lax.all_gather(x + total.sum(), 'x', tiled=True)
      return jax.lax.psum(x.sum() + gathered[:1024], 'x'), None

    return jax.lax.scan(turn, jnp.zeros(1024), None, length=turns)[0]

  compiled = jax.jit(program).lower(jnp.zeros(8 * 2048)).compile()
  found = aot.collectives(compiled.as_text())
  assert found['all-gather'].sent == turns * 4 * 8 * 2048 * 7 / 8
  assert found['all-reduce'].sent == turns * 4 * 1024 * 2 * 7 / 8


@pytest.mark.parametrize('name', RECIPES)
def test_a_device_sends_about_what_it_must(name):
  sent, least = sent_and_least(RECIPES[name](mesh__data=1, mesh__fsdp=8))
  # Small parameters are replicated, and without remat not gathered again.
  assert 0.6 * least < sent < 1.3 * least


def test_data_and_fsdp_axes_together():
  sent, least = sent_and_least(RECIPES['stereo'](mesh__data=2, mesh__fsdp=4))
  assert sent < 1.3 * least
