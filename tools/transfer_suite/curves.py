"""Writes the curves and the numbers of each pair of runs as small JSON."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_suite import running
from xfactor.training.telemetry import writers


def write(
  path: pathlib.Path,
  runs: Sequence[running.Run],
  found: Mapping[str, dict[str, Any]],
) -> None:
  """Writes the file, a line per run.

  Args:
    path: Path of the file.
    runs: Runs, finished or not.
    found: Results of `tables.read` by the name of a run, if it has finished.
  """
  lines = []
  for run in runs:
    facts = {
      'learning_rate': run.member.config.optimizer.learning_rate,
      'updates': run.member.updates,
      'flops_per_update': run.member.flops,
      'seconds': {name: round(x) for name, x in run.seconds().items()},
      'curve': curve(run),
      'pairs': found.get(run.name, {}).get('pairs', {}),
    }
    text = json.dumps(_rounded(facts), separators=(',', ':'))
    lines.append(f'{json.dumps(run.name)}:{text}')
  path.write_text('{' + ',\n'.join(lines) + '}\n')


def curve(run: running.Run) -> list[dict[str, float]]:
  """Returns loss and held-out scores of a run by update."""
  path = run.workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  return [
    {
      key: value
      for key, value in line.items()
      if key in ('step', 'loss') or key.startswith('eval/')
    }
    for line in writers.read_lines(path)
  ]


def _rounded(tree: Any) -> Any:
  if isinstance(tree, Mapping):
    return {key: _rounded(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return [_rounded(value) for value in tree]
  return float(f'{tree:.4g}') if isinstance(tree, float) else tree
