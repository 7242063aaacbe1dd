"""Plots with the curves of all runs, drawn by the script of runs.html."""

import json
import math
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from xfactor.evaluation.reports import html
from xfactor.evaluation.reports.runs import reading
from xfactor.evaluation.reports.runs.reading import Run

_LOSS, _SPEED = 'loss', ('frames_per_s', 'steps_per_s', 'data_wait', 'mfu')
_UNITS = {
  'data_wait': 'share of the time',
  'mfu': 'share of the peak',
  'psnr': 'dB',
}
# Baselines, plotted in their run's colour or, if they are the same for all
# runs, in grey.
_BASELINES = {
  'shuffled': "by another example's pose",
  'halves': 'by the pose of the other half',
  'copy': 'copy of the nearest view',
  'mean': 'mean colour',
}
_POINTS = 300  # Largest number of points of a curve.
_LINEAR = ('learning_rate', 'data_wait', 'mfu')
_LOG_FROM = 8  # Ratio of largest to smallest value for logarithmic axes.


def training(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Curves of the training metrics, without speed."""
  logged = reading.keys(runs) - {'step', *_SPEED}
  keys = sorted(key for key in logged if not key.startswith('eval/'))
  values = {
    key: [y for run in runs for _, y in run.points(key)] for key in keys
  }
  zero = [key for key in keys if not any(values[key])]
  same = [
    key
    for key in keys
    if key != _LOSS
    and all(
      np.array_equal(run.points(key), run.points(_LOSS), equal_nan=True)
      for run in runs
      if run.points(key)
    )
  ]
  keys = [key for key in keys if key not in (*zero, *same)]
  keys.sort(key=lambda key: key != _LOSS)
  out, remarks = [_logged(keys, runs)], []
  if zero:
    remarks.append(f'Zero throughout: {", ".join(zero)}.')
  if same:
    remarks.append(
      f'Identical to the loss in the runs that log it: {", ".join(same)}.'
    )
  if remarks:
    out.append(html.node('p', ' '.join(remarks)))
  return out


def speed(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Curves of the speed."""
  keys = [key for key in _SPEED if any(run.points(key) for run in runs)]
  out = [_logged(keys, runs)]
  if 'mfu' not in keys:
    out.append(
      html.node(
        'p',
        'No MFU: it is only logged if the peak of the device is known and the '
        'model computes in bfloat16.',
      )
    )
  return out


def held_out(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Curves of the held-out scores with their baselines."""
  found = {}
  for key in sorted(reading.keys(runs)):
    if not key.startswith('eval/'):
      continue
    name, metric = key.removeprefix('eval/').rsplit('/', 1)
    who, _, rest = metric.partition('_')
    if who not in _BASELINES:
      who, rest = '', metric
    lines = [(run, run.points(key)) for run in runs]
    found.setdefault((name, rest), {})[who] = lines
  # A curve needs two points; single evaluations are in the tables.
  plots = [
    _plot(f'{name}: {metric}', series, runs)
    for (name, metric), series in sorted(
      found.items(), key=lambda x: (x[0][0], x[0][1] != 'psnr', x[0][1])
    )
    if any(len(points) > 1 for _, points in series.get('', ()))
  ]
  if plots:
    shown = [who for who in _BASELINES if any(who in x for x in found.values())]
    names = [html.node('span', _BASELINES[who], class_=who) for who in shown]
    return [html.node('p', *names, class_='key'), _plots(plots)]
  return [
    html.node('p', 'No run was evaluated at two steps; see the tables below.')
  ]


def _logged(keys: Sequence[str], runs: Sequence[Run]) -> ElementTree.Element:
  found = {key: [(run, run.points(key)) for run in runs] for key in keys}
  return _plots([_plot(key, {'': x}, runs) for key, x in found.items()])


def _plots(plots: Sequence[ElementTree.Element]) -> ElementTree.Element:
  return html.node('div', *plots, class_='plots')


def _plot(
  title: str,
  found: dict[str, list[tuple[Run, list[tuple[int, float]]]]],
  runs: Sequence[Run],
) -> ElementTree.Element:
  """A plot of the points of every run, by baseline; '' is the model."""
  series = []
  for who in ('', *_BASELINES):
    lines = [(run, points) for run, points in found.get(who, ()) if points]
    if not lines:
      continue
    common = (
      who in ('copy', 'mean')
      and len({round(points[-1][1], 3) for _, points in lines}) == 1
    )
    if common:
      lines = [max(lines, key=lambda line: len(line[1]))]
    for run, points in lines:
      series.append(
        {
          'run': None if common else runs.index(run),
          'who': who,
          'name': ' '.join(
            x for x in ('' if common else run.name, _BASELINES.get(who)) if x
          ),
          'points': thin(points),
        }
      )
  values = [
    y for line in series for _, y, *_ in line['points'] if y is not None
  ]
  log = (
    title not in _LINEAR
    and bool(values)
    and min(values) > 0
    and max(values) > _LOG_FROM * min(values)
  )
  unit = _UNITS.get(title.split(': ')[-1])
  label = title + (f', {unit}' if unit else '')
  button = html.node(
    'button', 'log', type='button', aria_pressed=str(log).lower()
  )
  caption = html.node('figcaption', html.node('b', label), button)
  return html.node(
    'figure',
    caption,
    html.node('svg', role='img', aria_label=label),
    html.node('output'),
    class_='plot',
    data_series=json.dumps(series, allow_nan=False),
  )


def thin(points: Sequence[tuple[int, float]]) -> list[list[Any]]:
  """Reduces a curve to at most `_POINTS` points by averaging intervals.

  Args:
    points: Steps and values.

  Returns:
    The same points with five digits, None if not finite; or for each interval
    its last step, mean, minimum and maximum, None if not finite.
  """
  if len(points) <= _POINTS:
    return [[x, _digits(y)] for x, y in points]
  size = math.ceil(len(points) / _POINTS)
  out = []
  for at in range(0, len(points), size):
    steps, values = zip(*points[at : at + size], strict=True)
    numbers = np.mean(values), np.min(values), np.max(values)
    out.append([steps[-1], *(_digits(float(y)) for y in numbers)])
  return out


def _digits(value: float) -> float | None:
  return float(f'{value:.5g}') if math.isfinite(value) else None
