"""The train state: only step, parameters, optimizer state and average.

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
    ema: Average of the parameters over updates, by path; empty if there is
      none.
  """

  step: Any
  params: dict[str, Any]
  opt_state: Any
  ema: Any = dataclasses.field(default_factory=dict)

  @property
  def eval_params(self) -> Any:
    """Parameters to evaluate: the average, if there is one."""
    return self.ema or self.params


def shardings(
  mesh: Mesh,
  functional: Functional,
  tx: optax.GradientTransformation,
  *,
  average: bool = False,
) -> TrainState:
  """Returns the sharding of each leaf of the state."""
  params = sharding.param_shardings(mesh, functional.shapes)
  return TrainState(
    step=NamedSharding(mesh, P()),
    params=params,
    opt_state=sharding.optimizer_shardings(mesh, tx, functional.shapes, params),
    ema=params if average else {},
  )


def init(
  functional: Functional,
  tx: optax.GradientTransformation,
  key: jax.Array,
  *,
  average: bool = False,
) -> TrainState:
  """Creates a new state; jit it with `shardings` as out_shardings."""
  params = functional.init(key)
  state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
  return restart_average(state) if average else state


def restart_average(state: TrainState) -> TrainState:
  """Returns the state with an average of the current parameters only."""
  # Copies, because the step is given the buffers of both.
  return dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.params))


def abstract(
  functional: Functional,
  tx: optax.GradientTransformation,
  places: TrainState,
) -> TrainState:
  """Returns shapes, dtypes and shardings of the state, for restoring it."""
  shapes = jax.eval_shape(
    lambda: init(functional, tx, jax.random.key(0), average=bool(places.ema))
  )
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    places,
  )
