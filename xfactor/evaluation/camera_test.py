"""Tests a calibration on held-out clips: cameras in, and cameras out.

Cameras in: scenes are rendered from the true cameras of another clip's motion,
and compared with the true re-render, as in the transfer test. Rows:

  network, ridge  the calibration's two maps from cameras to latent poses
  transfer        the same motion, read from the other clip's frames: the
                  ceiling, as no camera passes through the calibration
  wrong path      the cameras of another pair's motion
  frozen          no motion at all

Cameras out: the paths of held-out clips, against the true ones. Rows:

  network, ridge  the calibration's two maps from latent poses to cameras
  shuffled        the network's path of another clip
  mean motion     the mean of the true paths
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from xfactor.data import files, rerender
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import pairs as pairs_lib
from xfactor.evaluation import probe, tables, transfer_test, true_pictures
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.inference import latent
from xfactor.metrics import poses

_MAPS = ('network', 'ridge')
_RESULTS = ('psnr', 'rank', 'identified')
# The first two are of rotations only, for cameras that do not move.
_COLUMNS = ('rra@5', 'auc_rotation@10', *tables.COLUMNS)


@dataclasses.dataclass(frozen=True)
class Result:
  """Results of the test.

  Attributes:
    pictures: Means by row and by name, of 'psnr' (dB), 'rank' and 'identified',
      as in `transfer_test.Result.truth`; empty if scenes cannot be rendered
      again.
    chance: Share that guesses would identify.
    pairs: Number of pairs of clips.
    drawn: Scores by row of the paths that an oracle finds in rendered pictures,
      against those that were asked for; empty without an oracle.
    found: Scores by row of the paths that the calibration finds.
    paths: Number of these paths.
    outside: Share of the paths that leave the calibration's domain.
  """

  pictures: dict[str, dict[str, float]]
  chance: float
  pairs: int
  drawn: dict[str, poses.Summary]
  found: dict[str, poses.Summary]
  paths: int
  outside: float


def evaluate(
  model: latent.Model,
  store: store_lib.FrameStore,
  pairs: Sequence[tuple[pairs_lib.Excerpt, pairs_lib.Excerpt]],
  oracle: oracles_base.PoseOracle | None = None,
) -> Result:
  """Tests a calibrated model on a split with cameras.

  Args:
    model: Model with a calibration.
    store: Split with the clips.
    pairs: Pairs (motion, scene), from `fixed_pairs`.
    oracle: Oracle that finds the paths of rendered pictures.

  Raises:
    UserError: If there is no calibration, clips have no cameras, a frame cannot
      be read, or by the oracle.
  """
  calibration = model.calibration
  for clip in {excerpt.clip for pair in pairs for excerpt in pair}:
    if not store.clip(clip).posed:
      raise UserError(
        f'{store.clip_id(clip)} of {store.name}/{store.split} has no cameras '
        'to test a calibration with; convert it with its cameras'
      )
  drawing = transfer_test.Rendering(model)
  # One object for each excerpt, for the caches.
  one = {excerpt.clip: excerpt for pair in pairs for excerpt in pair}
  pairs = [(one[a.clip], one[b.clip]) for a, b in pairs]
  motions, scenes = zip(*pairs, strict=True)
  paths = [_relative(store, motion) for motion in motions]

  def draw(path: np.ndarray, scene: pairs_lib.Excerpt, by: str | None):
    seen = drawing.see(scene)
    targets = calibration.poses(path[:, :3], by=by).poses
    return model.render(seen.contexts, seen.context_poses, targets)

  def drawn_by(paths: Sequence[np.ndarray], by: str | None = None) -> list:
    return [draw(x, b, by) for x, b in zip(paths, scenes, strict=True)]

  possible = rerender.is_possible(store)
  pictures, drawn, truth = {}, {}, {}
  candidates = []
  if possible or oracle is not None:
    drawn = {by: drawn_by(paths, by) for by in _MAPS} | {
      'transfer': [drawing.draw(a, b) for a, b in pairs],
      'wrong path': drawn_by(paths[1:] + paths[:1]),
      'frozen': [drawing.freeze(b) for b in scenes],
    }
  if possible:
    judge = true_pictures.TrueRenders(store, model.image_size, motions)
    _, numbers, candidates = judge.judge(motions, scenes, drawn)
    pictures = {
      row: {
        name: tables.finite_mean([x[row][name] for x in numbers])
        for name in _RESULTS
      }
      for row in drawn
    }
  if oracle is not None:
    truth = {
      row: _recovered(store, scenes, paths, clips, oracle)
      for row, clips in drawn.items()
    }
  tested = list(dict.fromkeys(motions))
  known = np.stack([_relative(store, excerpt) for excerpt in tested])
  distances = np.stack([calibration.distance(path[:, :3]) for path in known])
  choices = np.array(candidates)
  return Result(
    pictures=pictures,
    chance=tables.finite_mean(1 / choices[choices > 1]),
    pairs=len(pairs),
    drawn=truth,
    found=_found(model, drawing, tested, known),
    paths=len(tested),
    outside=float(np.mean(distances.max(1) > calibration.motions.limit)),
  )


def _relative(
  store: store_lib.FrameStore, excerpt: pairs_lib.Excerpt
) -> Float[np.ndarray, 't 4 4']:
  """Returns cameras of the targets relative to the excerpt's reference."""
  frames = np.append(excerpt.contexts[excerpt.reference], excerpt.targets)
  poses = np.tile(np.eye(4), (len(frames), 1, 1))
  poses[:, :3] = store.clip(excerpt.clip).world_to_camera[frames]
  return poses[1:] @ np.linalg.inv(poses[0])


def _recovered(
  store: store_lib.FrameStore,
  scenes: Sequence[pairs_lib.Excerpt],
  paths: Sequence[np.ndarray],
  clips: Sequence[np.ndarray],
  oracle: oracles_base.PoseOracle,
) -> poses.Summary:
  """Compares the paths that an oracle finds with those asked for."""
  nothing = np.array([], int)
  results = oracle.batch(
    [
      (clip, oracles_base.Scene(store, scene.clip, nothing))
      for clip, scene in zip(clips, scenes, strict=True)
    ]
  )
  ok = np.array([x.ok for x in results])
  found = np.stack([x.world_to_camera for x in results])
  scores = poses.score(
    np.stack(paths), np.where(ok[:, None, None, None], found, np.nan)
  )
  return poses.aggregate(scores, ok)


def _found(
  model: latent.Model,
  drawing: transfer_test.Rendering,
  tested: Sequence[pairs_lib.Excerpt],
  known: Float[np.ndarray, 'b t 4 4'],
) -> dict[str, poses.Summary]:
  """Compares the paths that the calibration finds with the true ones."""
  guesses = {}
  for by in _MAPS:
    guess = np.tile(np.eye(4), (*known.shape[:2], 1, 1))
    for i, excerpt in enumerate(tested):
      latents = drawing.see(excerpt).target_poses
      guess[i, :, :3] = model.calibration.cameras(latents, by).world_to_camera
    guesses[by] = guess
  guesses['shuffled'] = np.roll(guesses['network'], 1, axis=0)
  guesses['mean motion'] = np.broadcast_to(probe.mean_path(known), known.shape)
  everyone = np.ones(len(known), bool)
  return {
    row: poses.aggregate(poses.score(known, guess), everyone)
    for row, guess in guesses.items()
  }


def table(name: str, result: Result) -> str:
  """Formats the results as text."""
  lines = []
  if result.pictures:
    chance = tables.percent(result.chance)
    lines += [
      f'{name}: {result.pairs} scenes rendered from the cameras of another '
      'clip, against the true re-render (rank and identified in %; chance 50 '
      f'and {chance})',
      ' ' * 14 + ''.join(f'{x:>12}' for x in ('PSNR', 'rank', 'identified')),
    ]
    for row, found in result.pictures.items():
      cells = [f'{found["psnr"]:.2f}']
      cells += [tables.percent(found[x]) for x in _RESULTS[1:]]
      lines.append(f'  {row:12}' + ''.join(f'{x:>12}' for x in cells))
  if result.drawn:
    lines.append(f'{name}: paths that the oracle finds in these pictures, in %')
    lines += _rows(result.drawn, acceptance=True)
  lines.append(
    f'{name}: cameras of {result.paths} held-out paths, in %; '
    f'{tables.percent(result.outside)} % of the paths leave the domain of the '
    'calibration'
  )
  lines += _rows(result.found)
  still = result.found['network'].num_without_translation
  if still:
    lines.append(f'  {still} paths of a still camera count for rotations only')
  return '\n'.join(lines)


def _rows(
  summaries: dict[str, poses.Summary], acceptance: bool = False
) -> list[str]:
  head = ['accepted'] * acceptance + [x.upper() for x in _COLUMNS]
  lines = [' ' * 14 + ''.join(f'{x:>17}' for x in head)]
  for row, summary in summaries.items():
    cells = [tables.percent(summary.acceptance_rate)] * acceptance
    cells += [tables.percent(summary.means[x].value) for x in _COLUMNS]
    lines.append(f'  {row:12}' + ''.join(f'{x:>17}' for x in cells))
  return lines


def write(path: epath.PathLike, results: dict[str, Result]) -> None:
  """Writes the numbers by data set; None for no value."""

  def clean(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: clean(x) for key, x in value.items()}
    return tables.plain(value) if isinstance(value, float) else value

  files.write_json(
    path,
    {name: clean(dataclasses.asdict(x)) for name, x in results.items()},
  )
