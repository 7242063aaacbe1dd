"""Opens and checks the entries of a data mixture."""

import dataclasses
from collections.abc import Callable

import numpy as np
from absl import logging

from xfactor.data.records import store as store_lib
from xfactor.errors import UserError


@dataclasses.dataclass(frozen=True)
class MixtureEntry:
  """One data set of the mixture.

  Attributes:
    name: Name of the converted data set.
    views: Frame sampler `views(rng, num_frames, step) -> int [num_views]`,
      with an attribute `num_views`; see `views.Views`.
    split: Name of the split, for instance 'train'.
    weight: Share of the elements, relative to the other parts.
    start: First step whose batch may have it.
    version: Semantic version; the newest by default.
  """

  name: str
  views: Callable[[np.random.Generator, int, int], np.ndarray]
  split: str = 'train'
  weight: float = 1.0
  start: int = 0
  version: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Settings of the training data.

  The second group of attributes affects only speed and memory, not the data.

  Attributes:
    data_dir: Folder of converted data sets.
    parts: Data sets of the mixture.
    batch_size: Examples per step over all processes.
    image_size: Height in pixels; other sizes are cropped to the central part
      of the desired aspect ratio and resized.
    image_width: Width in pixels; None makes squares.
    cameras: Whether batches have the frames' cameras; clips without cameras are
      skipped.
    mirror_prob: Share of the examples whose views are all mirrored
      horizontally; not with cameras.
    seed: Seed of the stream, at least 0.
    min_length: Minimum number of frames; shorter clips are skipped.
    max_bad_fraction: Maximum share of unreadable examples, which are replaced
      by others of the same data set; above it reading stops with an error.

    threads: Batches made at the same time; 0 makes them on demand.
    prefetch: Batches made ahead.
    workers: Extra processes, each with its own threads and prefetch. Decoding
      releases the GIL, so threads usually suffice.
  """

  data_dir: str
  parts: tuple[MixtureEntry, ...]
  batch_size: int
  image_size: int
  image_width: int | None = None
  cameras: bool = False
  mirror_prob: float = 0.0
  seed: int = 0
  min_length: int = 10
  max_bad_fraction: float = 0.01

  threads: int = 8
  prefetch: int = 8
  workers: int = 0

  @property
  def image_shape(self) -> tuple[int, int]:
    """Height and width of the pictures."""
    return shape(self.image_size, self.image_width)


def shape(size: int, width: int | None) -> tuple[int, int]:
  return size, size if width is None else width


@dataclasses.dataclass(frozen=True)
class OpenEntry:
  """An opened entry of the mixture; `rows` are the usable clips."""

  part: MixtureEntry
  store: store_lib.FrameStore
  rows: np.ndarray


def open_entry(config: DataConfig, part: MixtureEntry) -> OpenEntry:
  store = store_lib.open_split(
    config.data_dir, part.name, part.split, part.version
  )
  shortest = max(part.views.num_views, config.min_length)
  rows = np.flatnonzero(store.num_frames >= shortest)
  if dropped := len(store) - len(rows):
    logging.info(
      '%s/%s: %d of %d clips have fewer than %d frames and are skipped.',
      part.name,
      part.split,
      dropped,
      len(store),
      shortest,
    )
  if not len(rows):
    raise UserError(
      f'none of the {len(store)} clips of {part.name}/{part.split} has the '
      f'{shortest} frames that training needs; the longest has '
      f'{store.num_frames.max()}'
    )
  if config.cameras:
    rows = _posed(store, rows, shortest)
  return OpenEntry(part, store, rows)


def _posed(
  store: store_lib.FrameStore, rows: np.ndarray, shortest: int
) -> np.ndarray:
  """Returns the clips that have cameras."""
  posed = rows[store.posed[rows]]
  if dropped := len(rows) - len(posed):
    logging.info(
      '%s/%s: %d of %d clips have no cameras and are skipped.',
      store.name,
      store.split,
      dropped,
      len(rows),
    )
  if not len(posed):
    raise UserError(
      f'no clip of {store.name}/{store.split} has both cameras and the '
      f'{shortest} frames that training needs; the longest with cameras has '
      f'{store.num_frames[store.posed].max()}'
    )
  return posed


def check(config: DataConfig, process_index: int, process_count: int) -> None:
  if not config.parts:
    raise UserError('the data config names no data set')
  if any(not part.weight > 0 for part in config.parts):
    raise UserError(
      'the weights of data sets must be greater than 0, not '
      + ', '.join(f'{p.name}: {p.weight}' for p in config.parts)
    )
  starts = [part.start for part in config.parts]
  if min(starts):
    raise UserError(
      'one data set of the mixture must start at step 0, and none before, not '
      + ', '.join(f'{p.name}: {p.start}' for p in config.parts)
    )
  num_views = {part.views.num_views for part in config.parts}
  if len(num_views) > 1:
    raise UserError(
      'all data sets of a mixture must give the same number of views, not '
      + ', '.join(f'{p.name}: {p.views.num_views}' for p in config.parts)
    )
  if config.batch_size < 1 or config.batch_size % process_count:
    raise UserError(
      f'the batch of {config.batch_size} examples does not divide evenly '
      f'among {process_count} processes'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f'process {process_index} of {process_count}')
