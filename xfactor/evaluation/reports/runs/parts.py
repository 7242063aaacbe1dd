"""Tables and other parts of the page."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from xfactor.evaluation.reports import html
from xfactor.evaluation.reports.runs.reading import Run

DASH = '\N{EN DASH}'


def tag(k: int, name: str) -> ElementTree.Element:
  """Returns a run's name in its colour."""
  return html.node(
    'span',
    name,
    class_='run' if k < 8 else 'run again',
    style=f'--run: var(--run-{k % 8})',
  )


def by_run(
  runs: Sequence[Run],
  head: Sequence[str],
  rows: Sequence[Sequence[Sequence[str]]],
  numbers: Sequence[int] | None = None,
  best: Mapping[int, int] | None = None,
  labels: Sequence[str] | None = None,
) -> ElementTree.Element:
  """A table with a row for each run.

  Args:
    runs: Run of each row.
    head: Titles of the columns.
    rows: Cells, each a text and optional small print below it.
    numbers: Numbers of the runs on the page; by default those of the rows.
    best: Columns whose best value is marked, the largest (1) or smallest (-1).
    labels: Labels of the rows, for runs with several rows.
  """
  keys = [str(k) for k in range(len(rows))]
  table = html.table(head, dict(zip(keys, rows, strict=True)), {})
  lines = table.findall('.//tbody/tr')
  for k, line in enumerate(lines):
    number = k if numbers is None else numbers[k]
    line.set('data-run', str(number))
    title = line.find('th')
    title.clear()
    title.append(tag(number, runs[k].name))
    if labels:
      title.append(html.node('small', labels[k]))
  for column, sign in (best or {}).items():
    cells = [line.findall('td')[column] for line in lines]
    values = {
      k: sign * float(cell.text)
      for k, cell in enumerate(cells)
      if cell.text != DASH
    }
    for k, value in values.items():
      if value == max(values.values()):
        cells[k].set('class', 'best')
  return table


def texts(
  head: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> ElementTree.Element:
  table = html.table(head, {k: [[x] for x in v] for k, v in rows.items()}, {})
  table.set('class', 'scroll texts')
  return table


def details(title: str, *parts: ElementTree.Element) -> ElementTree.Element:
  return html.node('details', html.node('summary', title), *parts)


def text(value: Any) -> str:
  return value if isinstance(value, str) and value else json.dumps(value)


def number(value: float | None, form: str = '.4g') -> str:
  """Formats a number; a dash if not finite, percent without their sign."""
  if value is None or not math.isfinite(value):
    return DASH
  if form.endswith('%'):
    return f'{value:{form}}'.removesuffix('%')
  return f'{value:{form}}'


def duration(seconds: float) -> str:
  if seconds < 60:
    return f'{seconds:.1f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes:02} min' if hours else f'{minutes} min'
