"""Prints where the wall time of runs went, across all interruptions.

  python tools/goodput.py RUN... [--json]

RUN is the --workdir of a run. The buckets are those of
xfactor/training/telemetry/goodput.py. Exit codes: 0 printed, 2 bad input (one
line on stderr says what).
"""

import functools
import json

from absl import flags

from xfactor import cli, parsing
from xfactor.errors import UserError
from xfactor.training.telemetry import goodput

_JSON = flags.DEFINE_bool('json', False, 'Print JSON instead of tables.')


def table(name: str, summary: goodput.Summary) -> str:
  """Formats the buckets of a run, in seconds and percent of the wall time."""
  wall = summary.wall
  rows = [
    f'  {bucket:<10} {seconds:>12,.1f} {100 * seconds / (wall or 1):>6.1f} %'
    for bucket, seconds in (*summary.seconds.items(), ('wall', wall))
  ]
  return '\n'.join(
    [
      name,
      f'  {"":<10} {"seconds":>12} {"share":>8}',
      *rows,
      f'  restarts {summary.incarnations - 1}, steps {summary.steps:,}, steps '
      f'lost {summary.lost_steps:,}, goodput {100 * summary.goodput:.1f} %',
    ]
  )


def numbers(name: str, summary: goodput.Summary) -> dict[str, object]:
  """Returns the numbers of `table` for JSON."""
  return {
    'run': name,
    'wall': summary.wall,
    'seconds': summary.seconds,
    'restarts': summary.incarnations - 1,
    'steps': summary.steps,
    'lost_steps': summary.lost_steps,
    'goodput': summary.goodput,
  }


def main(argv: list[str]) -> int:
  """Prints a table for each run; returns the exit code."""
  with cli.reporting_user_errors():
    if not argv[1:]:
      raise UserError('give the --workdir of a run: tools/goodput.py runs/tiny')
    runs = {run: goodput.summarize(goodput.read(run)) for run in argv[1:]}
    if _JSON.value:
      print(json.dumps([numbers(*item) for item in runs.items()], indent=2))
    else:
      print('\n\n'.join(table(*item) for item in runs.items()))
  return 0


if __name__ == '__main__':
  cli.run(main, functools.partial(parsing.parse, words=True))
