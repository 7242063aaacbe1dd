"""Lets all processes agree, through the train step, on when to save or stop.

Processes receive signals at different times and their clocks differ, but they
must save or stop after the same step. Each process passes its request as its
shard of an argument of the step. The metrics contain the largest request, and
all processes read it at the same point of their loops. This needs no barrier
and no communication of its own.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Requests; a larger one includes the smaller ones.
NOTHING, SAVE, STOP = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
  """Control arguments of a train step, or their shardings or shapes.

  Attributes:
    requests: int32 [devices], the request of each device's process.
    max_grad_norm: float32 [], the step skips an update with a larger gradient.
  """

  requests: Any
  max_grad_norm: Any


def shardings(mesh: Mesh) -> Control:
  """Returns the shardings of the control arguments."""
  return Control(
    requests=NamedSharding(mesh, P(mesh.axis_names)),
    max_grad_norm=NamedSharding(mesh, P()),
  )


def abstract(mesh: Mesh) -> Control:
  """Returns the shapes, dtypes and shardings of the control arguments."""
  places = shardings(mesh)
  return Control(
    requests=jax.ShapeDtypeStruct(
      (mesh.size,), 'int32', sharding=places.requests
    ),
    max_grad_norm=jax.ShapeDtypeStruct(
      (), 'float32', sharding=places.max_grad_norm
    ),
  )


# Cached: the values are the same in nearly all steps.
@functools.lru_cache(maxsize=4)
def make(mesh: Mesh, request: int, max_grad_norm: float) -> Control:
  """Puts the request of this process and the gradient limit on the mesh."""
  values = Control(
    requests=np.full(len(mesh.local_devices), request, np.int32),
    max_grad_norm=np.asarray(max_grad_norm, np.float32),
  )
  return jax.tree.map(
    lambda value, part: jax.make_array_from_process_local_data(
      part.sharding, value, part.shape
    ),
    values,
    abstract(mesh),
  )
