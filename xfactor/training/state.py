"""The train state: only step, parameters and optimizer state.

Random keys and the position in the data are functions of the step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xfactor.nn import sharding
from xfactor.nn.functional import Functional


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State stored in a checkpoint, or the shardings or shapes of its leaves.

  Attributes:
    step: int32 [], completed train steps.
    params: float32 arrays by path.
    opt_state: Optimizer state of optax.
  """

  step: Any
  params: dict[str, Any]
  opt_state: Any


def shardings(
  mesh: Mesh, functional: Functional, tx: optax.GradientTransformation
) -> TrainState:
  """Returns the sharding of each leaf of the state."""
  params = sharding.param_shardings(mesh, functional.shapes)
  return TrainState(
    step=NamedSharding(mesh, P()),
    params=params,
    opt_state=sharding.optimizer_shardings(mesh, tx, functional.shapes, params),
  )


def init(
  functional: Functional, tx: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """Creates a new state; jit it with `shardings` as out_shardings."""
  params = functional.init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract(
  functional: Functional,
  tx: optax.GradientTransformation,
  places: TrainState,
) -> TrainState:
  """Returns shapes, dtypes and shardings of the state, for restoring it."""
  shapes = jax.eval_shape(lambda: init(functional, tx, jax.random.key(0)))
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    places,
  )
