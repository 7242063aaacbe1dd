"""Pose probe: measures how much of the camera pose a frozen latent pose has.

The paper's Table 2. A three-layer perceptron (the public code's `pose_probe`:
64 features, hence z -> 256 -> 64 -> 12) predicts the pose of a frame relative
to the reference frame from the latent pose, which is relative to the same
frame. 3 outputs are the translation, 9 a matrix whose nearest rotation is the
rotation (Levinson et al. 2020, "An Analysis of SVD for Deep Rotation
Estimation"). The authors' training is not published: loss and schedule are
ours.

Baselines show how to read the probe's numbers:

  shuffled      a probe of latents assigned to the wrong frames of the train
                split: the score of the average pose
  mean motion   the train split's mean pose at each position in the window,
                without latents: the score if all cameras moved the same way
"""

import dataclasses
import functools

import einops
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from xfactor.data import files, images, views
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import probe_network, tables
from xfactor.inference import latent
from xfactor.metrics import poses

ROWS = ('probe', 'shuffled', 'mean motion')
# Windows with pictures in memory at the same time.
_CHUNK = 64


def score(
  probe: probe_network.Probe,
  latents: Float[np.ndarray, 'b v z'],
  world_to_camera: Float[np.ndarray, 'b v 4 4'],
  *,
  reference: int = 0,
  scene_distance: float = 1.0,
) -> poses.Scores:
  """Scores the probe's paths of held-out clips against the true ones.

  All pairs of frames count, as in other tests; the reference's own pose is
  given.

  Args:
    probe: Probe from `fit`.
    latents: Latents as for `training_rows`.
    world_to_camera: True poses; may be NaN where unknown.
    reference: Index as for `training_rows`.
    scene_distance: Distance as for `poses.score`.
  """
  prediction = probe.predict(latents)
  prediction[:, reference] = np.eye(4)
  return poses.score(world_to_camera, prediction, scene_distance)


@dataclasses.dataclass(frozen=True)
class Side:
  """Data on which a probe is trained or tested.

  Attributes:
    name: Data set and split.
    clips: Number of clips with cameras and enough frames.
    windows: Number of windows of frames in them.
    frames: Number of frames to predict, without the windows' references.
    without_cameras: Number of windows skipped because cameras are unknown.
  """

  name: str
  clips: int
  windows: int
  frames: int
  without_cameras: int


@dataclasses.dataclass(frozen=True)
class Result:
  """Results of a pose probe.

  Attributes:
    train: Training data of the probe.
    test: Test data; a window is a path.
    losses: `Probe.loss` of the rows that are probes.
    summaries: Means by row, see the module.
    scores: Scores of every path, by row.
  """

  train: Side
  test: Side
  losses: dict[str, float]
  summaries: dict[str, poses.Summary]
  scores: dict[str, poses.Scores]


def evaluate(
  model: latent.Model,
  train: store_lib.FrameStore,
  test: store_lib.FrameStore,
  *,
  targets: int,
  window: int,
  max_windows: int = 512,
  scene_distance: float = 1.0,
  config: probe_network.Config | None = None,
  seed: int = 0,
) -> Result:
  """Fits a probe on the train split and scores it on the test split.

  The choice of windows is stored next to the clips in `probe_index-SPLIT.json`.
  In the test split it is the middle one of every clip. In the train split it is
  one per clip, by the hashes of the clips' ids, or several that share no frame
  if there are few clips. A window's central frame is its reference.

  Args:
    model: Model with the latent poses; it is not trained.
    train: Split to train on.
    test: Split to test on.
    targets: Number of frames of a window, equally spaced from end to end.
    window: Number of frames that they are chosen from.
    max_windows: Largest number of windows of the train split.
    scene_distance: Distance as for `poses.score`.
    config: Settings of the training.
    seed: Seed of the bootstrap and of the shuffling.

  Raises:
    UserError: If fewer than two clips of a split have cameras and `window`
      frames, a frame cannot be read, or by `latent.Model` or `fit`.
  """
  if not 2 <= targets <= window:
    raise UserError(
      f'a window of {window} frames cannot hold {targets} targets (at least '
      '2); change config.eval.targets or .window'
    )
  config = config or probe_network.Config()
  reference = (targets - 1) // 2
  # The cheap part first: check that there are cameras.
  learnt, tested = (
    _posed_windows(store, targets, window, count)
    for store, count in ((train, max_windows), (test, None))
  )
  latents = _encode(model, train, learnt, reference)
  rows, relative = probe_network.training_rows(
    latents, learnt.world_to_camera, reference=reference
  )
  dealt = np.random.default_rng(seed).permutation(rows)
  probes = {
    'probe': probe_network.fit(rows, relative, config),
    'shuffled': probe_network.fit(dealt, relative, config),
  }
  latents = _encode(model, test, tested, reference)
  scores = {
    row: score(
      probe,
      latents,
      tested.world_to_camera,
      reference=reference,
      scene_distance=scene_distance,
    )
    for row, probe in probes.items()
  }
  inverse = np.linalg.inv(learnt.world_to_camera[:, reference, None])
  path = mean_path(learnt.world_to_camera @ inverse)
  scores['mean motion'] = poses.score(
    tested.world_to_camera,
    np.broadcast_to(path, tested.world_to_camera.shape),
    scene_distance,
  )
  everyone = np.ones(len(latents), bool)
  return Result(
    train=learnt.side(train),
    test=tested.side(test),
    losses={row: probe.loss for row, probe in probes.items()},
    summaries={
      row: poses.aggregate(scores[row], everyone, seed=seed) for row in ROWS
    },
    scores=scores,
  )


@dataclasses.dataclass(frozen=True)
class _Windows:
  """n windows of clips, with all their cameras; clips may repeat."""

  clips: Int[np.ndarray, ' n']
  frames: Int[np.ndarray, 'n t']
  world_to_camera: Float[np.ndarray, 'n t 4 4']
  without_cameras: int

  def side(self, store: store_lib.FrameStore) -> Side:
    count, targets = self.frames.shape
    return Side(
      name=f'{store.name}/{store.split}',
      clips=len(np.unique(self.clips)),
      windows=count,
      frames=count * (targets - 1),
      without_cameras=self.without_cameras,
    )


def _posed_windows(
  store: store_lib.FrameStore, targets: int, window: int, count: int | None
) -> _Windows:
  """Returns the fixed windows of a split whose cameras are known."""
  chosen, path = store.remember(
    'probe_index',
    f'targets={targets},window={window},windows={count or "one a clip"}',
    lambda: _choose(store, targets, window, count),
  )
  clips = store.rows_of([clip_id for clip_id, _ in chosen], path)
  frames = np.array([frames for _, frames in chosen], int).reshape(-1, targets)
  # Consecutive windows share a clip.
  read = functools.lru_cache(maxsize=1)(store.clip)
  world_to_camera = np.full((*frames.shape, 4, 4), np.nan)
  for i, (clip, places) in enumerate(zip(clips.tolist(), frames, strict=True)):
    known = read(clip).world_to_camera
    if known is not None:
      world_to_camera[i, :, :3] = known[places]
      world_to_camera[i, :, 3] = (0, 0, 0, 1)
  posed = np.isfinite(world_to_camera).all((1, 2, 3))
  what = f'{store.name}/{store.split}'
  if len(clips) and not posed.any():
    raise UserError(
      f'there are no cameras for the clips of {what}, but a pose probe needs '
      'them; remove --probe, or evaluate on a data set that was converted with '
      'its cameras'
    )
  if (n := len(np.unique(clips[posed]))) < 2:
    raise UserError(
      f'{n} clips of {what} have {window} frames and cameras, but a pose probe '
      'needs at least 2; convert more or reduce config.eval.window'
    )
  return _Windows(
    clips=clips[posed],
    frames=frames[posed],
    world_to_camera=world_to_camera[posed],
    without_cameras=int((~posed).sum()),
  )


def _choose(
  store: store_lib.FrameStore, targets: int, window: int, count: int | None
) -> list[tuple[str, list[int]]]:
  """Returns (id, frames), at most `count`; one of every clip if None."""
  rows = [i for i, n in enumerate(store.num_frames) if n >= window]
  rows.sort(key=lambda i: (files.unit_hash(store.clip_id(i)), i))
  each = max(1, count // max(len(rows), 1)) if count else 1
  out = []
  for row in rows[:count]:
    length = int(store.num_frames[row])
    parts = min(each, length // window)
    edges = np.arange(parts + 1) * length // parts
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
      frames = begin + views.eval_frames(int(end - begin), targets, window)
      out.append((store.clip_id(row), frames.tolist()))
  return out


def _encode(
  model: latent.Model,
  store: store_lib.FrameStore,
  windows: _Windows,
  reference: int,
) -> Float[np.ndarray, 'n t z']:
  """Returns latent poses relative to the reference; its own is zero."""
  others = np.delete(np.arange(windows.frames.shape[1]), reference)
  out = []
  for start in range(0, len(windows.clips), _CHUNK):
    part = slice(start, start + _CHUNK)
    pictures = np.stack(
      [
        model.fit(
          [images.decode(data) for data in store.clip_frames(clip, frames)],
          f'a frame of {store.name}',
        )
        for clip, frames in zip(
          windows.clips[part].tolist(), windows.frames[part], strict=True
        )
      ]
    )
    latents = model.encode_pairs(
      np.repeat(pictures[:, reference], len(others), axis=0),
      einops.rearrange(pictures[:, others], 'n t h w c -> (n t) h w c'),
    )
    latents = einops.rearrange(latents, '(n t) z -> n t z', t=len(others))
    out.append(np.insert(latents, reference, 0, axis=1))
  return np.concatenate(out)


def mean_path(
  relative: Float[np.ndarray, 'n t 4 4'],
) -> Float[np.ndarray, 't 4 4']:
  """Returns the mean pose, relative to a reference, of each frame of paths."""
  mean = np.mean(relative, axis=0)
  rotation = jnp.asarray(mean[:, :3, :3], jnp.float32)
  mean[:, :3, :3] = probe_network.nearest_rotation(rotation)
  return mean


def write(path: epath.PathLike, result: Result) -> None:
  """Writes the numbers of a test, means and those of every path."""
  files.write_json(
    path,
    {
      'train': dataclasses.asdict(result.train),
      'test': dataclasses.asdict(result.test),
      'losses': result.losses,
      'rows': {
        row: tables.as_json(summary, result.scores[row])
        for row, summary in result.summaries.items()
      },
    },
  )


def table(name: str, result: Result) -> str:
  """Formats the means as text: percent, with 95 % intervals of AUC@20."""
  train, test = result.train, result.test
  still = result.summaries['probe'].num_without_translation
  lines = [
    f'{name}: pose probe of {train.frames} frames of {train.clips} clips, '
    f'tested on {test.windows} paths of other clips, in %; loss '
    + ', '.join(f'{loss:.3f} {row}' for row, loss in result.losses.items())
    + f'; {still} paths of a still camera count for RRA only' * bool(still),
    ' ' * 16 + ''.join(f'{c.upper():>12}' for c in (*tables.COLUMNS, '95 %')),
  ]
  for row, summary in result.summaries.items():
    main = summary.means['auc@20']
    cells = [tables.percent(summary.means[c].value) for c in tables.COLUMNS]
    cells += [f'{tables.percent(main.low)}..{tables.percent(main.high)}']
    lines.append(f'  {row:14}' + ''.join(f'{c:>12}' for c in cells))
  return '\n'.join(lines)
