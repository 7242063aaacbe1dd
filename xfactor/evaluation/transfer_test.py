"""True Pose Similarity: does the motion of one clip transfer to another scene?

The transfer test of arXiv 2510.13063 (table 1). For a pair of clips (A, B), B's
scene is rendered from the latent poses of A's target frames. A pose oracle
recovers the camera path from A's target frames and, separately, from the
rendered pictures. The score is the similarity of the two paths
(`xfactor.metrics.poses`).

Baselines show how to read the model's numbers:

  autoencoded   B's scene rendered from B's own target poses, against B's
                targets: the best that the oracle can do on the model's pictures
  true re-render  B's scene from A's cameras, if scenes can be rendered again
                (synthetic): the best that any model could do
  frozen        B's reference view for every target: no motion at all
  shuffled      A's path against the pictures of another pair's motion
  other motion  A's path against B's real frames: chance level of the data

A pair counts if the oracle trusts both of its paths. Every mean comes with the
share of these pairs and with the score that counts all others as zero, and with
the Frechet distance of the row's pictures to B's real frames: A's own frames
would have perfect paths.

If scenes can be rendered again, pictures are also compared with the truth
itself, which needs no oracle and tolerates blur: their PSNR, and how often they
are nearer to B's scene after A's motion than after other clips' motions.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from xfactor import streams
from xfactor.data import files, images, rerender
from xfactor.data.records import store as store_lib
from xfactor.evaluation import pairs as pairs_lib
from xfactor.evaluation import tables, true_pictures
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.inference import latent
from xfactor.methods import scores as methods_scores
from xfactor.metrics import frechet, poses

ROWS = (
  'model',
  'autoencoded',
  'true re-render',
  'frozen',
  'shuffled',
  'other motion',
)
_REAL, _MOTION = 'other motion', 'motion'  # B's and A's own targets.
_CHUNK = 64  # Pairs with pictures in memory at the same time.


@dataclasses.dataclass(frozen=True)
class Result:
  """Results of a transfer test.

  Attributes:
    oracle: Name and version of the oracle.
    summaries: Means by row, see the module.
    scores: Scores of every pair, by row.
    accepted: bool [pairs] by row.
    paths: 'target' and 'model', float64 [pairs, t, 4, 4] world to camera, NaN
      where the oracle does not trust them.
    distances: Frechet distance of a row's pictures to real ones, for rows with
      pictures of their own.
    distance: Name of this distance, 'fid' or 'fd_alex', or None.
    pictures: Pictures of the first pairs: 'motion' and 'drawn', uint8
      [p, t, h, w, 3], and 'scene', uint8 [p, h, w, 3].
    truth: Comparison with the true re-render, for rows with pictures; empty if
      scenes cannot be rendered again. float64 [pairs] by name, over the targets
      that are not the reference; NaN if a camera would go through a wall.
      'psnr': dB, the mean over frames, against B's scene after A's motion
      (after B's own for 'autoencoded'); NaN for the true re-render itself.
      'rank': share of the other motions after which the scene is further away
      than after the right one, by the squared error of pictures smoothed by a
      Gaussian of a 32nd of their size; a half by chance. 'identified': 1 if
      this share is 1, else 0.
    candidates: int [pairs], number of motions to choose from, the right one and
      up to 7 others that stay in free space; None if `truth` is empty.
  """

  oracle: str
  summaries: dict[str, poses.Summary]
  scores: dict[str, poses.Scores]
  accepted: dict[str, np.ndarray]
  paths: dict[str, np.ndarray]
  distances: dict[str, float]
  distance: str | None
  pictures: dict[str, np.ndarray]
  truth: dict[str, dict[str, np.ndarray]] = dataclasses.field(
    default_factory=dict
  )
  candidates: np.ndarray | None = None

  @property
  def chance(self) -> float:
    """Share that guesses would identify; NaN if there is no choice."""
    return tables.finite_mean(1 / self.candidates[self.candidates > 1])

  def true_mean(self, row: str, name: str) -> float:
    """Mean of the finite values of one of `truth`, else NaN."""
    values = self.truth.get(row, {}).get(name, np.empty(0))
    return tables.finite_mean(values)


def evaluate(
  model: latent.Model,
  store: store_lib.FrameStore,
  pairs: Sequence[tuple[pairs_lib.Excerpt, pairs_lib.Excerpt]],
  oracle: oracles_base.PoseOracle,
  *,
  target_oracle: oracles_base.PoseOracle | None = None,
  features: frechet.Features | None = None,
  num_pictures: int = 8,
  seed: int = 0,
  progress: bool = False,
) -> Result:
  """Runs the transfer test.

  Args:
    model: Model that renders.
    store: Split with the scenes.
    pairs: Pairs (motion, scene), from `fixed_pairs`.
    oracle: Oracle that recovers the paths; `cache.Cached` stores its results.
    target_oracle: Oracle of the paths of real frames; by default `oracle`.
    features: Features for the Frechet distances; by default there are none.
    num_pictures: Number of pairs whose pictures are kept.
    seed: Seed of the bootstrap.
    progress: Whether to show a progress bar.

  Raises:
    UserError: If a frame cannot be read, or by `latent.Model` or the oracle.
  """
  # One object for each excerpt: the caches look them up by identity.
  one = {_key(excerpt): excerpt for pair in pairs for excerpt in pair}
  pairs = [(one[_key(a)], one[_key(b)]) for a, b in pairs]
  drawing, anew = Rendering(model), None
  if rerender.is_possible(store):
    anew = true_pictures.TrueRenders(
      store, model.image_size, [a for a, _ in pairs]
    )
  targets, found, moments, shown = {}, {}, {}, {}
  judged, candidates = [], []
  bar = streams.progress(total=len(pairs), desc='pairs', disable=not progress)
  for begin in range(0, len(pairs), _CHUNK):
    motions, scenes = zip(*pairs[begin : begin + _CHUNK], strict=True)
    pictures = drawing.rows(motions, scenes)
    if anew is not None:
      pictures[true_pictures.TRUTH], numbers, counts = anew.judge(
        motions, scenes, pictures
      )
      judged += numbers
      candidates += counts
    motion = [drawing.see(a).targets for a in motions]
    asked = {row: (clips, scenes) for row, clips in pictures.items()}
    real = {_MOTION: (motion, motions), _REAL: asked[_REAL]}
    if target_oracle is None:
      asked |= real
    else:
      for row, paths in _find(target_oracle, real).items():
        targets.setdefault(row, []).extend(paths)
    for row, paths in _find(oracle, asked).items():
      found.setdefault(row, []).extend(paths)
    for row, clips in pictures.items():
      clips = [clip for clip in clips if clip is not None]
      if features is not None and clips:
        new = frechet.Moments.of(features(np.concatenate(clips)))
        moments[row] = moments[row] + new if row in moments else new
    for name, clips in (
      ('motion', motion),
      ('drawn', pictures['model']),
      ('scene', [clip[0] for clip in pictures['frozen']]),
    ):
      some = clips[: max(num_pictures - begin, 0)]
      shown.setdefault(name, []).extend(some)
    bar.update(len(motions))
  bar.close()
  targets = targets or found
  found['shuffled'] = found['model'][1:] + found['model'][:1]
  compared = {
    row: (targets[_REAL if row == 'autoencoded' else _MOTION], found[row])
    for row in ROWS
    if row in found
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
      for row in compared
    },
    scores=scores,
    accepted=accepted,
    paths={
      'target': _stack(targets[_MOTION]),
      'model': _stack(found['model']),
    },
    distances={
      row: frechet.distance(moments[_REAL], moments[row])
      for row in compared
      if row != _REAL and row in moments
    },
    distance=None if features is None else features.name,
    pictures={name: np.stack(clips) for name, clips in shown.items()},
    truth={
      row: {
        name: np.array([numbers[row][name] for numbers in judged])
        for name in judged[0][row]
      }
      for row in (judged[0] if judged else ())
    },
    candidates=np.array(candidates) if candidates else None,
  )


def films(
  model: latent.Model,
  store: store_lib.FrameStore,
  pairs: Sequence[tuple[pairs_lib.Excerpt, pairs_lib.Excerpt]],
  count: int,
) -> list[dict[str, Any]]:
  """Renders every frame of some motions, and of scenes moved by them.

  Args:
    model: Model that renders.
    store: Split with the clips.
    pairs: Pairs (motion, scene), from `fixed_pairs`.
    count: Number of pairs to show, the first whose cameras stay in free space.

  Returns:
    A dict for each pair: `motion`, `drawn`, `scene` (the input, at each frame)
    and, if scenes can be rendered again, `truth`, uint8 [t, h, w, 3], and
    `reference`, the frame of the motion at which the scene is not moved.
  """
  drawing, anew = Rendering(model), None
  if rerender.is_possible(store):
    anew = true_pictures.TrueRenders(store, model.image_size, [])
  out = []
  for motion, scene in pairs:
    frames = np.arange(motion.targets[0], motion.targets[-1] + 1)
    whole = dataclasses.replace(motion, targets=frames)
    film = {}
    if anew is not None:
      film['truth'] = anew.draw(whole, scene)
      if film['truth'] is None:
        continue
    reference = drawing.see(scene).contexts[[scene.reference]]
    out.append(
      film
      | {
        'motion': drawing.see(whole).targets,
        'drawn': drawing.draw(whole, scene),
        'scene': np.repeat(reference, len(frames), axis=0),
        'reference': int(
          np.flatnonzero(frames == motion.contexts[motion.reference])[0]
        ),
      }
    )
    if len(out) == count:
      break
  return out


@dataclasses.dataclass(frozen=True)
class _Seen:
  """The model's input from an excerpt, and its latent poses."""

  contexts: np.ndarray
  targets: np.ndarray
  context_poses: np.ndarray
  target_poses: np.ndarray


class Rendering:
  """Renders excerpts; caches the last ones."""

  def __init__(self, model: latent.Model):
    self._model = model
    self.see = functools.lru_cache(2 * _CHUNK)(self._see)
    self.draw = functools.lru_cache(2 * _CHUNK)(self._draw_anew)

  def rows(
    self,
    motions: Sequence[pairs_lib.Excerpt],
    scenes: Sequence[pairs_lib.Excerpt],
  ) -> dict[str, list[UInt8[np.ndarray, 't h w 3'] | None]]:
    """Pictures of each pair, by row."""
    return {
      'model': list(map(self.draw, motions, scenes)),
      'autoencoded': list(map(self.draw, scenes, scenes)),
      'frozen': list(map(self.freeze, scenes)),
      _REAL: [self.see(scene).targets for scene in scenes],
    }

  def _see(self, excerpt: pairs_lib.Excerpt) -> _Seen:
    contexts = self._read(excerpt, excerpt.contexts)
    targets = self._read(excerpt, excerpt.targets)
    both = np.append(contexts[[excerpt.reference]], targets, 0)
    return _Seen(
      contexts=contexts,
      targets=targets,
      context_poses=self._model.encode_poses(contexts, excerpt.reference),
      target_poses=self._model.encode_poses(both, 0)[1:],
    )

  def _read(self, excerpt: pairs_lib.Excerpt, frames: np.ndarray) -> np.ndarray:
    store, clip = excerpt.store, excerpt.clip
    return self._model.fit(
      [images.decode(data) for data in store.clip_frames(clip, frames)],
      f'a frame of {store.name}',
    )

  def _draw_anew(
    self, motion: pairs_lib.Excerpt, scene: pairs_lib.Excerpt
  ) -> np.ndarray:
    seen, poses_a = self.see(scene), self.see(motion).target_poses
    return self._model.render(seen.contexts, seen.context_poses, poses_a)

  def freeze(self, scene: pairs_lib.Excerpt) -> np.ndarray:
    reference = self.see(scene).contexts[[scene.reference]]
    return np.repeat(reference, len(scene.targets), axis=0)


def _find(
  oracle: oracles_base.PoseOracle,
  asked: Mapping[
    str, tuple[Sequence[np.ndarray | None], Sequence[pairs_lib.Excerpt]]
  ],
) -> dict[str, list[oracles_base.PoseResult]]:
  """Finds the paths of clips by row, in one batch; lost if there is no clip.

  Args:
    oracle: Oracle that finds them.
    asked: Clips and the excerpts whose scenes they show, by row.
  """

  def scene(row: str, excerpt: pairs_lib.Excerpt) -> oracles_base.Scene:
    frames = excerpt.targets if row in (_REAL, _MOTION) else np.array([], int)
    return oracles_base.Scene(excerpt.store, excerpt.clip, frames)

  clips = [
    (clip, scene(row, excerpt))
    for row, sides in asked.items()
    for clip, excerpt in zip(*sides, strict=True)
    if clip is not None
  ]
  paths = iter(oracle.batch(clips))
  return {
    row: [
      oracles_base.lost(len(excerpt.targets)) if clip is None else next(paths)
      for clip, excerpt in zip(*sides, strict=True)
    ]
    for row, sides in asked.items()
  }


def _key(excerpt: pairs_lib.Excerpt) -> tuple:
  where = excerpt.store.name, excerpt.clip
  return *where, tuple(excerpt.contexts), tuple(excerpt.targets)


def _stack(results: Sequence[oracles_base.PoseResult]) -> np.ndarray:
  """Returns the paths [pairs, t, 4, 4], NaN where they are not ok."""
  lost = oracles_base.lost(len(results[0].world_to_camera))
  return np.stack([(r if r.ok else lost).world_to_camera for r in results])


def write(path: epath.PathLike, result: Result) -> None:
  """Writes the numbers of a test, means and those of every pair."""
  rows = {}
  for row, summary in result.summaries.items():
    out = tables.as_json(summary, result.scores[row])
    out['accepted'] = result.accepted[row].tolist()
    if row in result.distances:
      out[result.distance] = result.distances[row]
    for name, values in result.truth.get(row, {}).items():
      out[name] = tables.plain(result.true_mean(row, name))
      out['each'][name] = [tables.plain(value) for value in values.tolist()]
    rows[row] = out
  saved = {'oracle': result.oracle, 'rows': rows}
  if result.candidates is not None:
    saved['candidates'] = result.candidates.tolist()
    saved['chance'] = tables.plain(result.chance)
  files.write_json(path, saved)


def table(name: str, result: Result) -> str:
  """Formats the means as text: percent, with 95 % intervals of AUC@20."""
  count = next(iter(result.summaries.values())).num_pairs
  head = ['accepted', *(c.upper() for c in tables.COLUMNS), '95 %', 'all pairs']
  head += [result.distance.upper()] if result.distance else []
  title = (
    f'{name}: True Pose Similarity of {count} pairs by {result.oracle}, in %; '
    'all pairs: AUC@20 with rejected pairs as 0'
  )
  if result.truth:
    head += ['PSNR', 'IDENT.']
    title += (
      '; PSNR: dB to the true re-render; IDENT.: nearest to it among those of '
      f'{tables.number(result.candidates.mean())} motions, '
      f'{tables.percent(result.chance)} by chance'
    )
  lines = [
    title,
    ' ' * 16 + ''.join(f'{h:>12}' for h in head),
  ]
  for row, summary in result.summaries.items():
    main = summary.means['auc@20']
    cells = [tables.percent(summary.acceptance_rate)]
    cells += [tables.percent(summary.means[c].value) for c in tables.COLUMNS]
    cells += [
      f'{tables.percent(main.low)}..{tables.percent(main.high)}',
      tables.percent(main.rejected_as_zero),
    ]
    if result.distance:
      cells.append(tables.number(result.distances.get(row, np.nan)))
    if result.truth:
      cells.append(tables.number(result.true_mean(row, 'psnr')))
      cells.append(tables.percent(result.true_mean(row, 'identified')))
    lines.append(f'  {row:14}' + ''.join(f'{c:>12}' for c in cells))
  return '\n'.join(lines)


def panel(result: Result) -> UInt8[np.ndarray, 'h w 3']:
  """Two rows per pair: the motion's targets; the scene, then it moved."""
  scene = result.pictures['scene'][:, None]
  rows = [
    np.concatenate([np.full_like(scene, 255), result.pictures['motion']], 1),
    np.concatenate([scene, result.pictures['drawn']], 1),
  ]
  columns = np.stack(rows, 1).reshape(-1, *rows[0].shape[1:]).swapaxes(0, 1)
  scale = max(1, 128 // scene.shape[2])
  return methods_scores.panel(list(columns), scale=scale)
