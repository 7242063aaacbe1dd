"""Runs a suite and writes its results as runs finish."""

import contextlib
import pathlib
from collections.abc import Sequence

from transfer_suite import curves, drawing, running, tables


def complete(
  runs: Sequence[running.Run],
  table: tables.Table,
  out: pathlib.Path,
  *,
  jobs: int = 1,
  runner: running.Runner = running.execute,
) -> bool:
  """Completes runs and writes their results.

  Args:
    runs: Runs from `running.plan`.
    table: Table that collects the results.
    out: Folder for the results.
    jobs: Number of parallel runs.
    runner: Function that runs their commands.

  Returns:
    Whether all runs succeeded.

  Raises:
    UserError: If a folder belongs to another training.
    shutdown.Interrupted: If a stop was requested.
  """
  for run in runs:
    run.begin()
  todo = [run for run in runs if run.left()]
  for run in runs:
    table.expect(run)
    if not run.left():
      table.add(run)
  table.write(out)
  print(f'{len(runs)} runs in {out}, {len(runs) - len(todo)} of them finished')
  outcomes = running.complete_all(todo, jobs, runner)
  with contextlib.closing(outcomes):
    for number, (run, failure, seconds) in enumerate(outcomes, 1):
      if failure:
        table.fail(run, failure)
      said = f'failed: {failure}' if failure else table.add(run)
      table.write(out)
      print(
        f'[{number}/{len(todo)}] {run.name}, {seconds:.0f} s: {said}',
        flush=True,
      )
  curves.write(out / 'curves.json', runs, table.found)
  pictures = out / 'pictures.png'
  drawn = [run for run in runs if run.member.draws and not run.left()]
  if drawn and (todo or not pictures.exists()):
    drawing.write(pictures, drawn)
  print(table.markdown())
  print(
    f'results in {out}: results.md, results.json, curves.json, pictures.png'
  )
  return not table.failed
