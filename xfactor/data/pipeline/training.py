"""Reads records into batches for training, with Grain.

Element i of the training stream is a pure function of (seed, i): its data set,
clip, frames and stage of the window curriculum. Every process makes its own
rows of a global batch, so the global batches do not depend on the number of
processes, threads or workers. The only state of an iterator is the step, from
which a run resumes.

No JAX here: worker processes import this module.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from xfactor.data import files
from xfactor.data.pipeline import fingerprint, parts, reading
from xfactor.data.pipeline import order as order_lib
from xfactor.errors import UserError

# Increment this when a change here gives a step other data than before.
_ORDER = 1
# Elements of a data set before `max_bad_fraction` applies.
_MIN_JUDGED = 1000


class Batches(Iterator[dict[str, np.ndarray]]):
  """Endless batches of one process; see `Pipeline.batches`.

  Attributes:
    bad: Number of unreadable examples so far, by data set.
  """

  def __init__(
    self, batches: Iterator[dict[str, np.ndarray]], config: parts.DataConfig
  ):
    self._batches = batches
    self._config = config
    self._seen = np.zeros(len(config.parts), np.int64)
    self._bad = np.zeros(len(config.parts), np.int64)

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    part = batch['part']
    size = len(self._config.parts)
    bad = batch.pop('bad')
    self._bad += np.bincount(part, bad, size).astype(np.int64)
    # A replaced example counts as two (or more) attempts.
    self._seen += np.bincount(part, 1 + bad, size).astype(np.int64)
    self._judge()
    return batch

  def _judge(self) -> None:
    for part, seen, bad in zip(
      self._config.parts, self._seen, self._bad, strict=True
    ):
      if seen >= _MIN_JUDGED and bad > self._config.max_bad_fraction * seen:
        raise UserError(
          f'{bad} of {seen} examples of data set {part.name!r} '
          f'({part.split}) could not be read, more than '
          f'{self._config.max_bad_fraction:.2%}; the log names the first; '
          'copy or convert the data set again'
        )

  @property
  def bad(self) -> dict[str, int]:
    out = {}
    for part, count in zip(self._config.parts, self._bad, strict=True):
      out[part.name] = out.get(part.name, 0) + int(count)
    return out

  def bad_count(self) -> int:
    """Returns the number of unreadable examples so far."""
    return int(self._bad.sum())

  def close(self) -> None:
    """Stops the threads or workers that read ahead."""
    self._batches.close()


class Pipeline:
  """The training stream of one process.

  Attributes:
    config: Settings of the data.
    num_clips: Number of usable clips (long enough, with cameras) by part.
  """

  def __init__(
    self,
    config: parts.DataConfig,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Opens the data sets.

    Args:
      config: Settings of the data.
      process_index: Index of this process and of its share of global batches.
      process_count: Number of processes, which get equal shares.

    Raises:
      UserError: If a data set is missing or unusable, or the batch cannot be
        divided.
    """
    parts.check(config, process_index, process_count)
    self.config = config
    self._process = process_index, process_count
    self._parts = [parts.open_entry(config, part) for part in config.parts]
    self.num_clips = [len(p.rows) for p in self._parts]

  def dataset(self) -> grain.MapDataset:
    """Returns this process's batches by step, for random access."""
    index, count = self._process
    order = order_lib.Order(
      self.config.seed,
      [part.weight for part in self.config.parts],
      self.num_clips,
      [part.start * self.config.batch_size for part in self.config.parts],
    )
    share = order_lib.Share(order, self.config.batch_size, index, count)
    load = reading.Load(self.config, self._parts)
    return grain.MapDataset.source(share).map(load)

  def batches(self, start_step: int = 0) -> Batches:
    """Returns this process's endless batches, starting at a step.

    A batch has, with B = batch_size / process_count and V views:
      images: uint8 [B, V, image_size, image_width, 3]
      frames: int32 [B, V], counted from the clip's beginning
      clip: int64 [B], index of the clip within its split
      part: int32 [B], index of the data set in `config.parts`
      index: int64 [B], position in the stream: step * batch_size + ...
    and, with `config.cameras`, the cameras of the cropped pictures:
      intrinsics: float32 [B, V, 4], normalised (fx, fy, cx, cy)
      world_to_camera: float32 [B, V, 3, 4], [R|t]

    Raises:
      UserError: While iterating, if too many examples are unreadable.
    """
    config = self.config
    stream = self.dataset()[start_step:].to_iter_dataset(
      grain.ReadOptions(
        num_threads=config.threads,
        prefetch_buffer_size=config.prefetch if config.threads else 0,
      )
    )
    if config.workers:
      stream = stream.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=config.workers, per_worker_buffer_size=1
        )
      )
    return Batches(iter(stream), config)

  def fingerprint(self) -> dict[str, Any]:
    """Returns the settings that determine the data and their order, as JSON.

    A resumed run must have the same, or its steps get other data; see
    `fingerprint.differences`. Key `sha256` is the digest of the rest. Settings
    of speed and the number of processes are not included.
    """
    config = self.config
    content = {
      'order': _ORDER,
      'seed': config.seed,
      'batch_size': config.batch_size,
      'image_size': config.image_size,
      'min_length': config.min_length,
      'parts': [
        {
          'name': opened.part.name,
          'split': opened.part.split,
          'version': opened.store.version,
          'weight': float(opened.part.weight),
          'views': fingerprint.describe(opened.part.views),
          'clips': len(opened.store),
          'used_clips': len(opened.rows),
          'frames': int(opened.store.num_frames.sum(dtype=np.int64)),
          'records': opened.store.digest,
        }
        | ({'start': opened.part.start} if opened.part.start else {})
        for opened in self._parts
      ],
    }
    # Only if set: fingerprints of older runs do not have them.
    if config.image_width not in (None, config.image_size):
      content['image_width'] = config.image_width
    if config.cameras:
      content['cameras'] = True
    if config.mirror_prob:
      content['mirror_prob'] = float(config.mirror_prob)
    return content | {'sha256': files.digest(content)}
