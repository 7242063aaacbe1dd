"""Anyone's own footage: video files, and folders of frames.

Everything under one folder, however deeply nested:

*   Each video file (mp4, mov, m4v, avi, mkv, webm) is an item. Its frames carry
    their timestamps; turned phone footage is put upright.
*   Each folder of pictures (jpg, jpeg, png) without videos beside them is an
    item, in natural order (`frame_9` before `frame_10`). It has no timestamps.

An item is cut where the scene changes, and each continuous shot becomes a clip;
shots longer than `max_length` become several, one after the other. Fades and
dissolves are not looked for. What lies in a top-level folder `train` or `test`
belongs to that split; the converter divides the rest.

Where a picture cannot be read or frames of a video are missing, the last good
one stands in and is counted in `Clip.replaced` (the first good one, where a
folder begins badly). Where a video has nothing to show for more than half a
second, a new shot begins instead. Clips that are mostly stand-ins are left out.
"""

import collections
import dataclasses
import fractions
import functools
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar, NamedTuple

import av
import numpy as np
from absl import logging
from PIL import Image

from xfactor.data import images, sources
from xfactor.errors import UserError

VIDEO_SUFFIXES = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm')
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')

_THUMBNAIL = 32  # Pixels; enough to tell scenes apart.
_REACH = 8  # Pixels of a thumbnail that a pan may move in a frame.
_NEIGHBOURS = 3  # Changes on each side that a cut must stand out from.
_HOLE = 0.5  # Seconds without a frame that a stand-in may fill.


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """Clips from a folder of videos and of frames.

  Attributes:
    source: The folder, or a single video file.
    size: Width and height of the frames, which are centre-cropped.
    fps: Frames a second to keep of videos, by their timestamps; None keeps all.
      Frame folders have no rate, so all their frames are kept.
    stride: Keeps every so many frames, instead of `fps`.
    min_length: Shots of fewer frames are left out.
    max_length: Longer shots are cut into clips of so many frames.
    quality: Of the JPEGs.
    cut_threshold: How different two frames must at least be for a cut between
      them, from 0 (the same but for motion and light) to 1 (unrelated); at 2
      nothing is cut.
  """

  name: ClassVar[str] = 'video'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'Continuous shots of a collection of videos.'

  source: str
  size: int = 256
  fps: float | None = None
  stride: int = 1
  min_length: int = 10
  max_length: int = 1000
  quality: int = 95
  cut_threshold: float = 0.33

  def items(self) -> list[sources.Item]:
    """Lists one item a video file or frame folder; see the base class."""
    self._check_options()
    if os.path.isfile(self.source):
      folder, name = os.path.split(self.source)
      found = [name]
    elif os.path.isdir(self.source):
      folder = self.source
      found = _find(folder)
    else:
      raise UserError(
        f'there is no folder {self.source}; give a folder of videos or of '
        'frames as source'
      )
    if not found:
      raise UserError(
        f'{self.source} holds no videos ({", ".join(VIDEO_SUFFIXES)}) and no '
        f'frames ({", ".join(IMAGE_SUFFIXES)}); give another folder as source'
      )
    items: dict[str, sources.Item] = {}
    for path in found:
      item = _item(folder, path)
      other = items.setdefault(item.id, item)
      if other is not item:
        raise UserError(
          f'{other.payload} and {path} would both be called {item.id}; rename '
          'one of them'
        )
    return [items[key] for key in sorted(items)]

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the shots of a video or frame folder; see the base class."""
    if os.path.isfile(self.source):
      path = self.source
    else:
      path = os.path.join(self.source, item.payload)
    pictures = (
      self._from_folder(path) if os.path.isdir(path) else self._from_video(path)
    )
    clips, longest, total, stand_ins = 0, 0, 0, 0
    for shot in self._shots(pictures):
      longest, total = max(longest, len(shot)), total + len(shot)
      replaced = sum(frame.replaced for frame in shot)
      stand_ins += replaced
      if len(shot) < self.min_length:
        continue
      if 2 * replaced > len(shot):
        logging.warning(
          '%s: left out a shot in which %d of %d frames cannot be read',
          path,
          replaced,
          len(shot),
        )
        continue
      times = [frame.time for frame in shot]
      yield sources.Clip(
        id=f'{item.id}/{clips:03d}',
        frames=[frame.jpeg for frame in shot],
        height=self.size,
        width=self.size,
        timestamps=None if None in times else np.array(times, np.float64),
        replaced=replaced,
      )
      clips += 1
    if not clips and 2 * stand_ins > total:
      raise UserError(
        f'{stand_ins} of the {total} frames kept of {path} cannot be read; '
        'restore it from its origin or remove it'
      )
    if not clips:
      raise UserError(
        f'{path} gives no clip of min_length={self.min_length} frames: of the '
        f'{total} frames kept the longest shot has {longest}; lower '
        'min_length, keep more frames by fps or stride, or remove it'
      )

  def _check_options(self) -> None:
    for option in ('size', 'stride', 'min_length', 'max_length'):
      if getattr(self, option) < 1:
        raise UserError(
          f'{option}={getattr(self, option)} is too small; give at least 1'
        )
    if self.min_length > self.max_length:
      raise UserError(
        f'min_length={self.min_length} is above max_length={self.max_length}; '
        'lower it'
      )
    if self.fps is not None and (self.fps <= 0 or self.stride != 1):
      raise UserError(
        f'fps={self.fps} with stride={self.stride} cannot be followed; give a '
        'positive fps, or a stride, not both'
      )

  def _from_video(self, path: str) -> Iterator['_Frame']:
    """Yields the frames of a video; JPEGs only where they are kept."""
    last, first_time = -1, None
    for index, picture in enumerate(read_video(path)):
      first_time = picture.time if first_time is None else first_time
      seconds = picture.time - first_time
      if self.fps is None:
        tick = index // self.stride
      else:
        # Timestamps are rounded; 0.0999 s is the frame for 0.1 s.
        tick = int(seconds * self.fps + 0.01)
      keep = tick > last
      frame = self._frame(picture.rgb, seconds, keep, picture.replaced)
      yield dataclasses.replace(frame, after_hole=picture.after_hole)
      last = max(tick, last)

  def _from_folder(self, path: str) -> Iterator['_Frame']:
    """Yields the frames of a folder, neighbours in place of broken ones."""
    names = _pictures(os.listdir(path))
    broken: list[str] = []
    good = None
    done = 0  # Frames yielded.
    for count, name in enumerate(names, 1):
      try:
        with open(os.path.join(path, name), 'rb') as f:
          good = images.read_square(f.read(), self.size)
        readable = True
      except (images.ImageError, OSError):
        broken.append(name)
        readable = False
      if good is None:
        continue
      # More than one where the first good picture ends a bad beginning.
      for index in range(done, count):
        keep = index % self.stride == 0
        replaced = not (readable and index == count - 1)
        yield self._frame(good, None, keep, replaced)
      done = count
    if good is None:
      raise UserError(
        f'none of the {len(names)} pictures in {path} can be read; restore '
        'the folder from its origin or remove it'
      )
    if broken:
      logging.warning(
        'Neighbours stand in for %d unreadable pictures in %s: %s',
        len(broken),
        path,
        ', '.join(broken[:8]),
      )

  def _frame(
    self,
    rgb: np.ndarray,
    time: float | None,
    keep: bool,
    replaced: bool = False,
  ) -> '_Frame':
    crop = images.centre_crop_resize(rgb, self.size if keep else _THUMBNAIL)
    jpeg = images.encode_jpeg(crop, self.quality) if keep else None
    return _Frame(time, jpeg, thumbnail(crop), replaced)

  def _shots(self, frames: Iterable['_Frame']) -> Iterator[list['_Frame']]:
    """Groups the kept frames into pieces of shots."""
    shot: list[_Frame] = []
    for frame, cut in _mark_cuts(frames, self.cut_threshold):
      cut = cut or frame.after_hole
      if shot and (cut or len(shot) == self.max_length):
        yield shot
        shot = []
      if frame.jpeg is not None:
        shot.append(frame)
    if shot:
      yield shot


@dataclasses.dataclass(frozen=True)
class _Frame:
  """A frame on its way into a clip.

  Attributes:
    time: Seconds from the first frame, where known.
    jpeg: The converted picture; None where it is only looked at for cuts.
    thumbnail: See `thumbnail`.
    replaced: Whether a neighbour stands in.
    after_hole: Whether so many frames are missing before it that a new shot
      begins.
  """

  time: float | None
  jpeg: bytes | None
  thumbnail: np.ndarray
  replaced: bool
  after_hole: bool = False


# ==============================================================================
# Finding
# ==============================================================================


def _natural(name: str) -> list[tuple[int, str]]:
  """Sort key that reads digits as numbers."""
  parts = re.split(r'(\d+)', name.lower())
  return [(int(part), '') if part.isdigit() else (-1, part) for part in parts]


def _pictures(names: Iterable[str]) -> list[str]:
  kept = [
    name
    for name in names
    if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
  ]
  return sorted(kept, key=lambda name: (_natural(name), name))


def _find(folder: str) -> list[str]:
  """Returns the videos and frame folders below a folder, relative to it."""
  found = []
  for path, folders, names in os.walk(folder, followlinks=True):
    # Hidden files are thumbnails and other systems' leftovers.
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    videos = sorted(
      name
      for name in names
      if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith('.')
    )
    relative = os.path.relpath(path, folder)
    found += [os.path.normpath(os.path.join(relative, name)) for name in videos]
    if not videos and _pictures(names):
      found.append(relative)
  return found


def _item(folder: str, path: str) -> sources.Item:
  """Returns the item of a video or frame folder, `path` below `folder`."""
  full = os.path.join(folder, path)
  if os.path.isdir(full):
    name = os.path.basename(os.path.abspath(folder)) if path == '.' else path
    files = [os.path.join(full, name) for name in _pictures(os.listdir(full))]
  else:
    name = os.path.splitext(path)[0]
    files = [full]
  name = name.replace(os.sep, '/')
  top = name.split('/')[0]
  return sources.Item(
    id=re.sub(r'[^A-Za-z0-9/._-]+', '_', name),
    payload=path,
    split=top if '/' in name and top in ('train', 'test') else None,
    size=sum(os.path.getsize(file) for file in files),
  )


# ==============================================================================
# Reading
# ==============================================================================


class Picture(NamedTuple):
  """A frame of a video.

  Attributes:
    time: Seconds.
    rgb: uint8 [H, W, 3], the right way up.
    replaced: Whether the last good frame stands in for one that is missing.
    after_hole: Whether more than `_HOLE` seconds are missing before it.
  """

  time: float
  rgb: np.ndarray
  replaced: bool = False
  after_hole: bool = False


def read_video(path: str) -> Iterator[Picture]:
  """Yields each frame of a video, with stand-ins for missing ones.

  Frames are missing where packets cannot be decoded, or only in part. A gap of
  k frame intervals there gets k - 1 stand-ins at even times, unless it is
  longer than `_HOLE`. Other gaps are taken as they are: frame rates may vary.
  A warning at the end says what was lost and whether the video stopped early.

  Raises:
    UserError: If the file is no video, or not one frame can be decoded.
  """
  try:
    container = av.open(path)
  except (av.FFmpegError, OSError) as error:
    raise UserError(
      f'{path} is no video that can be read ({error}); remove it or convert it '
      'to mp4'
    ) from error
  with container:
    if not container.streams.video:
      raise UserError(f'{path} has no video stream; remove it')
    stream = container.streams.video[0]
    # Conversion runs one process a core already.
    stream.codec_context.thread_count = 1
    period = float(1 / (stream.average_rate or fractions.Fraction(30)))
    promised = float(container.duration or 0) / av.time_base
    count, lost, stand_ins, holes = 0, 0, 0, 0
    time, rgb = -period, None
    longest = period  # Between two frames so far.
    failed: list[float | None] = []  # When frames are due that have failed.
    for at, frame in _decode(container, stream):
      if frame is None:
        lost += 1
        failed.append(at)
        continue
      before = time
      time = before + period * (1 + len(failed)) if at is None else at
      due = sum(t is None or before < t < time for t in failed)
      # Frames come in the order of their times, packets need not.
      failed = [t for t in failed if t is not None and t > time]
      gap, after_hole = time - before, False
      if rgb is not None:
        hole = gap - period > _HOLE
        # Damaged files may lose packets without a word.
        after_hole = hole and (due > 0 or gap > 3 * longest)
        missing = max(due, round(gap / period) - 1) if due and not hole else 0
        for i in range(1, missing + 1):
          yield Picture(before + gap * i / (missing + 1), rgb, replaced=True)
        holes += after_hole
        stand_ins += missing
        if not due and not hole:
          longest = max(longest, gap)
      count += 1
      # The angle, anticlockwise, by which the picture is to be turned.
      turns = round(frame.rotation / 90) % 4
      rgb = np.rot90(frame.to_ndarray(format='rgb24'), turns)
      yield Picture(time, rgb, after_hole=after_hole)
  if not count:
    raise UserError(
      f'no frame of {path} can be decoded; remove it or convert it to mp4'
    )
  # Sound often runs on a little after the last frame.
  early = time < 0.9 * promised - 1
  if lost or holes or early:
    logging.warning(
      '%s is damaged: kept %d frames, lost %d packets, put stand-ins for %d '
      'frames, cut at %d holes%s',
      path,
      count,
      lost,
      stand_ins,
      holes,
      f', ended {promised - time:.1f} s early' if early else '',
    )


def _decode(
  container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[float | None, av.VideoFrame | None]]:
  """Yields when frames are due, where known, and each, or None for a bad one.

  A frame of which the decoder had to make up a part is bad, too.
  """
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets)
    except StopIteration:
      return
    except av.FFmpegError:
      # The file itself ends or breaks here.
      yield None, None
      return
    try:
      frames = packet.decode()
    except av.FFmpegError:
      known = packet.pts is not None and packet.time_base is not None
      yield float(packet.pts * packet.time_base) if known else None, None
      continue
    for frame in frames:
      yield frame.time, None if frame.is_corrupt else frame


# ==============================================================================
# Cuts
# ==============================================================================


def thumbnail(rgb: np.ndarray) -> np.ndarray:
  """Returns what scenes are told apart by: float32 [32, 32, 3] in [0, 1]."""
  small = Image.fromarray(rgb).resize(
    (_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX
  )
  return np.asarray(small, np.float32) / 255


@functools.cache
def _overlap() -> tuple[np.ndarray, np.ndarray]:
  """Returns the spectrum of a full picture and the size of each overlap."""
  spectrum = _spectrum(np.ones((_THUMBNAIL, _THUMBNAIL, 1)))
  return spectrum, 3 * _at_shifts(spectrum, spectrum)


def _spectrum(picture: np.ndarray) -> np.ndarray:
  """Returns the padded Fourier transform of [32, 32, C]."""
  side = _THUMBNAIL + _REACH
  return np.fft.rfft2(picture, (side, side), axes=(0, 1))


def _at_shifts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the sum of the product of two pictures at all [17, 17] shifts."""
  side = (_THUMBNAIL + _REACH,) * 2
  sums = np.fft.irfft2((a * b.conj()).sum(-1), side)
  wanted = 2 * _REACH + 1
  return np.roll(sums, (_REACH, _REACH), (0, 1))[:wanted, :wanted]


def displacement_error(a: np.ndarray, b: np.ndarray) -> float:
  """Returns how unlike two thumbnails are but for a shift and for exposure.

  One minus the correlation of what two pictures share when one is shifted so
  that they agree best; correlation does not see brightness and contrast.

  Args:
    a: float [32, 32, 3].
    b: float [32, 32, 3].

  Returns:
    0 for the same scene up to a pan and light, near 1 for unrelated ones.
  """
  middle = (a.mean() + b.mean()) / 2
  a, b = a - middle, b - middle
  # Sums over the overlap at every shift are products of Fourier transforms.
  full, count = _overlap()
  of_a, of_b = _spectrum(a), _spectrum(b)
  mean_a = _at_shifts(of_a, full) / count
  mean_b = _at_shifts(full, of_b) / count
  variance_a = _at_shifts(_spectrum(a**2), full) / count - mean_a**2
  variance_b = _at_shifts(full, _spectrum(b**2)) / count - mean_b**2
  covariance = _at_shifts(of_a, of_b) / count - mean_a * mean_b
  # Flat pictures resemble each other; their noise must not count.
  floor = 1e-4
  correlation = (covariance + floor) / np.sqrt(
    (variance_a + floor) * (variance_b + floor)
  )
  return max(0.0, float(1 - correlation.max()))


def palette_error(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the share, 0 to 1, of colours that two thumbnails do not share."""
  counts = [
    np.bincount((x * 7.999).astype(int).reshape(-1, 3) @ [64, 8, 1], None, 512)
    for x in (a, b)
  ]
  return float(np.abs(counts[0] - counts[1]).sum() / (2 * _THUMBNAIL**2))


def change(a: np.ndarray, b: np.ndarray) -> float:
  """Returns how much speaks for a cut between two thumbnails, 0 to about 1.

  The geometric mean of two errors, for a cut raises both: exposure changes the
  palette but not the picture, what passes by the picture but not the palette.
  """
  return math.sqrt(displacement_error(a, b) * palette_error(a, b))


def _changes(frames: Iterable[_Frame]) -> Iterator[tuple[_Frame, float]]:
  """Yields each frame and how much it and the next differ from those before.

  The least of four comparisons, so that a single odd frame, such as a flash,
  changes nothing; NaN for the first frame.
  """
  before: list[np.ndarray] = []
  for frame, after in itertools.pairwise(itertools.chain(frames, [None])):
    now = [frame.thumbnail] + ([after.thumbnail] if after else [])
    score = change(before[0], now[0]) if before else math.nan
    # Most frames are much like the last; they need no second look.
    if score > 0.1:
      pairs = list(itertools.product(before, now))[1:]
      score = min([score] + [change(a, b) for a, b in pairs])
    yield frame, score
    before = [frame.thumbnail, *before[:1]]


def _mark_cuts(
  frames: Iterable[_Frame], threshold: float
) -> Iterator[tuple[_Frame, bool]]:
  """Yields each frame and whether a new shot begins with it.

  At a cut the picture changes by at least `threshold` and by far more than
  around it, which tells cuts from fast motion and from sparse frames.
  """
  past: collections.deque[float] = collections.deque(maxlen=_NEIGHBOURS)
  ahead: collections.deque[tuple[_Frame, float]] = collections.deque()
  changes = _changes(frames)
  while True:
    ahead.extend(itertools.islice(changes, _NEIGHBOURS + 1 - len(ahead)))
    if not ahead:
      return
    frame, score = ahead.popleft()
    around = [*past, *(other for _, other in ahead)]
    around = [other for other in around if not math.isnan(other)]
    usual = np.median(around) if around else 0.0
    yield frame, bool(score >= max(threshold, 2 * usual))
    past.append(score)
