"""Records -> batches for training and evaluation, with Grain.

Element i of the training stream is a pure function of (seed, i): which data
set, which clip, which frames, how far the window curriculum is. Every process
makes its own rows of a global batch, so the global batches do not depend on how
many processes, threads or workers there are, and the whole state of an iterator
is the step: a run resumes by asking for it.

No JAX here: worker processes import this module.
"""

import dataclasses
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from xfactor.data import images, records
from xfactor.data.views import frame_rng
from xfactor.errors import UserError
from xfactor.geometry.cameras import crop_intrinsics

# Raised when a change here gives a step other data than before.
_ORDER = 1
# Resolution of mixing weights: shares are multiples of one in at most this.
_MAX_PERIOD = 10_000
# Clips tried in place of an unreadable one before giving up.
_MAX_ATTEMPTS = 20
# Elements of a data set before its share of unreadable ones is judged.
_MIN_JUDGED = 1000
_LOGGED = 20


@dataclasses.dataclass(frozen=True)
class Part:
  """One data set of the mixture.

  Attributes:
    name: Of the converted data set.
    views: Chooses frames: `views(rng, num_frames, step) -> int [num_views]`,
      with an attribute `num_views`; see `views.Views`.
    split: For instance 'train'.
    weight: Its share of the elements, relative to the other parts.
    version: Semantic version; the newest by default.
  """

  name: str
  views: Callable[[np.random.Generator, int, int], np.ndarray]
  split: str = 'train'
  weight: float = 1.0
  version: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What training reads, and with how many hands.

  The second group of attributes changes speed and memory only, never the data.

  Attributes:
    data_dir: Folder of converted data sets.
    parts: The mixture.
    batch_size: Examples of a step over all processes.
    image_size: Height in pixels; other sizes are cropped to the central part
      of the aspect ratio wanted and resized.
    image_width: In pixels; None makes squares.
    cameras: Whether batches have the frames' cameras; clips without are left
      out.
    mirror_prob: Share of the examples whose views are all mirrored, left and
      right; not with cameras.
    seed: At least 0.
    min_length: Clips with fewer frames are left out.
    max_bad_fraction: Unreadable examples are replaced by others of the same
      data set; above this share of them reading stops with an error.

    threads: Batches made at the same time; 0 makes them on demand.
    prefetch: Batches made ahead.
    workers: Extra processes, each with its own threads and prefetch. Decoding
      releases the GIL, so threads usually suffice.
  """

  data_dir: str
  parts: tuple[Part, ...]
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
    return _shape(self.image_size, self.image_width)


def _shape(size: int, width: int | None) -> tuple[int, int]:
  return size, size if width is None else width


# ==============================================================================
# Which element is what
# ==============================================================================


class _Mixture:
  """Interleaves endless data sets in exact proportions, evenly spread."""

  def __init__(self, weights: Sequence[float]):
    counts = _counts(np.asarray(weights, np.float64))
    part = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(n) for n in counts])
    order = np.argsort((rank + 0.5) / counts[part], kind='stable')
    self._counts = counts.tolist()
    self._part = part[order].tolist()
    self._rank = rank[order].tolist()

  def __getitem__(self, index: int) -> tuple[int, int]:
    """Returns the part of an element and its place among that part's own."""
    period, place = divmod(index, len(self._part))
    part = self._part[place]
    return part, period * self._counts[part] + self._rank[place]


class _Order:
  """The endless stream of (part, row): a data source for Grain.

  Every part is shuffled anew each epoch. By whole permutations, which cost
  memory (4 MB a million clips), because Grain's own index shuffle takes
  milliseconds an element where there are few clips.
  """

  def __init__(self, seed: int, weights: Sequence[float], rows: Sequence[int]):
    self._seed = seed
    self._mixture = _Mixture(weights)
    self._rows = tuple(rows)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> tuple[int, int]:
    part, place = self._mixture[index]
    epoch, place = divmod(place, self._rows[part])
    order = _permutation(self._seed, part, epoch, self._rows[part])
    return part, int(order[place])


class _Share:
  """By step, one process's elements and where in the stream each is from.

  A process has neighbouring rows of every global batch, as
  `jax.make_array_from_process_local_data` puts them together again.
  """

  def __init__(self, order: _Order, batch_size: int, index: int, count: int):
    self._order = order
    self._batch_size = batch_size
    self._rows = batch_size // count
    self._first = index * self._rows

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, step: int) -> list[tuple[int, tuple[int, int]]]:
    first = step * self._batch_size + self._first
    return [(i, self._order[i]) for i in range(first, first + self._rows)]


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, part: int, epoch: int, size: int) -> np.ndarray:
  rng = np.random.Generator(
    np.random.Philox(np.random.SeedSequence([seed, part, epoch]))
  )
  return rng.permutation(np.arange(size, dtype=np.int32))


def _counts(weights: np.ndarray) -> np.ndarray:
  """Returns how often each part occurs in the shortest exact period."""
  shares = weights / weights.sum()
  periods = np.arange(1, _MAX_PERIOD + 1)[:, None]
  off = np.abs(periods * shares - np.round(periods * shares)).max(1)
  exact = np.flatnonzero(off < 1e-6)
  period = exact[0] + 1 if len(exact) else _MAX_PERIOD
  return np.maximum(np.round(period * shares), 1).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class _OpenPart:
  """A part with its records; `rows` are the clips that are of use."""

  part: Part
  store: records.FrameStore
  rows: np.ndarray


def _open_part(config: DataConfig, part: Part) -> _OpenPart:
  store = records.open_split(
    config.data_dir, part.name, part.split, part.version
  )
  shortest = max(part.views.num_views, config.min_length)
  rows = np.flatnonzero(store.num_frames >= shortest)
  if dropped := len(store) - len(rows):
    logging.info(
      '%s/%s: %d of %d clips have fewer than %d frames and are left out.',
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
  return _OpenPart(part, store, rows)


def _posed(
  store: records.FrameStore, rows: np.ndarray, shortest: int
) -> np.ndarray:
  """Leaves out the clips without cameras."""
  posed = rows[store.posed[rows]]
  if dropped := len(rows) - len(posed):
    logging.info(
      '%s/%s: %d of %d clips have no cameras and are left out.',
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


def _check(config: DataConfig, process_index: int, process_count: int) -> None:
  if not config.parts:
    raise UserError('the data config names no data set')
  if any(not part.weight > 0 for part in config.parts):
    raise UserError(
      'the weights of data sets must be greater than 0, not '
      + ', '.join(f'{p.name}: {p.weight}' for p in config.parts)
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


# ==============================================================================
# Reading a batch
# ==============================================================================

# What reading an example raises where its bytes on disk are damaged.
_UNREADABLE = (RuntimeError, ValueError, OSError, images.ImageError)


def _read_views(
  store: records.FrameStore, clip: int, frames: np.ndarray, out: np.ndarray
) -> None:
  """Fills uint8 [views, H, W, 3]; raises some of `_UNREADABLE`."""
  stored = int(store.height[clip]), int(store.width[clip])
  for data, view in zip(store.clip_frames(clip, frames), out, strict=True):
    if stored == view.shape[:2]:
      images.decode(data, view)
    else:
      view[:] = images.centre_crop_resize(images.decode(data), *view.shape[:2])


def _cameras_of(
  clip: records.Clip, frames: np.ndarray, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """Returns the cameras of frames that `_read_views` makes (H, W) pixels."""
  return {
    'intrinsics': crop_intrinsics(
      clip.intrinsics[frames], clip.height, clip.width, shape=shape
    ),
    'world_to_camera': clip.world_to_camera[frames],
  }


class _Load:
  """Turns stream indices and their (part, row) into a batch; picklable."""

  def __init__(self, config: DataConfig, parts: Sequence[_OpenPart]):
    self._config = config
    self._parts = parts
    self._logged = 0
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_lock': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock())

  def __call__(
    self, elements: Sequence[tuple[int, tuple[int, int]]]
  ) -> dict[str, np.ndarray]:
    views = self._config.parts[0].views.num_views
    shape = len(elements), views, *self._config.image_shape, 3
    # Frames are decoded in place: stacking views, then examples, copies twice.
    pixels = np.empty(shape, np.uint8)
    rest = [self._fill(*pair) for pair in zip(elements, pixels, strict=True)]
    return {'images': pixels} | {
      key: np.stack([example[key] for example in rest]) for key in rest[0]
    }

  def _fill(
    self, element: tuple[int, tuple[int, int]], out: np.ndarray
  ) -> dict[str, Any]:
    """Reads one example's images into `out`; returns what else is known."""
    index, (number, row) = element
    opened = self._parts[number]
    rng = frame_rng(self._config.seed, index)
    for attempt in range(_MAX_ATTEMPTS):
      if attempt:
        rng = _retry_rng(self._config.seed, index, attempt)
        row = int(rng.integers(len(opened.rows)))
      clip = int(opened.rows[row])
      frames = opened.part.views(
        rng,
        int(opened.store.num_frames[clip]),
        index // self._config.batch_size,
      )
      try:
        _read_views(opened.store, clip, frames, out)
        cameras = self._cameras(opened.store, clip, frames)
      except _UNREADABLE as e:
        self._log(opened, clip, frames, e)
        continue
      # Drawn last: what is drawn before does not depend on it.
      if rng.random() < self._config.mirror_prob:
        out[:] = out[:, :, ::-1].copy()
      return cameras | {
        'frames': np.asarray(frames, np.int32),
        'clip': np.int64(clip),
        'part': np.int32(number),
        'index': np.int64(index),
        'bad': np.int32(attempt),
      }
    raise UserError(
      f'{_MAX_ATTEMPTS} clips of {opened.store} in a row could not be read '
      '(see the log); copy or convert the data set again'
    )

  def _cameras(
    self, store: records.FrameStore, clip: int, frames: np.ndarray
  ) -> dict[str, np.ndarray]:
    if not self._config.cameras:
      return {}
    return _cameras_of(store.clip(clip), frames, self._config.image_shape)

  def _log(
    self,
    opened: _OpenPart,
    clip: int,
    frames: np.ndarray,
    error: Exception,
  ) -> None:
    with self._lock:
      self._logged += 1
      if self._logged > _LOGGED:
        return
    logging.warning(
      'Cannot read %s/%s clip %s (number %d) frames %s: %s; another clip '
      'takes its place.',
      opened.part.name,
      opened.part.split,
      opened.store.clip_id(clip),
      clip,
      np.asarray(frames).tolist(),
      error,
    )


def _retry_rng(seed: int, index: int, attempt: int) -> np.random.Generator:
  # The word below the one that counts elements: no stream meets another.
  return np.random.Generator(
    np.random.Philox(seed, counter=[0, 0, attempt, index])
  )


# ==============================================================================
# Training
# ==============================================================================


class Batches(Iterator[dict[str, np.ndarray]]):
  """Endless batches of one process; see `Pipeline.batches`.

  Attributes:
    bad: Number of unreadable examples so far, by data set.
  """

  def __init__(
    self, batches: Iterator[dict[str, np.ndarray]], config: DataConfig
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
    # A replaced example is two (or more) that were tried.
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
    config: As given.
    num_clips: Clips that are long enough (and have cameras), by part.
  """

  def __init__(
    self,
    config: DataConfig,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Opens the data sets.

    Args:
      config: What to read.
      process_index: Which share of each global batch is this process's.
      process_count: Into how many shares it is divided.

    Raises:
      UserError: If a data set is missing or unusable, or the batch cannot be
        divided.
    """
    _check(config, process_index, process_count)
    self.config = config
    self._process = process_index, process_count
    self._parts = [_open_part(config, part) for part in config.parts]
    self.num_clips = [len(p.rows) for p in self._parts]

  def dataset(self) -> grain.MapDataset:
    """Returns this process's batches by step, for random access."""
    index, count = self._process
    order = _Order(
      self.config.seed,
      [part.weight for part in self.config.parts],
      self.num_clips,
    )
    share = _Share(order, self.config.batch_size, index, count)
    load = _Load(self.config, self._parts)
    return grain.MapDataset.source(share).map(load)

  def batches(self, start_step: int = 0) -> Batches:
    """Returns this process's batches from a step on, for ever.

    A batch has, with B = batch_size / process_count and V views:
      images: uint8 [B, V, image_size, image_width, 3]
      frames: int32 [B, V], counted from the clip's beginning
      clip: int64 [B], number of the clip within its split
      part: int32 [B], number of the data set in `config.parts`
      index: int64 [B], place in the stream: step * batch_size + ...
    and, if the config asks for cameras, those of the pictures as they are here:
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
    """Returns what determines the data and their order, as JSON.

    A resumed run must find the same: a step means other data otherwise; see
    `differences`. Key `sha256` is the digest of the rest. Nothing that affects
    only speed, and no number of processes, is in it.
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
          'views': _describe(opened.part.views),
          'clips': len(opened.store),
          'used_clips': len(opened.rows),
          'frames': int(opened.store.num_frames.sum(dtype=np.int64)),
          'records': opened.store.digest,
        }
        for opened in self._parts
      ],
    }
    # Only where they matter: older runs know nothing of them.
    if config.image_width not in (None, config.image_size):
      content['image_width'] = config.image_width
    if config.cameras:
      content['cameras'] = True
    if config.mirror_prob:
      content['mirror_prob'] = float(config.mirror_prob)
    return content | {'sha256': records.digest(content)}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Returns what two fingerprints do not share, each as `NAME: OLD -> NEW`."""
  old, new = _flat(old), _flat(new)
  return [
    f'{key}: {_short(old.get(key))} -> {_short(new.get(key))}'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]


def _flat(fingerprint: dict[str, Any]) -> dict[str, Any]:
  """Returns a fingerprint's settings by dotted names; parts by theirs."""
  fingerprint = {k: v for k, v in fingerprint.items() if k != 'sha256'}
  parts = fingerprint.pop('parts')
  # Their order, too, decides which element is of which.
  out = fingerprint | {'parts': [part['name'] for part in parts]}
  for part in parts:
    for key, value in part.items():
      nested = value if isinstance(value, dict) else {}
      out |= {f'{part["name"]}.{key}.{k}': v for k, v in nested.items()}
      if not nested:
        out[f'{part["name"]}.{key}'] = value
  return out


def _short(value: Any) -> str:
  """Returns a setting for people; digests by their beginnings."""
  if isinstance(value, str) and len(value) == 64:
    return value[:8]
  return 'none' if value is None else str(value)


def _describe(views: Any) -> dict[str, Any]:
  """Returns the settings of a frame chooser as JSON gives them back."""
  settings = dataclasses.asdict(views)
  return {
    'type': type(views).__name__,
    **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
  }


# ==============================================================================
# Evaluation
# ==============================================================================


class _LoadEval:
  """Reads one example of a fixed evaluation index; picklable."""

  def __init__(
    self,
    store: records.FrameStore,
    index: records.EvalIndex,
    shape: tuple[int, int],
    cameras: bool,
  ):
    self._store = store
    self._index = index
    self._shape = shape
    self._cameras = cameras

  def __call__(self, example: int) -> dict[str, Any]:
    # Padding repeats the first example, so that it costs no special case.
    number = max(example, 0)
    clip, frames = int(self._index.clips[number]), self._index.frames[number]
    pixels = np.empty((len(frames), *self._shape, 3), np.uint8)
    try:
      _read_views(self._store, clip, frames, pixels)
      known = self._store.clip(clip) if self._cameras else None
    except _UNREADABLE as e:
      # No stand-in: it would change what the number means.
      raise UserError(
        f'cannot read clip {self._index.clip_ids[number]} frames '
        f'{frames.tolist()} of {self._store}: {e}; copy or convert the data '
        'set again'
      ) from e
    if known and not known.posed:
      raise UserError(
        f'clip {known.id} of {self._store} has no cameras, which posed models '
        'need; choose the evaluation index among clips that do (cameras=True)'
      )
    return {
      'images': pixels,
      'frames': frames.astype(np.int32),
      'clip': np.int64(clip),
      'example': np.int64(number),
      'mask': np.bool_(example >= 0),
    } | (_cameras_of(known, frames, self._shape) if known else {})


def eval_batches(
  data_dir: str,
  name: str,
  index: records.EvalIndex,
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
    name: Of the data set.
    index: From `records.eval_index`.
    image_size: Height in pixels.
    image_width: In pixels; None makes squares.
    cameras: Whether to read the frames' cameras.
    batch_size: Over all processes.
    split: That of the index.
    version: Semantic version; the newest by default.
    order: Examples to read, in order; all of them by default.
    process_index: Which share of each batch is this process's.
    process_count: Into how many shares batches are divided.
    threads: Batches read at the same time.

  Raises:
    UserError: If the data set is missing, a frame cannot be read, or a clip has
      no cameras that are asked for.
  """
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f'the evaluation batch of {batch_size} examples does not divide evenly '
      f'among {process_count} processes'
    )
  store = records.open_split(data_dir, name, split, version)
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
    .map(_LoadEval(store, index, _shape(image_size, image_width), cameras))
    .batch(rows)
  )
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  yield from dataset.to_iter_dataset(options)
