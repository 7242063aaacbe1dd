"""The fixed pairs of clips of the transfer test."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from xfactor.data import files, views
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Excerpt:
  """Frames of a clip that the transfer test uses.

  Attributes:
    store: Split with the clip.
    clip: Row of the clip in its split.
    contexts: int [c], equally spaced inside the window; the middle one is the
      reference.
    targets: int [t], equally spaced, from end to end of the window.
  """

  store: store_lib.FrameStore
  clip: int
  contexts: np.ndarray
  targets: np.ndarray

  @property
  def reference(self) -> int:
    """Index into `contexts`."""
    return (len(self.contexts) - 1) // 2


def pairs_of(
  config: ConfigDict,
  store: store_lib.FrameStore,
  motions: store_lib.FrameStore | None = None,
) -> list[tuple[Excerpt, Excerpt]]:
  """Returns `fixed_pairs` with the settings of a recipe."""
  return fixed_pairs(
    store,
    config.eval.pairs,
    contexts=config.data.contexts,
    targets=config.eval.targets,
    window=config.eval.transfer_window or config.eval.window,
    motions=motions,
  )


def path_after(
  motion: Excerpt,
  scene: Excerpt,
  frames: Int[np.ndarray, ' n'],
) -> Float[np.ndarray, 'n 4 4']:
  """Cameras of the motion's frames, moved to start at the scene's reference.

  Args:
    motion: Excerpt that gives the motion, with cameras.
    scene: Excerpt in whose world the cameras are, with cameras.
    frames: Frames of the motion's clip.
  """

  def cameras(excerpt: Excerpt, frames: np.ndarray) -> np.ndarray:
    out = np.tile(np.eye(4), (len(frames), 1, 1))
    out[:, :3] = excerpt.store.clip(excerpt.clip).world_to_camera[frames]
    return out

  def start(excerpt: Excerpt) -> np.ndarray:
    return cameras(excerpt, excerpt.contexts[[excerpt.reference]])

  return cameras(motion, frames) @ np.linalg.inv(start(motion)) @ start(scene)


def fixed_pairs(
  store: store_lib.FrameStore,
  count: int,
  *,
  contexts: int,
  targets: int,
  window: int,
  motions: store_lib.FrameStore | None = None,
) -> list[tuple[Excerpt, Excerpt]]:
  """Returns pairs of different clips, (motion, scene), the same in every run.

  They are stored next to the clips in `transfer_index-SPLIT.json`. Clips are
  used in the order of their ids' hashes; in each round every clip is the motion
  of one pair and the scene of another.

  Args:
    store: The split with the scenes.
    count: Number of pairs, if there are enough clips.
    contexts: Number of views of the scene that the model gets.
    targets: Number of views that it renders.
    window: Number of frames that contexts and targets are from.
    motions: Split with the motions; None: the same.

  Raises:
    UserError: If fewer than two clips have `window` frames, or the file names
      clips that no longer exist.
  """
  if not 2 <= targets <= window or contexts > window:
    raise UserError(
      f'a window of {window} frames cannot hold {targets} targets (at least 2) '
      f'and {contexts} contexts; change config.eval.targets or '
      '.transfer_window'
    )
  motions = motions or store
  key = f'contexts={contexts},targets={targets},window={window},pairs={count}'
  if motions.name != store.name:
    key += f',motions={motions.name}'
  chosen, path = store.remember(
    'transfer_index',
    key,
    lambda: _choose(motions, store, count, contexts, targets, window),
  )
  sides = [
    [
      Excerpt(where, row, np.array(context), np.array(target))
      for row, (_, context, target) in zip(
        where.rows_of([clip_id for clip_id, *_ in side], path).tolist(),
        side,
        strict=True,
      )
    ]
    for where, side in zip(
      (motions, store), zip(*chosen, strict=True), strict=True
    )
  ]
  return list(zip(*sides, strict=True))


def _choose(
  motions: store_lib.FrameStore,
  store: store_lib.FrameStore,
  count: int,
  contexts: int,
  targets: int,
  window: int,
) -> list[list[list]]:
  """Returns [id, contexts, targets] of both clips of each pair."""
  inside = (np.arange(contexts) + 0.5) / contexts * (window - 1)

  def rows_of(store: store_lib.FrameStore) -> list[int]:
    rows = [i for i, n in enumerate(store.num_frames) if n >= window]
    if len(rows) < 2:
      raise UserError(
        f'{len(rows)} clips of {store.name}/{store.split} have {window} '
        'frames, but the transfer test needs at least 2; reduce '
        'config.eval.transfer_window'
      )
    return sorted(rows, key=lambda i: (files.unit_hash(store.clip_id(i)), i))

  def excerpt(store: store_lib.FrameStore, row: int) -> list:
    length = int(store.num_frames[row])
    context = (length - window) // 2 + np.round(inside).astype(int)
    target = views.eval_frames(length, targets, window)
    return [store.clip_id(row), context.tolist(), target.tolist()]

  a, b = rows_of(motions), rows_of(store)
  n, m = len(a), len(b)
  # No clip moves itself.
  most = n * (m - 1) if motions.name == store.name else n * m
  return [
    [
      excerpt(motions, a[k % n]),
      excerpt(store, b[(k % n + 1 + k // n) % m]),
    ]
    for k in range(min(count, most))
  ]
