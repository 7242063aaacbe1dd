"""Result tables of the benchmark.

A cell is the mean over seeds with its 95 % Student interval: only seeds vary,
since all members are tested on the same examples. With one seed, the interval
is that of the evaluation over pairs of clips, if there is one.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from transfer_suite import running
from xfactor.data import files
from xfactor.errors import UserError
from xfactor.evaluation import own_recipe, tables
from xfactor.training import held_out

_NULLS = ('true re-render', 'frozen', 'shuffled', 'other motion')
# Columns by key: title and factor.
_COMMON = {
  'heldout': ('held-out PSNR', 1),
  'heldout shuffled': ('by another pose', 1),
  'probe': ('probe AUC@20 %', 100),
  # Also of cameras that only turn.
  'rotation': ('probe rotations AUC@5 %', 100),
  'rotation shuffled': ('the same, shuffled', 100),
  'rotation mean motion': ('the same, mean motion', 100),
}
_ORACLE = {
  'accepted': ('TPS accepted %', 100),
  'rra@20': ('RRA@20 %', 100),
  'rta@20': ('RTA@20 %', 100),
  'auc@20': ('AUC@20 %', 100),
  'all pairs': ('all pairs AUC@20 %', 100),
  'autoencoded': ('autoencoded AUC@20 %', 100),
  'autoencoded psnr': ('autoencoded PSNR', 1),
  'psnr': ('transfer PSNR', 1),
  'autoencoded rank': ('autoencoded rank %', 100),
  'rank': ('transfer rank %', 100),
  'autoencoded identified': ('autoencoded identified %', 100),
  'identified': ('transfer identified %', 100),
}
_TRUE = ('psnr', 'rank', 'identified')
# Measures of differences by title: row of the transfer test, key, factor.
_DIFFERENCES = {
  'transfer rank': ('model', 'rank', 100),
  'transfer identified': ('model', 'identified', 100),
  'transfer PSNR': ('model', 'psnr', 1),
  'lost rank': ('lost', 'rank', 100),
  'lost PSNR': ('lost', 'psnr', 1),
}
_REFERENCE = 'xfactor'
_EQUAL = 3.0  # Points of rank.


@dataclasses.dataclass(frozen=True)
class Number:
  """A number and the ends of its 95 % interval, if known."""

  value: float
  low: float | None = None
  high: float | None = None

  def text(self, scale: float = 1) -> str:
    """Formats the number for a table."""
    out = f'{scale * self.value:.1f}'
    if self.low is None:
      return out
    return f'{out} ({scale * self.low:.1f}..{scale * self.high:.1f})'


def combine(numbers: Sequence[Number | None]) -> Number | None:
  """Returns the mean over seeds (see the module); None without numbers."""
  known = [x for x in numbers if x is not None]
  if len(known) < 2:
    return known[0] if known else None
  values = np.array([x.value for x in known])
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  mean = values.mean()
  return Number(float(mean), float(mean - half), float(mean + half))


def read(run: running.Run) -> dict[str, dict[str, Any]]:
  """Reads the results of a run's evaluations.

  Args:
    run: Finished run.

  Returns:
    'common': numbers by the keys of the common columns; 'rows': numbers by
    oracle, row and key; 'titles': by oracle, its name and version, its number
    of pairs, and the chance of identifying a motion by guessing; 'pairs': by
    row ('model', 'autoencoded') and key of the comparison with the true
    re-render, the numbers of the pairs, None where there is none.
  """
  config, workdir = run.member.config, run.workdir
  step = config.train.steps
  name = run.member.data
  overrides = {}
  with contextlib.suppress(UserError):  # Checkpoints may have been deleted.
    overrides = own_recipe.overrides(config, workdir, step)
  variant = own_recipe.variant(overrides)
  folder = held_out.folder(workdir, step, variant)
  common, rows, titles, each = {}, {}, {}, {}
  path = held_out.file(workdir, step, variant)
  if run.member.draws and path.exists():
    means = files.read_json(path)['data'][name]['mean']
    common['heldout'] = _plain(means['model']['psnr'])
    if 'shuffled' in means:
      common['heldout shuffled'] = _plain(means['shuffled']['psnr'])
  path = folder / f'{name}_probe.json'
  if any('--probe' in stage.command for stage in run.stages):
    for row, result in files.read_json(path)['rows'].items():
      key = 'rotation' if row == 'probe' else f'rotation {row}'
      common[key] = _mean(result['mean']['auc_rotation@5'])
      if row == 'probe':
        common[row] = _mean(result['mean']['auc@20'])
  for stage in run.stages:
    if not stage.oracle:
      continue
    found = files.read_json(folder / f'{name}_{stage.file}')
    rows[stage.oracle] = {k: _row(row) for k, row in found['rows'].items()}
    titles[stage.oracle] = {
      'oracle': found['oracle'],
      'pairs': found['rows']['model']['pairs'],
      'chance': found.get('chance'),
    }
    # The same whichever the oracle is.
    each = {
      row: {k: x for k, x in found['rows'][row]['each'].items() if k in _TRUE}
      for row in ('model', 'autoencoded')
    }
    own = rows[stage.oracle]['autoencoded']
    rows[stage.oracle]['model'] |= {
      'autoencoded': own['auc@20'],
      **{f'autoencoded {key}': own[key] for key in _TRUE},
    }
  return {'common': common, 'rows': rows, 'titles': titles, 'pairs': each}


@dataclasses.dataclass(frozen=True)
class Difference:
  """A mean difference of two members, with two 95 % intervals.

  Attributes:
    over_seeds: Mean over seeds of the means over pairs.
    over_scenes: Mean over scenes of the means over seeds and pairs.
  """

  over_seeds: Number
  over_scenes: Number

  @property
  def counts(self) -> bool:
    """Whether both intervals exclude zero."""
    return all(
      x.low is not None and (x.low > 0 or x.high < 0)
      for x in (self.over_seeds, self.over_scenes)
    )

  def within(self, limit: float) -> bool:
    """Whether both intervals are within -limit and limit."""
    return all(
      x.low is not None and -limit < x.low and x.high < limit
      for x in (self.over_seeds, self.over_scenes)
    )


def difference(
  ours: Float[np.ndarray, 's p'],
  theirs: Float[np.ndarray, 's p'],
  scenes: Sequence[str],
) -> Difference | None:
  """Compares two members by seed and pair.

  Args:
    ours: Numbers of a member; NaN where there is none.
    theirs: Numbers of the member that it is compared with.
    scenes: Name of the scene of each pair.

  Returns:
    The difference ours - theirs; None if no pair has both.
  """
  apart = ours - theirs
  known = np.isfinite(apart)
  if not known.any():
    return None
  by_seed = [
    row[some].mean()
    for row, some in zip(apart, known, strict=True)
    if some.any()
  ]
  names = np.array(scenes)
  by_scene = [
    apart[:, names == name][known[:, names == name]].mean()
    for name in dict.fromkeys(scenes)
    if known[:, names == name].any()
  ]
  return Difference(
    *(combine([Number(float(x)) for x in xs]) for xs in (by_seed, by_scene))
  )


def _pairs(found: dict[str, Any], row: str, key: str) -> np.ndarray | None:
  """Returns the numbers of a run's pairs; None if there are none."""
  if row == 'lost':
    own, moved = (_pairs(found, x, key) for x in ('autoencoded', 'model'))
    return None if own is None or moved is None else own - moved
  values = found['pairs'].get(row, {}).get(key)
  return None if values is None else np.array(values, float)


def _row(row: dict[str, Any]) -> dict[str, Number | None]:
  mean = row['mean']
  return {
    'accepted': _plain(row['acceptance']),
    'all pairs': _plain(mean['auc@20']['rejected_as_zero']),
    **{key: _mean(mean[key]) for key in ('rra@20', 'rta@20', 'auc@20')},
    **{key: _over_pairs(row['each'].get(key)) for key in _TRUE},
  }


def _mean(mean: dict[str, float | None]) -> Number | None:
  if mean['value'] is None:
    return None
  return Number(mean['value'], mean['low'], mean['high'])


def _over_pairs(values: Sequence[float | None] | None) -> Number | None:
  known = [x for x in values or () if x is not None]
  if len(known) < 2:
    return _plain(known[0] if known else None)
  half = 1.96 * stats.sem(known)
  mean = float(np.mean(known))
  return Number(mean, mean - half, mean + half)


def _plain(value: float | None) -> Number | None:
  return None if value is None or not math.isfinite(value) else Number(value)


class Table:
  """Collects the results of runs.

  Attributes:
    found: Results of `read` by the name of a finished run.
  """

  def __init__(
    self,
    title: str,
    oracles: Sequence[str],
    failures: dict[str, str],
    scenes: Sequence[str] = (),
  ):
    """Initializes an empty table.

    Args:
      title: Suite and budget.
      oracles: Names of the oracles.
      failures: Reasons why members have no runs, by name.
      scenes: Names of the scenes of the pairs of the transfer test.
    """
    self._title, self._oracles, self._scenes = title, oracles, scenes
    self._bad = failures
    self._runs, self._failures = [], {}
    self.found: dict[str, dict[str, Any]] = {}

  @property
  def failed(self) -> bool:
    """Whether a member failed."""
    return bool(self._bad or self._failures)

  def expect(self, run: running.Run) -> None:
    """Registers a run that will be added later."""
    self._runs.append(run)

  def add(self, run: running.Run) -> str:
    """Adds a finished run; returns its main numbers as text."""
    found = self.found[run.name] = read(run)
    numbers = {
      title: (found['common'].get(key), scale)
      for key, (title, scale) in _COMMON.items()
    } | {
      f'{oracle} AUC@20 %': (rows['model']['auc@20'], 100)
      for oracle, rows in found['rows'].items()
    }
    return ', '.join(
      f'{title} {x.text(scale)}' for title, (x, scale) in numbers.items() if x
    )

  def fail(self, run: running.Run, reason: str) -> None:
    """Records the failure of a run."""
    self._failures[run.name] = reason

  def write(self, out: pathlib.Path) -> None:
    """Writes results.md and results.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.md').write_text(self.markdown())
    files.write_json(out / 'results.json', self._json())

  def markdown(self) -> str:
    """Returns the report as Markdown, with a table for each oracle."""
    seeds = sorted({run.seed for run in self._runs})
    how = (
      'Means over seeds with 95 % Student intervals.'
      if len(seeds) > 1
      else 'One seed: intervals, if any, are those of the evaluation over '
      'pairs and do not include the variation between seeds.'
    )
    parts = [
      f'# Transfer benchmark: {self._title}',
      f'Seeds {", ".join(map(str, seeds))}. {how} PSNR is in dB; "by another '
      'pose" is the held-out PSNR with the pose of another example. '
      'AUC@20 is the mean over pairs that the oracle accepts; "all '
      'pairs" counts rejected pairs as zero; "autoencoded" scores the '
      "model's own reconstructions. Do not compare numbers of different "
      'oracles. Rank: share of other motions whose true picture is further '
      'away than that of the right motion, 50 by chance.',
    ]
    parts += [self._section(oracle) for oracle in self._oracles]
    parts += [text] if (text := self._differences_section()) else []
    return '\n\n'.join(parts) + '\n'

  def _section(self, oracle: str) -> str:
    found = [x for x in self.found.values() if oracle in x['rows']]
    columns = _COMMON | _ORACLE
    nulls = found[0]['rows'][oracle] if found else {}
    rows = {name: self._cells(name, oracle) for name in self._members()}
    rows |= {f'*{name}*': nulls[name] for name in _NULLS if name in nulls}
    for key in list(columns):
      if not any(cells.get(key) for cells in rows.values()):
        del columns[key]
    titles = [title for title, _ in columns.values()]
    head = ['member', 'parameters', 'updates', *titles, 'remarks']
    lines = []
    for name, cells in rows.items():
      texts = [
        x.text(scale) if (x := cells.get(key)) else '-'
        for key, (_, scale) in columns.items()
      ]
      lines.append([name, *self._facts(name), *texts, self._remarks(name)])
    text = [f'## {oracle}', '']
    if found:
      title = found[0]['titles'][oracle]
      first = next(k for k, x in self.found.items() if x is found[0])
      note = f'{title["oracle"]}, {title["pairs"]} pairs. Null rows: of {first}'
      if title['chance']:
        note += (
          '. Identified: nearest to the true picture among those of other '
          f'motions, {100 * title["chance"]:.1f} % by chance'
        )
      text = [f'## {oracle}', '', f'{note}.', '']
    return '\n'.join([*text, tables.markdown(head, lines)])

  def differences(self, member: str) -> dict[str, Difference]:
    """Returns differences of a member to `xfactor` by measure.

    They are in percent or dB, over the seeds that both have. "Lost" is own
    minus transferred.
    """
    runs = {run.seed: self.found.get(run.name) for run in self._of(member)}
    others = {
      run.seed: self.found.get(run.name) for run in self._of(_REFERENCE)
    }
    both = [(runs[x], others[x]) for x in runs if runs[x] and others.get(x)]
    out = {}
    for title, (row, key, scale) in _DIFFERENCES.items():
      sides = [[_pairs(found, row, key) for found in pair] for pair in both]
      sides = [
        pair
        for pair in sides
        if all(x is not None and len(x) == len(self._scenes) for x in pair)
      ]
      if sides:
        ours, theirs = scale * np.array(sides).swapaxes(0, 1)
        found = difference(ours, theirs, self._scenes)
        out |= {title: found} if found else {}
    return out

  def _differences_section(self) -> str:
    head = ['member', *_DIFFERENCES]
    lines = []
    for name in self._members():
      found = self.differences(name) if name != _REFERENCE else {}
      if found:
        cells = [
          _text_of(title, found[title]) if title in found else '-'
          for title in _DIFFERENCES
        ]
        lines.append([name, *cells])
    if not lines:
      return ''
    note = (
      f'Means by seed and pair, minus those of {_REFERENCE}, in points or dB. '
      'Intervals of 95 %: over seeds; over scenes. Counts: both exclude zero. '
      f'Equal: both are within {_EQUAL:g} points of rank. Lost: own minus '
      'transferred.'
    )
    title = f'## Differences to {_REFERENCE}'
    return '\n\n'.join([title, note, tables.markdown(head, lines)])

  def _members(self) -> list[str]:
    return list(
      dict.fromkeys([*(run.member.name for run in self._runs), *self._bad])
    )

  def _of(self, member: str) -> list[running.Run]:
    return [run for run in self._runs if run.member.name == member]

  def _cells(self, member: str, oracle: str) -> dict[str, Number | None]:
    found = [
      self.found[run.name] for run in self._of(member) if run.name in self.found
    ]
    cells = [
      x['common'] | x['rows'].get(oracle, {}).get('model', {}) for x in found
    ]
    return {
      key: combine([x.get(key) for x in cells]) for key in _COMMON | _ORACLE
    }

  def _facts(self, name: str) -> tuple[str, str]:
    runs = self._of(name)
    if not runs:
      return '', ''
    member = runs[0].member
    return f'{member.parameters:,}', f'{member.updates:,}'

  def _remarks(self, name: str) -> str:
    if name in self._bad:
      return f'failed: {_cell(self._bad[name])}'
    runs = self._of(name)
    said = [] if not runs or runs[0].member.draws else ['no renderer']
    failed = {
      run.seed: self._failures[run.name]
      for run in runs
      if run.name in self._failures
    }
    for reason in dict.fromkeys(failed.values()):
      seeds = [str(seed) for seed, text in failed.items() if text == reason]
      which = '' if len(seeds) == len(runs) else f' (seed {", ".join(seeds)})'
      said.append(f'failed: {_cell(reason)}{which}')
    done = sum(run.name in self.found for run in runs)
    if done + len(failed) < len(runs):
      said.append(f'{done} of {len(runs)} seeds so far')
    return '; '.join(said)

  def _json(self) -> dict[str, Any]:
    def plain(cells: dict[str, Number | None]) -> dict[str, Any]:
      return {k: x and dataclasses.asdict(x) for k, x in cells.items()}

    members = {}
    for name in self._members():
      runs = self._of(name)
      members[name] = {
        'parameters': runs[0].member.parameters if runs else None,
        'updates': runs[0].member.updates if runs else None,
        'flops_per_update': runs[0].member.flops if runs else None,
        'remarks': self._remarks(name),
        'differences': {
          title: dataclasses.asdict(x)
          for title, x in self.differences(name).items()
        },
        'mean': {x: plain(self._cells(name, x)) for x in self._oracles},
        'runs': {
          run.name: {
            'common': plain(found['common']),
            'oracles': {
              oracle: {row: plain(cells) for row, cells in rows.items()}
              for oracle, rows in found['rows'].items()
            },
          }
          for run in runs
          if (found := self.found.get(run.name))
        },
      }
    return {
      'title': self._title,
      'failed': self._bad | self._failures,
      'members': members,
    }


def _text_of(title: str, found: Difference) -> str:
  seeds, scenes = found.over_seeds, found.over_scenes

  def interval(x: Number) -> str:
    return '-' if x.low is None else f'{x.low:.1f}..{x.high:.1f}'

  verdict = ''
  if found.counts:
    verdict = ', counts'
  if title == 'transfer rank' and found.within(_EQUAL):
    verdict += ', equal'
  return f'{seeds.value:+.1f} ({interval(seeds)}; {interval(scenes)}){verdict}'


def _cell(text: str) -> str:
  return text.replace('|', '\\|')
