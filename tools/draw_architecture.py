"""Draws the layers of the code, with the imports that there are.

  python tools/draw_architecture.py [--out=docs/architecture.png]

Reads every import in xfactor/, tools/ and configs/, those within functions and
for type checkers alone included. A line is one layer importing another, wider
for more imports. Exit codes: 0 drawn, 2 bad input (one line on stderr).
"""

import ast
import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.axes
import matplotlib.figure
from absl import app, flags
from matplotlib import patches

from xfactor import cli
from xfactor.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]

_OUT = flags.DEFINE_string('out', 'docs/architecture.png', 'The picture.')


@dataclasses.dataclass(frozen=True)
class Box:
  """A module or a package with all in it, its title, and what it is for."""

  name: str
  title: str
  text: str


# Upper rows import lower ones.
ROWS = (
  (
    Box('configs', 'configs/', 'recipes'),
    Box('xfactor.main', 'main.py', 'trains'),
    Box('xfactor.eval', 'eval.py', 'scores a run'),
    Box('tools', 'tools/', 'convert, import, measure'),
    Box('xfactor.demo', 'demo/', 'in a browser'),
    Box('xfactor.render', 'render.py', 'films'),
  ),
  (
    Box(
      'xfactor.evaluation',
      'evaluation/',
      'held-out scores, transfer test,\npose oracles, probe, report',
    ),
  ),
  (Box('xfactor.api', 'api.py', 'what a notebook imports: load,\ntransfer'),),
  (
    Box(
      'xfactor.inference',
      'inference/',
      'restoring models; footage in,\nmovies out',
    ),
  ),
  (Box('xfactor.config', 'config.py', 'the defaults of all recipes'),),
  (
    Box(
      'xfactor.training',
      'training/',
      'the loop over a pure step,\nobjectives, sharding, checkpoints',
    ),
  ),
  (
    Box(
      'xfactor.models',
      'models/',
      'XFactor, SRT, RUST, RayZer;\nLPIPS, Inception, VGGT',
    ),
  ),
  (
    Box(
      'xfactor.data',
      'data/',
      'raw data to records to batches.\nNumPy, threads; no JAX',
    ),
  ),
  (Box('xfactor.geometry', 'geometry/', 'cameras and their paths; NumPy'),),
)
# Imported by nearly all, and so not drawn.
EVERYWHERE = ('xfactor.cli', 'xfactor.errors')

Imports = Mapping[str, set[str]]


def imports(root: pathlib.Path) -> Imports:
  """What each module of the code imports.

  Args:
    root: Folder with xfactor, tools and configs.

  Returns:
    By a module's dotted name (tools' and recipes' begin with their folder's)
    the dotted names it imports: modules where they are ours, else as written.
  """
  files = {}
  for folder in ('xfactor', 'tools', 'configs'):
    for path in (root / folder).rglob('*.py'):
      parts = path.relative_to(root).with_suffix('').parts
      files['.'.join(parts).removesuffix('.__init__')] = path
  return {
    module: {_resolve(name, module, files) for name in _names(path)} - {module}
    for module, path in files.items()
  }


def _names(path: pathlib.Path) -> Iterator[str]:
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        raise UserError(f'{path}: import by full names, not relative ones')
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _resolve(name: str, importer: str, ours: Mapping[str, object]) -> str:
  """The module of ours that a name is in; tools see their own folder, too."""
  for prefix in ('', 'tools.')[: 1 + importer.startswith('tools.')]:
    parts = (prefix + name).split('.')
    for end in range(len(parts), 0, -1):
      if (module := '.'.join(parts[:end])) in ours:
        return module
  return name


def box_of(module: str) -> str | None:
  """The box that a module is in; None for modules that are not ours."""
  first, *rest = module.split('.')
  if first != 'xfactor':
    return first if first in ('tools', 'configs') else None
  # `xfactor.load` is the api's.
  return f'xfactor.{rest[0]}' if rest else 'xfactor.api'


def edges(found: Imports) -> collections.Counter[tuple[str, str]]:
  """How many imports lead from one box to another."""
  return collections.Counter(
    (box_of(module), box_of(name))
    for module, names in found.items()
    for name in names
    if box_of(name) not in (None, box_of(module))
  )


def against(
  found: Imports,
) -> dict[tuple[str, str], list[tuple[str, str]]]:
  """Imports of a layer by a lower one: by layers, those of their modules."""
  rows = {box.name: i for i, row in enumerate(ROWS) for box in row}
  out = collections.defaultdict(list)
  for module in sorted(found):
    for name in sorted(found[module]):
      edge = box_of(module), box_of(name)
      if set(edge) <= rows.keys() and rows[edge[0]] > rows[edge[1]]:
        out[edge].append((module, name))
  return dict(out)


# ------------------------------------------------------------------- drawing

# Inches: the left column has the layers' names, the right one a lane for each
# line.
_WIDTH, _LEFT, _PITCH, _BAR, _MARGIN = 9.0, 3.1, 0.78, 0.5, 0.1
_NARROWEST = 3  # Lanes of a box, to hold its title.
_COLOURS = (
  *('#5b6470', '#b0498f', '#c23a4d', '#c9661f', '#8f7414'),
  *('#3f8f4f', '#1f8a8a', '#2f6fb7', '#6a4fb3'),
)
_AGAINST = '#e00000'
_INK = '#333333'


def lanes(
  spans: Mapping[tuple[str, str], tuple[int, int]],
) -> dict[tuple[str, str], int]:
  """A lane for each line, so that those in one lane do not meet.

  Args:
    spans: By edge, the rows where the line begins and ends, upper one first;
      those of row 0 first, box by box, each box with lanes of its own.

  Returns:
    The lanes' numbers from the left.
  """
  ends, out, own = [], {}, collections.Counter()
  for edge, (first, last) in spans.items():
    lane = len(ends)
    if first:
      lane = next((i for i, end in enumerate(ends) if end <= first), lane)
    elif edge[0] not in own:
      # What the last box lacks remains for others, further down.
      narrow = own.total() and _NARROWEST - own[next(reversed(own))]
      ends += [0] * max(narrow, 0)
      lane = len(ends)
    own[edge[0]] += not first
    ends[lane : lane + 1] = [last]
    out[edge] = lane
  return out


def draw(found: Imports) -> matplotlib.figure.Figure:
  """The picture: a bar a layer, a line an import, coloured by what it imports.

  Raises:
    UserError: If a module is in no box.
  """
  rows = {box.name: i for i, row in enumerate(ROWS) for box in row}
  for module in found:
    if box_of(module) not in (*rows, *EVERYWHERE):
      raise UserError(
        f'{module} is in no layer of the picture: add {box_of(module)} to ROWS '
        'in tools/draw_architecture.py'
      )
  drawn = {
    edge: count
    for edge, count in edges(found).items()
    if not set(edge) & set(EVERYWHERE)
  }
  order = list(rows)
  columns = lanes(
    {
      edge: tuple(sorted(map(rows.get, edge)))
      for edge in sorted(drawn, key=lambda e: (order.index(e[0]), rows[e[1]]))
    }
  )
  note = _note(found)
  height = _PITCH * len(ROWS) + 0.16 * len(note.splitlines())
  figure = matplotlib.figure.Figure(figsize=(_WIDTH, height), dpi=200)
  axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(-height, 0))
  axes.set_axis_off()
  step = (_WIDTH - _LEFT - 2 * _MARGIN) / (max(columns.values()) + 1)
  xs = {edge: _LEFT + step * (lane + 0.5) for edge, lane in columns.items()}
  tops = [-_MARGIN - _PITCH * i for i in range(len(ROWS))]
  for i, row in enumerate(ROWS):
    for box in row:
      _bar(axes, box, _COLOURS[i], tops[i], *_extent(box, xs, step, i))
  words = {'size': 7.5, 'color': _INK}
  told = 'what you run, and in configs/\nwhat it is told'
  axes.text(2 * _MARGIN, tops[0] - _BAR / 2, told, va='center', **words)
  for edge, count in drawn.items():
    _line(axes, xs[edge], tops, *map(rows.get, edge), count)
  axes.text(_MARGIN, 0.06 - height, note, va='bottom', **words)
  return figure


def _note(found: Imports) -> str:
  lines = [
    'A line is one layer importing another, not those it crosses, in the '
    'colour of the imported one; wider for more imports.\nLeft out: errors.py '
    'and cli.py, which nearly all import. Dashed red lines lead up, against '
    'the order:'
  ]
  titles = {box.name: box.title for row in ROWS for box in row}
  for (_, target), pairs in against(found).items():
    names = ', '.join(
      dict.fromkeys(
        module.removeprefix('xfactor.').replace('.', '/') + '.py'
        for module, _ in pairs
      )
    )
    lines.append(f'   {names} \N{RIGHTWARDS ARROW} {titles[target]}')
  return '\n'.join(lines)


def _extent(
  box: Box, xs: Mapping[tuple[str, str], float], step: float, row: int
) -> tuple[float, float]:
  """Where a box begins and ends: over its lines, or all the way."""
  if row:
    return _MARGIN, _WIDTH - _MARGIN
  own = [x for edge, x in xs.items() if edge[0] == box.name]
  left = min(own) - 0.46 * step
  return left, left + step * (max(len(own), _NARROWEST) - 0.08)


def _bar(
  axes: matplotlib.axes.Axes,
  box: Box,
  colour: str,
  top: float,
  left: float,
  right: float,
) -> None:
  axes.add_patch(
    patches.FancyBboxPatch(
      (left, top - _BAR),
      right - left,
      _BAR,
      boxstyle='round,pad=0,rounding_size=0.06',
      facecolor=colour,
      alpha=0.16,
      linewidth=0,
    )
  )
  titled = {'color': colour, 'weight': 'bold'}
  middle = top - _BAR / 2
  if left > _MARGIN:
    x = (left + right) / 2
    axes.text(x, middle, box.title, **titled, ha='center', size=7.5)
    axes.text(x, middle - 0.15, box.text, ha='center', size=6.8, color=_INK)
    return
  x = left + _MARGIN
  axes.text(x, middle, box.title, **titled, va='center', size=9.5)
  axes.text(x + 1, middle, box.text, va='center', size=7.5, color=_INK)


def _line(
  axes: matplotlib.axes.Axes,
  x: float,
  tops: Sequence[float],
  source: int,
  target: int,
  count: int,
) -> None:
  down = source < target
  axes.annotate(
    '',
    (x, tops[target] - (0 if down else _BAR)),
    (x, tops[source] - (_BAR if down else 0)),
    arrowprops={
      'arrowstyle': '-|>',
      'mutation_scale': 7,
      'linewidth': 0.6 + 0.35 * math.sqrt(count),
      'color': _COLOURS[target] if down else _AGAINST,
      'linestyle': '-' if down else (0, (2, 1)),
      'shrinkA': 0,
      'shrinkB': 0,
    },
  )


def main(argv: list[str]) -> int:
  """Draws; returns the exit code."""
  with cli.reporting_user_errors():
    if argv[1:]:
      raise UserError(f'{argv[1]} is no flag; the picture is --out')
    draw(imports(ROOT)).savefig(_OUT.value)
    print(_OUT.value)
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
