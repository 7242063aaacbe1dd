"""Members of the benchmark: recipes with a training budget."""

import dataclasses
import math
import re
import runpy
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from xfactor.errors import UserError
from xfactor.training import build as builds

_PREFIXES = {'': 1, 'G': 1e9, 'T': 1e12, 'P': 1e15, 'E': 1e18}
_STEPS = 1000  # Sampled to estimate how often each kind of update occurs.


@dataclasses.dataclass(frozen=True)
class Member:
  """A model that is trained and tested.

  Attributes:
    name: Name of the member.
    config: Recipe; the seed is set per run.
    parameters: Number of parameters of its networks.
    flops: FLOPs of an update, averaged over its kinds.
    draws: Whether it has a renderer; otherwise only the probe tests it.
    data: Data set that it is tested on.
  """

  name: str
  config: ConfigDict
  parameters: int
  flops: int
  draws: bool
  data: str

  @property
  def updates(self) -> int:
    """Number of updates within the budget."""
    return self.config.train.steps


def updates(budget: str, flops: int) -> int:
  """Returns the number of updates within a budget, at least one.

  Args:
    budget: Number of updates or of FLOPs, for example 30TFLOP or 1.5e3PFLOP.
    flops: FLOPs of an update.

  Raises:
    UserError: If the budget is neither.
  """
  if budget.isdigit() and int(budget):
    return int(budget)
  match = re.fullmatch(r'([\d.]+(?:e\d+)?) ?([GTPE]?)FLOPs?', budget)
  try:
    total = float(match[1]) * _PREFIXES[match[2]]
  except (TypeError, ValueError):
    total = 0.0
  if not total > 0:
    raise UserError(
      f'--budget={budget}: give updates, e.g. 4000, or FLOPs, e.g. 30TFLOP'
    )
  return max(1, round(total / flops))


def _make(
  recipes: dict[str, Any], name: str, suite: str, budget: str, data_dir: str
) -> Member:
  config = ConfigDict(recipes['get_config'](f'{name},{suite}'))
  config.data.dir = data_dir
  if len(config.data.mix) != 1 and suite not in config.data.mix:
    raise UserError(
      f'the recipe of {name} trains on {len(config.data.mix)} data sets, and '
      f'none of them is {suite}, which the benchmark tests: add it to '
      'config.data.mix'
    )
  built = builds.build(config)
  if built.method.posed:
    raise UserError(
      f'a model of config.method={config.method!r} takes known cameras and '
      'has no latent poses to transfer'
    )
  flops = mean_flops(built)
  config.train.steps = updates(budget, flops)
  builds.build(config)  # Fails if the schedule does not fit.
  return Member(
    name=name,
    config=config.lock(),
    parameters=parameters(built),
    flops=flops,
    draws=name not in recipes.get('PROBE_ONLY', ()),
    data=suite if suite in config.data.mix else next(iter(config.data.mix)),
  )


def at_rate(member: Member, rate: float, split: str = 'test') -> Member:
  """Returns a member with a peak learning rate that decays to a tenth.

  Args:
    member: Member, with any rate.
    rate: Peak learning rate.
    split: Split that it is tested on.
  """
  config = ConfigDict(member.config)
  config.eval.split = split
  config.optimizer.update(learning_rate=rate, final_learning_rate=rate / 10)
  return dataclasses.replace(member, config=config.lock())


def parameters(built: builds.Build) -> int:
  """Returns the number of parameters of a recipe's networks."""
  return sum(math.prod(x.shape) for x in built.functional.shapes.values())


def mean_flops(built: builds.Build) -> int:
  """Returns the FLOPs of an update, averaged over its kinds."""
  kinds = [
    built.method.step_kind(built.seed, step, built.objective)
    for step in range(_STEPS)
  ]
  return sum(built.method.flops(built, kind) for kind in kinds) // _STEPS


def make(
  recipes: dict[str, Any],
  wanted: Sequence[str] | None,
  *,
  suite: str,
  budget: str,
  data_dir: str,
) -> tuple[list[Member], dict[str, str]]:
  """Returns the members whose recipes fit, and why others do not, by name.

  Args:
    recipes: Result of `load`.
    wanted: Names of members; all if None.
    suite: Data set.
    budget: Budget, see `updates`.
    data_dir: Folder of the data sets.

  Raises:
    UserError: If a member does not exist, the budget is invalid, or no member
      can be trained.
  """
  known = list(recipes['MEMBERS'])
  wanted = list(dict.fromkeys(wanted or known))
  if unknown := [name for name in wanted if name not in known]:
    raise UserError(
      f'there is no member {unknown[0]!r}; choose from {", ".join(known)}'
    )
  updates(budget, 1)
  members, failures = [], {}
  for name in wanted:
    try:
      members.append(_make(recipes, name, suite, budget, data_dir))
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as e:
      failures[name] = ' '.join(str(e).split())
  if not members:
    name, reason = next(iter(failures.items()))
    raise UserError(f'no member can be trained; {name}: {reason}')
  return members, failures


def load(path: str) -> dict[str, Any]:
  """Runs the file of recipes and returns its definitions.

  Raises:
    UserError: If the file cannot be read or defines no members.
  """
  try:
    found = runpy.run_path(path)
  except OSError as e:
    raise UserError(f'cannot load --recipes={path}: {e.strerror}') from e
  if missing := {'MEMBERS', 'get_config'} - set(found):
    raise UserError(
      f'--recipes={path} does not define {", ".join(sorted(missing))}; give a '
      'file such as configs/transfer.py'
    )
  return found
