"""The comparisons that docs/experiment.md registers, in their order."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from transfer_suite import members, running
from xfactor.data import files
from xfactor.errors import UserError

# Suite and budget of the runs that choose learning rates.
RATES_SUITE, RATES_BUDGET = 'turning', '7.5TFLOP'
_SPEED = 28.0  # GFLOP/s of a job, assumed until a run has finished.


@dataclasses.dataclass(frozen=True)
class Part:
  """Members that are compared in a world.

  Attributes:
    name: Name of the part.
    suite: World.
    members: Names of the members that it adds to those of earlier parts.
    seeds: Seeds.
    budget: Budget of each run.
    oracles: Pose oracles; None: all that suit the world.
    motions: Data set whose motions move its scenes, if it is another one.
  """

  name: str
  suite: str
  members: tuple[str, ...]
  seeds: tuple[int, ...]
  budget: str
  oracles: tuple[str, ...] | None = ('none',)
  motions: str | None = None


_FIVE, _THREE = tuple(range(5)), tuple(range(3))
_MAIN = ('xfactor', 'autoencode')
_MOVING = (*_MAIN, 'nuisance', 'rayder')
_WIDE = tuple(f'{name}_{width}' for width in (2, 64, 256) for name in _MAIN)
_OTHERS = (
  *('rust', 'rayzer', 'se3', 'rayder', 'nuisance', 'halves'),
  *('no_augmentation', 'simclr', 'vicreg'),
)
_TPS = ('none', 'rerender', 'known_scene')
PARTS = (
  Part('main', 'turning', _MAIN, _FIVE, '15TFLOP'),
  Part('parallax', 'parallax', _MAIN, _THREE, '36TFLOP'),
  Part('moving', 'moving', _MOVING, _FIVE, '15TFLOP'),
  Part('textures', 'textures', _MAIN, _FIVE, '6TFLOP'),
  Part('levels', 'levels', _MAIN, _THREE, '24TFLOP'),
  Part('tps', 'parallax', _MAIN, _THREE, '36TFLOP', _TPS),
  Part('crossing', 'levels', _MAIN, _THREE, '24TFLOP', motions='turning'),
  Part('widths', 'parallax', _WIDE, _THREE, '36TFLOP'),
  Part('members', 'turning', _OTHERS, _FIVE, '15TFLOP'),
)


def chosen(names: Sequence[str]) -> list[Part]:
  """Returns the parts with these names, in the registered order.

  Args:
    names: Names of parts, or only 'all'.

  Raises:
    UserError: If there is no such part.
  """
  known = [part.name for part in PARTS]
  for name in names:
    if name not in known and list(names) != ['all']:
      raise UserError(
        f'--experiment={name}: choose from all, {", ".join(known)}'
      )
  return [part for part in PARTS if part.name in names or 'all' in names]


def with_earlier(part: Part) -> Part:
  """Adds the members of earlier parts that had the same tests."""
  names = [x.name for x in PARTS]
  earlier = [
    x.members
    for x in PARTS[: names.index(part.name)]
    if (x.suite, x.oracles, x.motions)
    == (part.suite, part.oracles, part.motions)
  ]
  every = (name for some in (*earlier, part.members) for name in some)
  return dataclasses.replace(part, members=tuple(dict.fromkeys(every)))


def budget(
  parts: Sequence[Part],
  rate_of: Mapping[str, str],
  grid: Sequence[float],
  out: pathlib.Path,
  jobs: int,
) -> str:
  """Returns a table of the runs of parts, with FLOPs and expected hours.

  Args:
    parts: Parts to run.
    rate_of: Members that take the learning rate of another.
    grid: Learning rates to choose from.
    out: Folder whose finished runs tell the speed.
    jobs: Number of parallel runs.
  """
  speed, finished = _speed(out)
  source = f'of {finished} finished runs' if finished else 'assumed'
  lines = [
    f'{"part":10}{"world":10}{"runs":>6}{"rates":>7}{"TFLOP":>8}{"hours":>7}'
  ]
  seen, total = set(), 0.0
  for part in parts:
    trained = {
      (part.suite, name, seed) for name in part.members for seed in part.seeds
    } - seen
    rates = {rate_of.get(name, name) for name in part.members} - seen
    seen |= trained | rates
    runs, tried = len(trained), len(grid) * len(rates)
    flops = runs * _flops(part.budget) + tried * _flops(RATES_BUDGET)
    hours = flops / speed / 3600 / jobs
    total += hours
    lines.append(
      f'{part.name:10}{part.suite:10}{runs:6}{tried:7}{flops / 1e12:8.0f}'
      f'{hours:7.1f}'
    )
  lines.append(
    f'{total:.1f} hours of {jobs} jobs at {speed / 1e9:.0f} GFLOP/s each '
    f'({source}); finished runs are not repeated'
  )
  return '\n'.join(lines)


def _flops(budget: str) -> float:
  # Updates of one FLOP.
  return members.updates(budget, 1)


def _speed(out: pathlib.Path) -> tuple[float, int]:
  """FLOP/s of finished runs, with their tests; and the number of these."""
  flops = seconds = count = 0
  for path in out.glob('**/benchmark.json'):
    state = files.read_json(path)
    took = state.get('seconds', {})
    if running.TRAIN in took:
      flops, count = flops + state['flops'], count + 1
      seconds += sum(took.values())
  return (flops / seconds, count) if seconds else (_SPEED * 1e9, 0)
