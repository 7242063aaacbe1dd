"""Chooses the learning rate of each member on validation scenes."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from transfer_suite import members as members_lib
from transfer_suite import running, tables
from xfactor.data import files
from xfactor.data.records import store as store_lib
from xfactor.training import held_out

SEED = 1000  # No other run has it.
SPLIT = 'val'


def plan(
  members: Sequence[members_lib.Member],
  rates: Sequence[float],
  out: pathlib.Path,
  *,
  stores: Sequence[store_lib.FrameStore],
  recipes: str,
  suite: str,
) -> dict[str, dict[float, running.Run]]:
  """Returns a run for each member and rate, by member and by rate.

  Args:
    members: Members that need a rate.
    rates: Peak learning rates.
    out: Folder that contains a folder for each rate.
    stores: Training and validation splits.
    recipes: Path of the file of recipes.
    suite: Suite in which rates are chosen.
  """
  runs = {}
  for member in members:
    runs[member.name] = {}
    for rate in rates:
      (run,) = running.plan(
        [members_lib.at_rate(member, rate, split=SPLIT)],
        [SEED],
        out / f'{rate:g}',
        {},
        options={},
        stores=stores,
        recipes=recipes,
        suite=suite,
      )
      # Training ends with the transfer test of members that have a renderer.
      wanted = running.TRAIN if member.draws else running.PROBE
      kept = [x for x in run.stages if x.name in (running.TRAIN, wanted)]
      runs[member.name][rate] = dataclasses.replace(run, stages=kept)
  return runs


def score(run: running.Run) -> float:
  """Returns the number that is compared, in percent; more is better.

  The rank of transfer; for members without a renderer, AUC@5 of the rotations
  that the probe predicts.
  """
  if not run.member.draws:
    return 100 * tables.read(run)['common']['rotation'].value
  path = held_out.file(run.workdir, run.member.updates)
  return files.read_json(path)['data'][run.member.data]['transfer']['rank']


def scores(
  runs: Mapping[str, Mapping[float, running.Run]],
) -> dict[str, dict[str, float | None]]:
  """Returns the score at each rate (`0.003`) by member; None if a run failed.

  Args:
    runs: Result of `plan`; runs that have not finished have failed.
  """
  return {
    name: {
      f'{rate:g}': None if run.left() else score(run)
      for rate, run in by_rate.items()
    }
    for name, by_rate in runs.items()
  }


def best(
  known: Mapping[str, Mapping[str, float | None]],
) -> dict[str, float]:
  """Returns the rate with the highest score of each member that has one."""
  chosen = {}
  for name, by_rate in known.items():
    finished = {rate: x for rate, x in by_rate.items() if x is not None}
    if finished:
      chosen[name] = float(max(finished, key=finished.get))
  return chosen


def read(
  path: pathlib.Path, rates: Sequence[float]
) -> dict[str, dict[str, float | None]]:
  """Returns the scores, by member, of those that were scored at all `rates`.

  Args:
    path: File of `write`, for example of an experiment on another machine.
    rates: Peak learning rates.
  """
  known = files.read_json(path) if path.exists() else {}
  grid = {f'{rate:g}' for rate in rates}
  return {
    name: by_rate
    for name, by_rate in known.items()
    if set(by_rate) == grid and None not in by_rate.values()
  }


def write(
  path: pathlib.Path, known: Mapping[str, Mapping[str, float | None]]
) -> None:
  """Adds the scores of members to a JSON file."""
  before = files.read_json(path) if path.exists() else {}
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(path, before | known)
