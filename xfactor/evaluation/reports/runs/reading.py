"""Reads the folders of runs; files may be missing."""

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from xfactor.data import files
from xfactor.errors import UserError
from xfactor.training import held_out
from xfactor.training.telemetry import goodput, writers


@dataclasses.dataclass(frozen=True)
class Run:
  """Results of a run.

  Attributes:
    name: Short unique name.
    facts: Content of run.json, without the recipe.
    config: The recipe, flat: `train.steps`.
    lines: Lines of metrics.jsonl, one per step, with evaluation scores.
    goodput: Summary of its wall time, if there is one.
    panels: Pictures by kind and step.
    evaluations: Content of eval/STEP.json, by step.
    tests: Transfer tests and probes of the newest step, by
      (data set, `tps-ORACLE` or `probe`).
    changed: Time of the last change of metrics.jsonl, in UTC.
    missing: Remarks on files that are missing or cannot be read.
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
    """Last logged step."""
    return max((line['step'] for line in self.lines), default=0)

  @property
  def steps(self) -> int | None:
    """Number of steps in the recipe."""
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
  """Returns all metrics that the runs have logged."""
  return {key for run in runs for line in run.lines for key in line}


def read(workdirs: Sequence[str]) -> list[Run]:
  """Reads runs; repeated folders count once.

  Raises:
    UserError: If there is none, or a folder is not that of a run.
  """
  if not workdirs:
    raise UserError('give the --workdir of runs: tools/report.py runs/tiny')
  paths = list(dict.fromkeys(map(files.run_folder, workdirs)))
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
    missing.append('no eval/STEP.json: the run is neither done nor evaluated')
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
    missing.append(f'no {goodput.FILE}: the use of its time is unknown')
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
  """Adds the scores of checkpoints that were evaluated later to the lines."""
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
  """Reads a file; returns None and adds a remark if missing or incomplete."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    missing.append(f'no {path.name}')
  except ValueError:
    missing.append(f'{path.name} cannot be read: it is incomplete')
  return None
