"""The train state: step, parameters and optimizer moments, nothing else.

Random keys and the place in the data are functions of the step.
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
  """What a checkpoint holds, or something about each part of it.

  Attributes:
    step: int32 [], optimizer updates done.
    params: Path to float32 array.
    opt_state: Of optax.
  """

  step: Any
  params: dict[str, Any]
  opt_state: Any


def shardings(
  mesh: Mesh, functional: Functional, tx: optax.GradientTransformation
) -> TrainState:
  """Where each leaf of the state lives, as a TrainState of shardings."""
  params = sharding.param_shardings(mesh, functional.shapes)
  return TrainState(
    step=NamedSharding(mesh, P()),
    params=params,
    opt_state=sharding.optimizer_shardings(mesh, tx, functional.shapes, params),
  )


def init(
  functional: Functional, tx: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """A new state; to be jitted with `shardings` as its out_shardings."""
  params = functional.init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract(
  functional: Functional,
  tx: optax.GradientTransformation,
  places: TrainState,
) -> TrainState:
  """Shapes, dtypes and shardings of the state: what restoring needs."""
  shapes = jax.eval_shape(lambda: init(functional, tx, jax.random.key(0)))
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    places,
  )
