"""Pose probe: how much of the camera's pose a frozen latent pose tells.

The paper's Table 2. A three-layer perceptron (the public code's `pose_probe`:
64 features, hence z -> 256 -> 64 -> 12) reads off the latent pose of a frame
its pose relative to the reference frame, of which the latent pose is relative
too: 3 numbers are the translation, 9 a matrix whose nearest rotation is the
rotation (Levinson et al. 2020, "An Analysis of SVD for Deep Rotation
Estimation"). How the authors trained it is not published: loss and schedule are
ours.

Beside the probe stand rows that say what its numbers mean:

  shuffled      a probe of latents dealt to the wrong frames of the train split:
                what is right on average, whatever the frame
  mean motion   the train split's mean pose at each place in the window, no
                latents asked: what is right where all cameras walk alike
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
# Windows whose pictures are in memory at once.
_CHUNK = 64


def score(
  probe: probe_network.Probe,
  latents: Float[np.ndarray, 'b v z'],
  world_to_camera: Float[np.ndarray, 'b v 4 4'],
  *,
  reference: int = 0,
  scene_distance: float = 1.0,
) -> poses.Scores:
  """Returns how near the probe's paths of held-out clips come to the true ones.

  All pairs of frames count, as everywhere; the reference's own pose is known.

  Args:
    probe: From `fit`.
    latents: As for `training_rows`.
    world_to_camera: The truth; may be NaN where there is none.
    reference: As for `training_rows`.
    scene_distance: As for `poses.score`.
  """
  prediction = probe.predict(latents)
  prediction[:, reference] = np.eye(4)
  return poses.score(world_to_camera, prediction, scene_distance)


@dataclasses.dataclass(frozen=True)
class Side:
  """What of a split a probe learns from or is tested on.

  Attributes:
    name: Data set and split.
    clips: Number of clips with cameras and frames enough.
    windows: Number of windows of frames in them.
    frames: Frames whose pose is to be told, the windows' references left out.
    without_cameras: Windows left out, since cameras of theirs are not known.
  """

  name: str
  clips: int
  windows: int
  frames: int
  without_cameras: int


@dataclasses.dataclass(frozen=True)
class Result:
  """A pose probe's test.

  Attributes:
    train: What the probe learnt from.
    test: What it was tested on; a window is a path.
    losses: `Probe.loss` of the rows that are probes.
    summaries: By row, see the module.
    scores: By row, of every path.
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

  Which windows is kept beside the clips in `probe_index-SPLIT.json`. Of the
  test split it is the middle one of every clip; of the train split, by the
  hashes of their ids, of each clip one or, where there are few, several that
  share no frame. A window's most central frame is its reference.

  Args:
    model: Whose latent poses are read; it learns nothing.
    train: The split to learn from.
    test: The split to be tested on.
    targets: Frames of a window, equally spaced from end to end.
    window: Frames that they are from.
    max_windows: Of the train split.
    scene_distance: As for `poses.score`.
    config: Of the training.
    seed: Of the bootstrap and of the shuffling.

  Raises:
    UserError: If fewer than two clips of a split have cameras and `window`
      frames, a frame cannot be read, or as `api.Model` and `fit`.
  """
  if not 2 <= targets <= window:
    raise UserError(
      f'a window of {window} frames cannot hold {targets} targets (at least '
      '2); change config.eval.targets or .window'
    )
  config = config or probe_network.Config()
  reference = (targets - 1) // 2
  # The cheap part first: whether there are cameras.
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
  path = _mean_motion(learnt.world_to_camera, reference)
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
  """Windows of n clips, some of the same one, with all their cameras."""

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
  read = functools.lru_cache(maxsize=1)(store.clip)  # Windows of one in a row.
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
      f'no cameras are known of the clips of {what}, and a pose probe learns '
      'and is scored by them; leave --probe out, or evaluate on a data set '
      'that was converted with its cameras'
    )
  if (n := len(np.unique(clips[posed]))) < 2:
    raise UserError(
      f'{n} clips of {what} have {window} frames and cameras, and a pose probe '
      'needs two that do; convert more, or give a smaller config.eval.window'
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
  """Latent poses relative to the reference's, whose own is zero."""
  others = np.delete(np.arange(windows.frames.shape[1]), reference)
  out = []
  for start in range(0, len(windows.clips), _CHUNK):
    part = slice(start, start + _CHUNK)
    pictures = np.stack(
      [
        model.fit(
          [images.decode(data) for data in store.clip_frames(clip, frames)],
          f'a frame of {store.clip_id(clip)}',
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


def _mean_motion(
  world_to_camera: Float[np.ndarray, 'n t 4 4'], reference: int
) -> Float[np.ndarray, 't 4 4']:
  """The mean pose relative to the reference at each place in the window."""
  inverse = np.linalg.inv(world_to_camera[:, reference, None])
  mean = np.mean(world_to_camera @ inverse, axis=0)
  rotation = jnp.asarray(mean[:, :3, :3], jnp.float32)
  mean[:, :3, :3] = probe_network.nearest_rotation(rotation)
  return mean


def write(path: epath.PathLike, result: Result) -> None:
  """Writes the numbers of a test, with those of every path."""
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
  """The means as lines of text: percent, with 95 % intervals of AUC@20."""
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
