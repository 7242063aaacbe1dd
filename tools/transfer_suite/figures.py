"""Plots the results of an experiment.

worlds.png   transfer rank of each member in each world, and with own poses
widths.png   transfer rank against the width of the pose
curves.png   what the own pose is worth, by update, of each run
"""

import pathlib
import re
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from transfer_suite import experiment
from xfactor.data import files

_NARROW = 16  # Width of the poses of members without a number.


def write(out: pathlib.Path) -> list[pathlib.Path]:
  """Plots what has been run so far.

  Args:
    out: Folder of the experiment.

  Returns:
    Paths of the figures, in OUT/figures.
  """
  results = {
    part.name: files.read_json(path)['members']
    for part in experiment.PARTS
    if (path := out / part.name / 'results.json').exists()
  }
  runs = {
    part.name: files.read_json(path)
    for part in experiment.PARTS
    if (path := out / part.name / 'curves.json').exists()
  }
  return [
    path
    for name, plot, found in (
      ('worlds', _worlds, results),
      ('widths', _widths, results),
      ('curves', _curves, runs),
    )
    if (path := _save(out / 'figures' / f'{name}.png', plot, found))
  ]


def _save(
  path: pathlib.Path, plot: Callable[[Axes, dict], bool], found: dict
) -> pathlib.Path | None:
  """Writes a figure; returns its path, or None if there is nothing to plot."""
  figure = Figure(figsize=(7, 4), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  if not plot(axes, found):
    return None
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  return path


def _rank(member: dict, key: str = 'rank') -> dict[str, float] | None:
  return member['mean'].get('none', {}).get(key)


def _errors(numbers: list[dict[str, float]]) -> list[list[float]]:
  """Returns the lengths of error bars below and above, in percent."""
  ends = [(x['value'], x['low'], x['high']) for x in numbers]
  return [
    [0 if low is None else 100 * (value - low) for value, low, _ in ends],
    [0 if high is None else 100 * (high - value) for value, _, high in ends],
  ]


def _worlds(axes: Axes, results: dict) -> bool:
  worlds = [
    part
    for part in experiment.PARTS
    if part.name in results and part.name not in ('members', 'widths', 'tps')
  ]
  names = dict.fromkeys(name for part in worlds for name in part.members)
  for i, name in enumerate(names):
    for key, style in (('rank', 'o'), ('autoencoded rank', '_')):
      some = [
        (k + 0.12 * i, found)
        for k, part in enumerate(worlds)
        if (found := _rank(results[part.name].get(name, {'mean': {}}), key))
      ]
      if some:
        places, numbers = zip(*some, strict=True)
        axes.errorbar(
          places,
          [100 * x['value'] for x in numbers],
          _errors(numbers) if key == 'rank' else None,
          fmt=style,
          color=f'C{i}',
          label=name if key == 'rank' else f'{name}, own poses',
        )
  axes.set_xticks(range(len(worlds)), [part.name for part in worlds])
  axes.set_ylabel('rank, % (chance: 50)')
  return bool(axes.containers)


def _widths(axes: Axes, results: dict) -> bool:
  members = results.get('widths', {})
  for i, family in enumerate(('xfactor', 'autoencode')):
    found = {
      int(match[1] or _NARROW): rank
      for name, member in members.items()
      if (match := re.fullmatch(rf'{family}(?:_(\d+))?', name))
      and (rank := _rank(member))
    }
    widths = sorted(found)
    if widths:
      numbers = [found[width] for width in widths]
      axes.errorbar(
        widths,
        [100 * x['value'] for x in numbers],
        _errors(numbers),
        fmt='o-',
        color=f'C{i}',
        capsize=3,
        label=family,
      )
  axes.set_xscale('log', base=2)
  axes.set_xlabel('numbers of a pose')
  axes.set_ylabel('transfer rank, % (chance: 50)')
  return bool(axes.containers)


def _curves(axes: Axes, runs: dict) -> bool:
  styles = {}
  for name, run in runs.get('main', {}).items():
    member = name.rpartition('-')[0]
    points = [
      (line['step'], own - other)
      for line in run['curve']
      if (own := line.get('eval/turning/psnr')) is not None
      and (other := line.get('eval/turning/shuffled_psnr')) is not None
    ]
    if points:
      new = member not in styles
      color = styles.setdefault(member, f'C{len(styles)}')
      axes.plot(
        *zip(*points, strict=True), color=color, label=member if new else None
      )
  axes.set_xlabel('updates')
  axes.set_ylabel("PSNR, own pose minus another's, dB")
  return bool(styles)
