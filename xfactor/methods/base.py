"""The interface of a method."""

import abc
import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from xfactor import limits
from xfactor.methods import scores
from xfactor.nn.functional import Params

Batch = dict[str, jax.Array]


class StepKind(enum.Enum):
  """Kind of a train step; each kind is compiled separately.

  SPLIT is the usual step, in which XFactor sees two halves of each view. WHOLE
  is XFactor's occasional step on whole views.
  """

  SPLIT = 'split'
  WHOLE = 'whole'


class Method(abc.ABC):
  """Network, objective, data, evaluation and cost of a method; stateless.

  Attributes:
    name: Name of the method in `config.method`.
    model: Dataclass of the networks' sizes; `config.model` has its fields. All
      methods have `dtype`, `attention` and `remat`.
    objective: Dataclass of the loss; `config.objective` has its fields, except
      those that `make_objective` takes from other settings.
    arrays: Names of the arrays of a batch that the step takes.
    ordered: Whether the views of an example follow each other in time.
    posed: Whether cameras must be known.
    relative: Whether latent poses are relative to a view whose pose is zero.
  """

  name: ClassVar[str]
  model: ClassVar[type]
  objective: ClassVar[type]
  arrays: ClassVar[tuple[str, ...]]
  ordered: ClassVar[bool]
  posed: ClassVar[bool]
  relative: ClassVar[bool] = True

  @abc.abstractmethod
  def settings(self) -> dict[str, dict[str, Any]]:
    """Returns the method's own default settings, by section."""

  def limits(self) -> dict[str, dict[str, limits.Range]]:
    """Returns the ranges of the method's own settings, by section."""
    return {}

  @abc.abstractmethod
  def check(self, config: ConfigDict) -> None:
    """Raises UserError if settings of a recipe contradict each other."""

  @abc.abstractmethod
  def make_objective(self, config: ConfigDict) -> Any:
    """Builds the objective of a recipe."""

  @abc.abstractmethod
  def network(self, model: Any, rngs: nnx.Rngs, platform: str) -> nnx.Module:
    """Builds the networks for 'cpu', 'gpu' or 'tpu'."""

  @abc.abstractmethod
  def views(self, data: ConfigDict) -> int:
    """Returns the number of views of an example."""

  def frames(self, data: ConfigDict) -> int:
    """Returns the number of frames that are read for an example."""
    return self.views(data)

  @abc.abstractmethod
  def chooser(self, data: ConfigDict, part: ConfigDict) -> Callable[..., Any]:
    """Returns the function that chooses frames of a clip; see `data.views`."""

  @abc.abstractmethod
  def sample(self, key: PRNGKeyArray, batch: Batch, objective: Any) -> Any:
    """Samples the random numbers of a step; the leading axis is examples."""

  @abc.abstractmethod
  def loss(
    self,
    network: nnx.Module,
    batch: Batch,
    draws: Any,
    objective: Any,
    *,
    kind: StepKind,
    weights: Params | None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of some examples and metrics, including `loss`.

    Args:
      network: Network with its parameters.
      batch: Arrays of these examples.
      draws: Random numbers of `sample`, for these examples.
      objective: Objective from `make_objective`.
      kind: Kind of the step.
      weights: Weights of LPIPS, if the objective uses it.
    """

  def step_kinds(self, objective: Any) -> list[StepKind]:
    """Returns the kinds of steps that a run has."""
    del objective
    return [StepKind.SPLIT]

  def step_kind(self, seed: int, step: int, objective: Any) -> StepKind:
    """Returns the kind of a step; the same on every process."""
    del seed, step, objective
    return StepKind.SPLIT

  def needs_lpips(self, objective: Any) -> bool:
    """Returns whether the loss uses the weights of LPIPS."""
    del objective
    return False

  @abc.abstractmethod
  def evaluator(
    self, build: Any, lpips: Mapping[str, Params], settings: ConfigDict
  ) -> Callable[..., scores.Result]:
    """Returns the function that scores parameters on held-out batches.

    Args:
      build: Build of the recipe.
      lpips: Weights of LPIPS distances by name; may be empty.
      settings: Section `eval` of the recipe.

    Returns:
      A function of parameters, an iterable of batches and the keyword
      `num_images`, the number of examples whose pictures are kept.
    """

  @abc.abstractmethod
  def describe(self, build: Any) -> str:
    """Describes the batch of an update in one line."""

  @abc.abstractmethod
  def flops(self, build: Any, kind: StepKind = StepKind.SPLIT) -> int:
    """Returns the model FLOPs of one update."""
