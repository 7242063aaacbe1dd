"""The fixed held-out examples of a data set."""

import dataclasses
import os

import numpy as np

from xfactor.data import files, views
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError

EVAL_CLIPS = 256


@dataclasses.dataclass(frozen=True)
class EvalIndex:
  """Fixed examples of a split, which make scores of runs comparable.

  Attributes:
    clip_ids: Id of the clip of each example.
    clips: int64 [examples], indices of these clips within the split.
    frames: int64 [examples, views], counted from the clip's beginning.
  """

  clip_ids: tuple[str, ...]
  clips: np.ndarray
  frames: np.ndarray


def choose_eval(
  store: store_lib.FrameStore,
  num_views: int,
  window: int,
  num_clips: int = EVAL_CLIPS,
  *,
  ordered: bool = True,
  cameras: bool = False,
) -> list[tuple[str, list[int]]]:
  """Chooses evaluation examples as a function of the data.

  The clips are those with the smallest hashes of their ids, so that the choice
  changes little when clips are added; see `eval_index` for the rest.

  Returns:
    (clip id, frames counted from the clip's beginning), at most `num_clips`.

  Raises:
    UserError: If no clip is long enough and has the cameras that are needed.
  """
  if not 2 <= num_views <= window:
    raise UserError(
      f'evaluation needs at least two views and a window of at least as many '
      f'frames, not {num_views} views in {window} frames'
    )
  lengths = store.num_frames
  if cameras:
    lengths = np.where(store.posed, lengths, 0)
  shortest = window if ordered else num_views
  long_enough = [
    (store.clip_id(i), int(n)) for i, n in enumerate(lengths) if n >= shortest
  ]
  if not long_enough:
    raise UserError(
      f'no clip of {store.name}/{store.split} {"with cameras " * cameras}has '
      f'the {shortest} frames that evaluation needs; the longest has '
      f'{lengths.max()}: use '
      + ('a smaller window' if ordered else 'fewer views')
    )
  long_enough.sort(key=lambda clip: (files.unit_hash(clip[0]), clip[0]))
  out = []
  for clip_id, length in long_enough[:num_clips]:
    if ordered:
      frames = views.eval_frames(length, num_views, window)
    else:
      rng = np.random.default_rng(int(files.unit_hash(clip_id) * 2**53))
      frames = views.choose_set(rng, length, num_views, window)
    out.append((clip_id, frames.tolist()))
  return out


def eval_index(
  data_dir: str | os.PathLike[str],
  name: str,
  split: str = 'test',
  num_views: int = 2,
  window: int = 20,
  version: str | None = None,
  *,
  ordered: bool = True,
  cameras: bool = False,
) -> EvalIndex:
  """Returns the fixed evaluation examples of a split, one per clip.

  They are stored in `clips/VERSION/eval_index-SPLIT.json`. If the file lacks
  this combination of views and window, `choose_eval` chooses the examples, and
  they are added to it unless the folder is read-only.

  Ordered views are spread evenly over the `window` frames in the middle of the
  clip. Unordered views are sampled by `views.choose_set`, seeded by the clip's
  id, in random order: the first are a model's inputs.

  Args:
    data_dir: Folder of converted data sets.
    name: Name of the data set.
    split: Name of the split, for instance 'test'.
    num_views: Views per example.
    window: Frames from the first to the last view, both counted; a maximum if
      views are not ordered.
    version: Semantic version; the newest by default.
    ordered: Whether the views are in order and evenly spread, or a random set.
    cameras: Whether to skip clips without cameras.

  Raises:
    UserError: Like `open_split`, or if no clip is long enough (`window` frames,
      or `num_views` of a random set) or has the cameras that are needed.
  """
  store = store_lib.open_split(data_dir, name, split, version)
  examples, path = store.remember(
    'eval_index',
    f'views={num_views},window={window}'
    + ',random' * (not ordered)
    + ',cameras' * cameras,
    lambda: choose_eval(
      store, num_views, window, ordered=ordered, cameras=cameras
    ),
  )
  ids = tuple(clip_id for clip_id, _ in examples)
  return EvalIndex(
    clip_ids=ids,
    clips=store.rows_of(ids, path),
    frames=np.array([f for _, f in examples], np.int64),
  )
