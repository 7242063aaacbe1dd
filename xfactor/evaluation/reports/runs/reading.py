"""What runs left in their folders, as far as it is there."""

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from xfactor.errors import UserError
from xfactor.training import held_out
from xfactor.training.telemetry import goodput, writers


@dataclasses.dataclass(frozen=True)
class Run:
  """A run.

  Attributes:
    name: Short, and no other run's.
    facts: What run.json says, without the recipe.
    config: The recipe, flat: `train.steps`.
    lines: Those of metrics.jsonl, a step each, with what evaluations found.
    goodput: Where its time went, if it says so.
    panels: Pictures by kind and step.
    evaluations: By step, as in eval/STEP.json.
    tests: Of the newest step: transfer tests and probes by
      (data set, `tps-ORACLE` or `probe`).
    changed: When metrics.jsonl was written to last, in UTC.
    missing: What is not there or cannot be read, in words.
  """

  name: str
  facts: dict[str, str]
  config: dict[str, Any]
  lines: Sequence[dict[str, float]]
  goodput: goodput.Summary | None
  panels: dict[str, dict[int, epath.Path]]
  evaluations: dict[int, dict[str, Any]]
  tests: dict[tuple[str, str], dict[str, Any]]
  changed: datetime.datetime | None
  missing: list[str]

  @property
  def step(self) -> int:
    """The last that has been logged."""
    return max((line['step'] for line in self.lines), default=0)

  @property
  def steps(self) -> int | None:
    """Those of the recipe."""
    return self.config.get('train.steps')

  def points(self, key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric; values may be infinite or NaN."""
    return [(line['step'], line[key]) for line in self.lines if key in line]

  def last(self, key: str) -> float | None:
    """The last finite value of a metric."""
    values = self._finite(key)
    return values[-1] if values else None

  def median(self, key: str) -> float | None:
    """The median of a metric over the logged intervals."""
    values = self._finite(key)
    return float(np.median(values)) if values else None

  def _finite(self, key: str) -> list[float]:
    return [y for _, y in self.points(key) if np.isfinite(y)]


def keys(runs: Sequence[Run]) -> set[str]:
  """All that runs have logged."""
  return {key for run in runs for line in run.lines for key in line}


def read(workdirs: Sequence[str]) -> list[Run]:
  """Reads runs, each once.

  Raises:
    UserError: If there is none, or a folder is none of a run.
  """
  if not workdirs:
    raise UserError('give the --workdir of runs: tools/report.py runs/tiny')
  paths = list(dict.fromkeys(epath.Path(x) for x in workdirs))
  names = [path.resolve().name for path in paths]
  if len(set(names)) < len(names):
    names = [str(path) for path in paths]
  return [_read(*item) for item in zip(names, paths, strict=True)]


def _read(name: str, path: epath.Path) -> Run:
  missing = []
  metrics = path / 'metrics.jsonl'
  if not any((path / x).exists() for x in (metrics.name, 'run.json')):
    raise UserError(
      f'{path} has neither metrics.jsonl nor run.json; give the --workdir of a '
      'run'
    )
  lines, changed = [], None
  if metrics.exists():
    lines = writers.read_lines(metrics)
    changed = datetime.datetime.fromtimestamp(
      metrics.stat().mtime, datetime.UTC
    )
  if not lines:
    missing.append('metrics.jsonl has no lines: there are no curves')
  facts = _json(path / 'run.json', missing) or {}
  config = traverse_util.flatten_dict(facts.pop('config', {}), sep='.')
  evaluations = {
    int(file.stem): found
    for file in sorted((path / 'eval').glob('*.json'))
    if file.stem.isdigit() and (found := _json(file, missing))
  }
  if not evaluations:
    missing.append('no eval/STEP.json: it has not ended or been evaluated')
  panels = {}
  for file in sorted((path / 'panels').glob('*.png')):
    step, _, kind = file.stem.partition('_')
    if step.isdigit():
      panels.setdefault(kind, {})[int(step)] = file
  if not panels:
    missing.append('no panels')
  summary = None
  if (path / goodput.FILE).exists():
    summary = goodput.summarize(goodput.read(path))
  else:
    missing.append(f'no {goodput.FILE}: where its time went is not known')
  return Run(
    name=name,
    facts=facts,
    config=config,
    lines=_with_evaluations(lines, evaluations),
    goodput=summary,
    panels=panels,
    evaluations=evaluations,
    tests=_tests(path, max(evaluations, default=0), missing),
    changed=changed,
    missing=missing,
  )


def _tests(
  path: epath.Path, step: int, missing: list[str]
) -> dict[tuple[str, str], dict[str, Any]]:
  found = {}
  for file in sorted(held_out.folder(path, step).glob('*.json')):
    match = re.fullmatch(r'(.+)_(tps-.+|probe)', file.stem)
    if match and (test := _json(file, missing)):
      found[match[1], match[2]] = test
  return found


def _with_evaluations(
  lines: Sequence[dict[str, float]], evaluations: dict[int, dict[str, Any]]
) -> list[dict[str, float]]:
  """The lines, with scores of checkpoints that were evaluated later."""
  by_step = {line['step']: dict(line) for line in lines}
  for step, found in evaluations.items():
    line = by_step.setdefault(step, {'step': step})
    for name, data in found['data'].items():
      for who, means in data['mean'].items():
        for metric, value in means.items():
          key = metric if who == 'model' else f'{who}_{metric}'
          line.setdefault(f'eval/{name}/{key}', value)
  return [by_step[step] for step in sorted(by_step)]


def _json(path: epath.Path, missing: list[str]) -> dict[str, Any] | None:
  """What a file says; None, and a remark, if it is not there or not whole."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    missing.append(f'no {path.name}')
  except ValueError:
    missing.append(f'{path.name} cannot be read: it is not whole')
  return None
