"""The interface of a method."""

import abc
import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from xfactor.methods import scores
from xfactor.nn.functional import Params

Batch = dict[str, jax.Array]


class StepKind(enum.Enum):
  """A kind of train step; each has a compiled program.

  SPLIT is the usual step, in which XFactor sees two halves of each view. WHOLE
  is XFactor's occasional step on whole views.
  """

  SPLIT = 'split'
  WHOLE = 'whole'


class Method(abc.ABC):
  """A kind of model; stateless.

  Attributes:
    name: As `config.method` gives it.
    model: Dataclass of the networks' sizes; `config.model` has its fields. Like
      all of them it has `dtype`, `attention` and `remat`.
    objective: Dataclass of the loss; `config.objective` has its fields, but for
      those that `make_objective` takes from elsewhere.
    arrays: What of the pipeline's batches the step takes, by name.
    ordered: Whether the views of an example follow each other in time.
    posed: Whether cameras must be known.
    relative: Whether latent poses are relative to a view whose own is zero.
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
    """Defaults of the recipe's sections where they are the method's own."""

  def limits(self) -> dict[str, dict[str, float]]:
    """Returns the smallest values of the method's own settings, by section."""
    return {}

  @abc.abstractmethod
  def check(self, config: ConfigDict) -> None:
    """Raises UserError where parts of a recipe contradict each other."""

  @abc.abstractmethod
  def make_objective(self, config: ConfigDict) -> Any:
    """The objective of a recipe."""

  @abc.abstractmethod
  def network(self, model: Any, rngs: nnx.Rngs, platform: str) -> nnx.Module:
    """New networks for 'cpu', 'gpu' or 'tpu'."""

  @abc.abstractmethod
  def views(self, data: ConfigDict) -> int:
    """Views of an example."""

  def frames(self, data: ConfigDict) -> int:
    """Frames that are read for an example."""
    return self.views(data)

  @abc.abstractmethod
  def chooser(self, data: ConfigDict, part: ConfigDict) -> Callable[..., Any]:
    """Which frames of a clip make an example; see `data.views`."""

  @abc.abstractmethod
  def sample(self, key: PRNGKeyArray, batch: Batch, objective: Any) -> Any:
    """All that a step draws for the global batch; leading axis: examples."""

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
    """The loss of some examples and the metrics, `loss` among them.

    Args:
      network: With its parameters.
      batch: The arrays, of these examples.
      draws: Random numbers of `sample`, for these examples.
      objective: Of `make_objective`.
      kind: Kind of the step.
      weights: Of LPIPS, where the objective has it.
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
    """Whether the loss takes the weights of LPIPS."""
    del objective
    return False

  @abc.abstractmethod
  def evaluator(
    self, build: Any, lpips: Mapping[str, Params], settings: ConfigDict
  ) -> Callable[..., scores.Result]:
    """Returns what scores parameters on held-out batches.

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
    """What an update works on, for people."""

  @abc.abstractmethod
  def flops(self, build: Any, kind: StepKind = StepKind.SPLIT) -> int:
    """Model FLOPs of one update."""

  @abc.abstractmethod
  def executed_flops(self, build: Any, kind: StepKind) -> float:
    """FLOPs of one update with all that is computed twice or beside."""
