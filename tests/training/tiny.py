"""A train state of a few leaves: what checkpoints are tested with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from xfactor.nn import sharding
from xfactor.training.state import TrainState

# Orbax leaves coroutines behind where one of several reads fails.
MARKS = [
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
  pytest.mark.usefixtures('no_coroutines_left'),
]
META = {'config': {'rate': 4e-4, 'size': 16}, 'data': {'parts': []}}


def state(step, devices=8):
  """A state of noise, so that its bytes cannot be squeezed."""
  mesh = sharding.make_mesh(
    sharding.Config(data=-1, fsdp=min(devices, 4)), jax.devices()[:devices]
  )
  rng = np.random.default_rng(step)

  def put(array, *spec):
    return jax.device_put(array, NamedSharding(mesh, P(*spec)))

  def params():
    # Large enough for Orbax to write them into files of their own.
    shapes = {
      'pose_encoder/kernel': ((128, 64), 'fsdp'),
      'renderer/kernel': ((64, 128), None, 'fsdp'),
      'renderer/bias': ((32,),),
    }
    return {
      name: put(rng.normal(size=shape).astype(np.float32), *spec)
      for name, (shape, *spec) in shapes.items()
    }

  moments = optax.ScaleByAdamState(
    put(jnp.int32(step)), mu=params(), nu=params()
  )
  count = put(jnp.int32(step))
  return TrainState(count, params(), (optax.EmptyState(), moments))


def abstract(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def same(a, b):
  """Whether two trees are, bit for bit."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def data_file(folder):
  """The largest file of a checkpoint: that with the arrays."""
  files = [x for x in folder.rglob('*') if x.is_file()]
  return max(files, key=lambda x: x.stat().st_size)


def flip(path, place=0.5, bit=0):
  """Flips one bit at a share of a file's length."""
  content = bytearray(path.read_bytes())
  content[int(place * (len(content) - 1))] ^= 1 << bit
  path.write_bytes(content)
