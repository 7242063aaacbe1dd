"""Compiles the full-size recipes for accelerators and writes the table of it.

  python tools/accelerator_table.py [--topologies=h200:8,v5e:4x4]
    [--recipes=sm,mv] [--folder=runs/accelerators] [--document=FILE]

Each recipe and topology is compiled by tools/compile_ahead.py in a process of
its own, 1 to 10 CPU minutes each. The numbers are written to a JSON file in
--folder at once, and not compiled again while the file is there, so the command
can be stopped and started. What is there replaces the text between the markers
of the document. --compile=false writes the table only.
"""

import datetime
import json
import os
import pathlib
import subprocess
import sys
import textwrap

from absl import flags

from xfactor import cli
from xfactor.evaluation import tables

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = (
  *('sm', 'mv', 'video', 'rust', 'rayzer', 'srt_nmr', 'srt_msn'),
  *('srt_clevr3d', 'isrt_msn', 'vsrt_nmr', 'vsrt_clevr3d'),
)
TOPOLOGIES = (
  *('h200:8', 'v5e:4x4', 'h100:8', 'h200:2x8', 'h100:2x8', 'b200:8', 'a100:4'),
  *('v6e:8x8', 'v5p:4x4x4', 'v5e:16x16'),
)
# Cloud TPUs are named by chips, v5p by cores.
_NAMES = {
  'v5e:4x4': 'v5e-16',
  'v5e:16x16': 'v5e-256',
  'v6e:8x8': 'v6e-64',
  'v5p:4x4x4': 'v5p-128',
}
MARKERS = '<!-- table: begin -->', '<!-- table: end -->'
_COLUMNS = (
  *('recipe', 'program', 'devices', 'mesh', 'batch', 'GiB', 'of', 'sent GB'),
  *('must GB', 'least ms', 'bound by', 'MFU below'),
)

_RECIPES = flags.DEFINE_list('recipes', list(RECIPES), 'Names of recipes.')
_TOPOLOGIES = flags.DEFINE_list(
  'topologies', list(TOPOLOGIES), 'Topologies, see tools/compile_ahead.py.'
)
_FOLDER = flags.DEFINE_string(
  'folder', 'runs/accelerators', 'Folder for the numbers of each compilation.'
)
_DOCUMENT = flags.DEFINE_string(
  'document',
  str(ROOT / 'docs' / 'accelerators.md'),
  'Markdown file with the markers of the table.',
)
_COMPILE = flags.DEFINE_bool('compile', True, 'Compile what is missing.')


def compile_cell(recipe: str, topology: str, path: pathlib.Path) -> None:
  """Compiles a recipe for a topology; writes numbers, or the error."""
  numbers = path.with_suffix('.part')
  result = subprocess.run(
    [
      *(sys.executable, str(ROOT / 'tools' / 'compile_ahead.py')),
      f'--config={ROOT / "configs" / recipe}.py',
      *(f'--topology={topology}', f'--json={numbers}', '--noremedies'),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={'JAX_OPTIMIZATION_LEVEL': 'O1', **os.environ},
  )
  cell = {
    'recipe': recipe,
    'topology': topology,
    'commit': _git('rev-parse', '--short', 'HEAD'),
    'date': datetime.date.today().isoformat(),
  }
  if numbers.exists():
    (cell['compiled'],) = json.loads(numbers.read_text()).values()
    numbers.unlink()
  else:
    lines = result.stderr.strip().splitlines() or ['no message']
    # XLA adds a stack trace after its message.
    errors = [x for x in lines if x.startswith('error: ') or 'Error: ' in x]
    cell['error'] = (errors or lines)[-1].removeprefix('error: ')
  path.write_text(json.dumps(cell, indent=1))


def _git(*args: str) -> str:
  command = ['git', '-C', str(ROOT), *args]
  return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def table(cells: list[dict]) -> str:
  """Returns the Markdown table of compiled cells, and what made it."""
  commits = sorted({cell['commit'] for cell in cells})
  dates = sorted({cell['date'] for cell in cells})
  versions = {cell['compiled']['jax'] for cell in cells if 'compiled' in cell}
  rows = [row for cell in cells for row in _rows(cell)]
  caption = (
    f'*`JAX_OPTIMIZATION_LEVEL=O1 python tools/accelerator_table.py`, '
    f'{" to ".join(dates)}, commit '
    f'{", ".join(commits)}, jax {", ".join(sorted(versions))}.*'
  )
  return f'{tables.markdown(_COLUMNS, rows)}\n\n{caption}'


def _rows(cell: dict) -> list[list[str]]:
  topology = cell['topology']
  name = _NAMES.get(topology, topology)
  if 'error' in cell:
    error = textwrap.shorten(cell['error'], 120).replace('|', ' ')
    blanks = [''] * (len(_COLUMNS) - 4)
    return [[cell['recipe'], '', name, f'not compiled: {error}'] + blanks]
  compiled = cell['compiled']
  mesh = ' x '.join(
    f'{axis} {n}' for axis, n in compiled['mesh'].items() if n > 1
  )
  rows = []
  for x in compiled['programs']:
    row = [cell['recipe'], x['program'], name, mesh, str(compiled['batch'])]
    need = f'{x["memory_bytes"] / 2**30:.1f}'
    row += [need if x['fits'] else f'**{need}**']
    row += [f'{x["capacity_bytes"] / 2**30:.1f}']
    seconds = x['least_seconds']
    if seconds:
      by = max(seconds, key=seconds.get)
      row += [f'{x[key] / 1e9:.2f}' for key in ('sent_bytes', 'least_bytes')]
      row += [f'{1e3 * seconds[by]:.0f}', by, f'{x["mfu_bound"]:.0%}']
    else:
      row += [''] * 5
    rows.append(row)
  return rows


def replace(text: str, new: str) -> str:
  """Replaces what is between the markers.

  Raises:
    ValueError: If the text lacks the markers.
  """
  begin, end = (text.index(marker) for marker in MARKERS)
  return text[: begin + len(MARKERS[0])] + f'\n{new}\n' + text[end:]


def main(_) -> None:
  folder = pathlib.Path(_FOLDER.value)
  folder.mkdir(parents=True, exist_ok=True)
  document = pathlib.Path(_DOCUMENT.value)
  cells = []
  for topology in _TOPOLOGIES.value:
    for recipe in _RECIPES.value:
      path = folder / f'{recipe}-{topology.replace(":", "-")}.json'
      if _COMPILE.value and not path.exists():
        print(f'{recipe} for {topology}', flush=True)
        compile_cell(recipe, topology, path)
      if path.exists():
        cells.append(json.loads(path.read_text()))
  order = {name: i for i, name in enumerate(RECIPES)}
  cells.sort(key=lambda cell: order.get(cell['recipe'], len(order)))
  document.write_text(replace(document.read_text(), table(cells)))


if __name__ == '__main__':
  cli.run(main)
