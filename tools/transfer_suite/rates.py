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


def write(
  path: pathlib.Path, scores: Mapping[str, Mapping[str, float | None]]
) -> None:
  """Adds the scores of members to a JSON file."""
  known = files.read_json(path) if path.exists() else {}
  files.write_json(path, known | scores)


def choose(
  runs: Mapping[str, Mapping[float, running.Run]],
) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
  """Returns the best rate of each member that has one, and all scores.

  Args:
    runs: Result of `plan`; runs that have not finished have failed.
  """
  scores = {
    name: {
      rate: None if run.left() else score(run) for rate, run in by_rate.items()
    }
    for name, by_rate in runs.items()
  }
  best = {}
  for name, by_rate in scores.items():
    known = {rate: x for rate, x in by_rate.items() if x is not None}
    if known:
      best[name] = max(known, key=known.get)
  return best, {
    name: {f'{rate:g}': x for rate, x in by_rate.items()}
    for name, by_rate in scores.items()
  }
