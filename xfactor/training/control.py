"""What processes tell a train step beside its batch, and agree on through it.

Processes are signalled at different times and their clocks differ, but a save
or a stop must come after the same step on all. So each puts what it asks for
into its part of a step's arguments, the step's metrics have the largest, and
all read it at the same place in their loops: no barrier, no traffic of its own.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Requests; the larger includes the smaller.
NOTHING, SAVE, STOP = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
  """Arguments of a train step, or something about each of them.

  Attributes:
    requests: int32 [devices], what each process asks of all.
    max_grad_norm: float32 [], a step with a larger gradient is left out.
  """

  requests: Any
  max_grad_norm: Any


def shardings(mesh: Mesh) -> Control:
  """Where they live."""
  return Control(
    requests=NamedSharding(mesh, P(mesh.axis_names)),
    max_grad_norm=NamedSharding(mesh, P()),
  )


def abstract(mesh: Mesh) -> Control:
  """Their shapes, dtypes and shardings."""
  places = shardings(mesh)
  return Control(
    requests=jax.ShapeDtypeStruct(
      (mesh.size,), 'int32', sharding=places.requests
    ),
    max_grad_norm=jax.ShapeDtypeStruct(
      (), 'float32', sharding=places.max_grad_norm
    ),
  )


# They are the same in nearly all steps.
@functools.lru_cache(maxsize=4)
def make(mesh: Mesh, request: int, max_grad_norm: float) -> Control:
  """Puts what this process asks for, and the largest gradient, on the mesh."""
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
