"""True Pose Similarity: does motion read off one clip move another scene alike?

The transfer test of arXiv 2510.13063 (table 1): for a pair of clips (A, B), B's
scene is drawn from the poses of A's target frames; a pose oracle recovers the
camera's path from A's target frames and, alone, from the drawn pictures; the
score is how alike the two paths are (`poses.py`).

Beside the model stand rows that say what its numbers mean:

  autoencoded   B's scene drawn from B's own target poses, against B's targets:
                what the oracle makes of the model's pictures at best
  frozen        B's reference view for every target: no motion at all
  shuffled      A's path against the pictures that another pair's motion made
  other motion  A's path against B's real frames: what chance and the data give

A pair counts where the oracle trusts both of its paths. The share of those and
the score with all others as zero stand beside every mean.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8

from xfactor import api
from xfactor.data import images, records, views
from xfactor.errors import UserError
from xfactor.evaluation import oracles, poses
from xfactor.training import writers

ROWS = ('model', 'autoencoded', 'frozen', 'shuffled', 'other motion')
_COLUMNS = ('rra@20', 'rta@20', 'auc@10', 'auc@20', 'auc@30')


@dataclasses.dataclass(frozen=True)
class Excerpt:
  """The frames of a clip that the test looks at.

  Attributes:
    clip: Row of the clip in its split.
    contexts: int [c], equally spaced inside the window; the middle one is the
      reference.
    targets: int [t], equally spaced, from end to end of the window.
  """

  clip: int
  contexts: np.ndarray
  targets: np.ndarray

  @property
  def reference(self) -> int:
    """Index into `contexts`."""
    return (len(self.contexts) - 1) // 2


@dataclasses.dataclass(frozen=True)
class Result:
  """A transfer test.

  Attributes:
    oracle: What recovered the paths.
    summaries: By row, see the module.
    scores: By row, of every pair.
    accepted: By row, bool [pairs].
    paths: 'target' and 'model', float64 [pairs, t, 4, 4] world to camera, NaN
      where the oracle does not trust them.
    pictures: Of the first pairs: 'motion' and 'drawn', uint8 [p, t, h, w, 3],
      and 'scene', uint8 [p, h, w, 3].
  """

  oracle: str
  summaries: dict[str, poses.Summary]
  scores: dict[str, poses.Scores]
  accepted: dict[str, np.ndarray]
  paths: dict[str, np.ndarray]
  pictures: dict[str, np.ndarray]


def fixed_pairs(
  store: records.FrameStore,
  count: int,
  *,
  contexts: int,
  targets: int,
  window: int,
) -> list[tuple[Excerpt, Excerpt]]:
  """Returns pairs of different clips, (motion, scene), the same in every run.

  They are kept beside the clips in `transfer_index-SPLIT.json`. Clips are taken
  in the order of their ids' hashes; in each round every clip is the motion of a
  pair once, and the scene of another.

  Args:
    store: The split.
    count: Pairs, if there are so many.
    contexts: Views of the scene that are given to the model.
    targets: Views that it draws.
    window: Frames that contexts and targets are from.

  Raises:
    UserError: If fewer than two clips have `window` frames, or the file names
      clips that are gone.
  """
  if not 2 <= targets <= window or contexts > window:
    raise UserError(
      f'a window of {window} frames cannot hold {targets} targets (at least 2) '
      f'and {contexts} contexts; change config.eval.targets or .window'
    )
  chosen, path = store.remember(
    'transfer_index',
    f'contexts={contexts},targets={targets},window={window},pairs={count}',
    lambda: _choose(store, count, contexts, targets, window),
  )
  sides = [
    [
      Excerpt(row, np.array(context), np.array(target))
      for row, (_, context, target) in zip(
        store.rows_of([clip_id for clip_id, *_ in side], path).tolist(),
        side,
        strict=True,
      )
    ]
    for side in zip(*chosen, strict=True)
  ]
  return list(zip(*sides, strict=True))


def _choose(
  store: records.FrameStore,
  count: int,
  contexts: int,
  targets: int,
  window: int,
) -> list[list[list]]:
  """Returns [id, contexts, targets] of both clips of each pair."""
  rows = [i for i, n in enumerate(store.num_frames) if n >= window]
  n = len(rows)
  if n < 2:
    raise UserError(
      f'{n} clips of {store.name}/{store.split} have {window} frames, and the '
      'transfer test needs two that do; give a smaller config.eval.window'
    )
  rows.sort(key=lambda i: (records.unit_hash(store.clip_id(i)), i))
  inside = (np.arange(contexts) + 0.5) / contexts * (window - 1)

  def excerpt(row: int) -> list:
    length = int(store.num_frames[row])
    context = (length - window) // 2 + np.round(inside).astype(int)
    target = views.eval_frames(length, targets, window)
    return [store.clip_id(row), context.tolist(), target.tolist()]

  return [
    [excerpt(rows[k % n]), excerpt(rows[(k + 1 + k // n) % n])]
    for k in range(min(count, n * (n - 1)))
  ]


def evaluate(
  model: api.Model,
  store: records.FrameStore,
  pairs: Sequence[tuple[Excerpt, Excerpt]],
  oracle: oracles.PoseOracle,
  *,
  num_pictures: int = 8,
  seed: int = 0,
) -> Result:
  """Runs the transfer test.

  Args:
    model: That draws.
    store: The split with the clips.
    pairs: (motion, scene), from `fixed_pairs`.
    oracle: Recovers the paths; `oracles.Cached` remembers them.
    num_pictures: Pairs whose pictures to keep.
    seed: Of the bootstrap.

  Raises:
    UserError: If a frame cannot be read, or as `api.Model` and the oracle.
  """

  def read(clip: int, frames: np.ndarray) -> UInt8[np.ndarray, 'n h w 3']:
    return model.fit(
      [images.decode(data) for data in store.clip_frames(clip, frames)],
      f'a frame of {store.clip_id(clip)}',
    )

  def draw(motion: Excerpt, scene: Excerpt) -> UInt8[np.ndarray, 't h w 3']:
    start = motion.contexts[motion.reference]
    seen = read(motion.clip, np.append(start, motion.targets))
    context = read(scene.clip, scene.contexts)
    return model.render(
      context,
      model.encode_poses(context, scene.reference),
      model.encode_poses(seen, 0)[1:],
    )

  def frozen(scene: Excerpt) -> UInt8[np.ndarray, 't h w 3']:
    reference = read(scene.clip, scene.contexts[[scene.reference]])
    return np.repeat(reference, len(scene.targets), axis=0)

  def find(
    clips: Sequence[np.ndarray], excerpts: Sequence[Excerpt], real: bool
  ) -> list[oracles.PoseResult]:
    return oracle.batch(
      [
        (
          pictures,
          oracles.Scene(
            store, excerpt.clip, excerpt.targets if real else np.array([], int)
          ),
        )
        for pictures, excerpt in zip(clips, excerpts, strict=True)
      ]
    )

  motions, scenes = zip(*pairs, strict=True)
  real_a = [read(a.clip, a.targets) for a in motions]
  drawn = [draw(a, b) for a, b in pairs]
  still = [frozen(b) for b in scenes]
  path_a = find(real_a, motions, real=True)
  path_b = find([read(b.clip, b.targets) for b in scenes], scenes, real=True)
  moved = find(drawn, scenes, real=False)
  compared = {
    'model': (path_a, moved),
    'autoencoded': (
      path_b,
      find([draw(b, b) for b in scenes], scenes, real=False),
    ),
    'frozen': (path_a, find(still, scenes, real=False)),
    'shuffled': (path_a, moved[1:] + moved[:1]),
    'other motion': (path_a, path_b),
  }
  scores = {
    row: poses.score(*map(_stack, paths)) for row, paths in compared.items()
  }
  accepted = {
    row: np.array([a.ok and b.ok for a, b in zip(*paths, strict=True)])
    for row, paths in compared.items()
  }
  return Result(
    oracle=f'{oracle.name} {oracle.version}',
    summaries={
      row: poses.aggregate(scores[row], accepted[row], seed=seed)
      for row in ROWS
    },
    scores=scores,
    accepted=accepted,
    paths={'target': _stack(path_a), 'model': _stack(moved)},
    pictures={
      'motion': np.stack(real_a[:num_pictures]),
      'drawn': np.stack(drawn[:num_pictures]),
      'scene': np.stack([view[0] for view in still[:num_pictures]]),
    },
  )


def _stack(results: Sequence[oracles.PoseResult]) -> np.ndarray:
  """Returns the paths [pairs, t, 4, 4], NaN for those that do not count."""
  lost = np.full_like(results[0].world_to_camera, np.nan)
  return np.stack([r.world_to_camera if r.ok else lost for r in results])


def write(path: epath.PathLike, result: Result) -> None:
  """Writes the numbers of a test, with those of every pair."""

  def plain(array: np.ndarray) -> list:
    return [x if np.isfinite(x) else None for x in array.tolist()]

  records.write_json(
    path,
    {
      'oracle': result.oracle,
      'rows': {
        row: {
          'pairs': summary.num_pairs,
          'acceptance': summary.acceptance_rate,
          'without_translation': summary.num_without_translation,
          'mean': {
            name: _plain(dataclasses.asdict(mean))
            for name, mean in summary.means.items()
          },
          'accepted': result.accepted[row].tolist(),
          'each': {
            name: plain(values)
            for name, values in result.scores[row].metrics.items()
          },
        }
        for row, summary in result.summaries.items()
      },
    },
  )


def _plain(values: dict[str, float]) -> dict[str, float | None]:
  return {k: v if np.isfinite(v) else None for k, v in values.items()}


def table(name: str, result: Result) -> str:
  """The means as lines of text: percent, with 95 % intervals of AUC@20."""
  count = next(iter(result.summaries.values())).num_pairs
  head = ['accepted', *(c.upper() for c in _COLUMNS), '95 %', 'all pairs']
  lines = [
    f'{name}: True Pose Similarity of {count} pairs by {result.oracle}, in %; '
    'all pairs: AUC@20 with rejected ones as 0',
    ' ' * 16 + ''.join(f'{h:>12}' for h in head),
  ]
  for row, summary in result.summaries.items():
    main = summary.means['auc@20']
    cells = [_percent(summary.acceptance_rate)]
    cells += [_percent(summary.means[c].value) for c in _COLUMNS]
    cells += [
      f'{_percent(main.low)}..{_percent(main.high)}',
      _percent(main.rejected_as_zero),
    ]
    lines.append(f'  {row:14}' + ''.join(f'{c:>12}' for c in cells))
  return '\n'.join(lines)


def _percent(value: float) -> str:
  return f'{100 * value:.1f}' if np.isfinite(value) else '-'


def panel(result: Result) -> UInt8[np.ndarray, 'h w 3']:
  """Two rows a pair: the motion's targets; the scene, and it after them."""
  scene = result.pictures['scene'][:, None]
  rows = [
    np.concatenate([np.full_like(scene, 255), result.pictures['motion']], 1),
    np.concatenate([scene, result.pictures['drawn']], 1),
  ]
  columns = np.stack(rows, 1).reshape(-1, *rows[0].shape[1:]).swapaxes(0, 1)
  scale = max(1, 128 // scene.shape[2])
  return writers.panel(list(columns), scale=scale)
