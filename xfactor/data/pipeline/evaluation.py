"""Batches of the fixed held-out examples."""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from xfactor.data.pipeline import parts, reading
from xfactor.data.records import eval_index
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError


class _LoadEval:
  """Reads one example of a fixed evaluation index; picklable."""

  def __init__(
    self,
    store: store_lib.FrameStore,
    index: eval_index.EvalIndex,
    shape: tuple[int, int],
    cameras: bool,
  ):
    self._store = store
    self._index = index
    self._shape = shape
    self._cameras = cameras

  def __call__(self, example: int) -> dict[str, Any]:
    # Padding repeats the first example, which needs no special case.
    number = max(example, 0)
    clip, frames = int(self._index.clips[number]), self._index.frames[number]
    pixels = np.empty((len(frames), *self._shape, 3), np.uint8)
    try:
      reading.read_views(self._store, clip, frames, pixels)
      known = self._store.clip(clip) if self._cameras else None
    except reading.UNREADABLE as e:
      # Not replaced: that would change the meaning of the scores.
      raise UserError(
        f'cannot read clip {self._index.clip_ids[number]} frames '
        f'{frames.tolist()} of {self._store}: {e}; copy or convert the data '
        'set again'
      ) from e
    if known and not known.posed:
      raise UserError(
        f'clip {known.id} of {self._store} has no cameras, which posed models '
        'need; choose the evaluation index with cameras=True'
      )
    return {
      'images': pixels,
      'frames': frames.astype(np.int32),
      'clip': np.int64(clip),
      'example': np.int64(number),
      'mask': np.bool_(example >= 0),
    } | (reading.cameras_of(known, frames, self._shape) if known else {})


def eval_batches(
  data_dir: str,
  name: str,
  index: eval_index.EvalIndex,
  *,
  image_size: int,
  image_width: int | None = None,
  cameras: bool = False,
  batch_size: int,
  split: str = 'test',
  version: str | None = None,
  order: Sequence[int] | np.ndarray | None = None,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the examples of a fixed evaluation index, in batches of one shape.

  A batch has images uint8 [B, V, image_size, image_width, 3], frames int32
  [B, V], clip int64 [B], example int64 [B] (place in the index) and mask bool
  [B], False for the padding of the last batch; B = batch_size / process_count.
  All processes get the same number of batches. With cameras it also has
  intrinsics float32 [B, V, 4] and world_to_camera float32 [B, V, 3, 4]; see
  `Pipeline.batches`.

  Args:
    data_dir: Folder of converted data sets.
    name: Name of the data set.
    index: Fixed examples, from `eval_index.eval_index`.
    image_size: Height in pixels.
    image_width: Width in pixels; None makes squares.
    cameras: Whether to read the frames' cameras.
    batch_size: Examples per batch over all processes.
    split: Split of the index.
    version: Semantic version; the newest by default.
    order: Examples to read, in order; all of them by default.
    process_index: Index of this process and of its share of each batch.
    process_count: Number of processes, which get equal shares.
    threads: Batches read at the same time.

  Raises:
    UserError: If the data set is missing, a frame cannot be read, or a clip
      lacks cameras that are needed.
  """
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f'the evaluation batch of {batch_size} examples does not divide evenly '
      f'among {process_count} processes'
    )
  store = store_lib.open_split(data_dir, name, split, version)
  examples = list(range(len(index.clips)) if order is None else order)
  examples += [-1] * (-len(examples) % batch_size)
  rows = batch_size // process_count
  own = [
    int(example)
    for first in range(process_index * rows, len(examples), batch_size)
    for example in examples[first : first + rows]
  ]
  dataset = (
    grain.MapDataset.source(own)
    .map(_LoadEval(store, index, parts.shape(image_size, image_width), cameras))
    .batch(rows)
  )
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  yield from dataset.to_iter_dataset(options)
