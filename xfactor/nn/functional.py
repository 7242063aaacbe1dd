"""NNX modules as pure functions of a flat dict of arrays.

Outside network modules, parameters are a flat dict `{'path/to/kernel': array}`:
sharding rules, decay masks, checkpoints and importers use the same names.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import jax
from flax import nnx

Params = dict[str, jax.Array]
M = TypeVar('M', bound=nnx.Module)


class Functional(Generic[M]):
  """A module's structure, without its arrays.

  Attributes:
    shapes: Path to shape and dtype of each parameter.
  """

  def __init__(self, make: Callable[[nnx.Rngs], M]):
    """Traces `make(rngs)`, which builds the module; allocates nothing."""
    self._make = make
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    self._graphdef, state = nnx.split(abstract, nnx.Param)
    self._variables = dict(nnx.to_flat_state(state))
    self.shapes = {
      _name(path): variable.get_value()
      for path, variable in self._variables.items()
    }

  def init(self, key: jax.Array) -> Params:
    """Initialises parameters; jit with out_shardings to create them sharded."""
    state = nnx.state(self._make(nnx.Rngs(key)), nnx.Param)
    return {
      _name(path): variable.get_value()
      for path, variable in nnx.to_flat_state(state)
    }

  def bind(self, params: Params) -> M:
    """Returns the module with these parameters; costs nothing inside jit."""
    return nnx.merge(
      self._graphdef,
      nnx.from_flat_state(
        [
          (path, variable.replace(params[_name(path)]))
          for path, variable in self._variables.items()
        ]
      ),
    )


def _name(path: tuple) -> str:
  return '/'.join(map(str, path))
