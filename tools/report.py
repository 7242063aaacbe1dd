"""Compares runs on one page: recipes, training curves and rendered pictures.

  python tools/report.py RUN... [--out=report.html]

RUN is the --workdir of a run, finished or not. The page is one self-contained
file that can be mailed and opened offline. It names what a run lacks. Exit
codes: 0 written, 2 bad input (one line on stderr says what).
"""

import functools
from importlib import resources

from absl import flags

from xfactor import cli, parsing
from xfactor.errors import UserError
from xfactor.evaluation.reports import html
from xfactor.evaluation.reports.runs import (
  curves,
  evaluations,
  reading,
  sections,
)

_OUT = flags.DEFINE_string('out', 'report.html', 'HTML file to write.')


def main(argv: list[str]) -> int:
  """Writes the page; returns the exit code."""
  with cli.reporting_user_errors():
    runs = reading.read(argv[1:])
    title = 'Runs: ' + ', '.join(run.name for run in runs)
    body = html.node(
      'main',
      html.node('h1', f'{len(runs)} runs' if runs[1:] else runs[0].name),
      sections.runs_bar(runs),
      *sections.overview(runs),
      *sections.differences(runs),
      html.node('h2', 'Training'),
      html.node(
        'p',
        'As logged: means of each interval, not smoothed. Long runs show means '
        'of several intervals over a band from the minimum to the maximum. '
        'Point at a plot for numbers; untick runs above to hide them.',
      ),
      *curves.training(runs),
      html.node('h3', 'Held-out pictures'),
      *curves.held_out(runs),
      html.node('h3', 'Speed'),
      *curves.speed(runs),
      *sections.panels(runs),
      *evaluations.tables(runs),
      *sections.time(runs),
    )
    more = resources.files('xfactor.evaluation.reports.runs') / 'runs.html'
    try:
      written = html.write(_OUT.value, title, body, more.read_text())
    except OSError as e:
      raise UserError(
        f'cannot write --out={_OUT.value} ({e.strerror}); choose another file'
      ) from e
    size = written.stat().length / 1e6
    print(f'{written}: {len(runs)} runs, {size:.1f} MB')
  return 0


if __name__ == '__main__':
  cli.run(main, functools.partial(parsing.parse, words=True))
