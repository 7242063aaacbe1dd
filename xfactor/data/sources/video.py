"""Custom footage: video files and folders of frames.

Reads everything below one folder:

*   Each video file (mp4, mov, m4v, avi, mkv, webm) is an item. Its frames keep
    timestamps, repaired where they do not increase. They look as in a player:
    turned upright, deinterlaced, with square pixels, HDR mapped to SDR.
*   Each folder of pictures (jpg, jpeg, png, avif, and heic with pillow-heif)
    that has no videos is an item, in natural order (`frame_9` before
    `frame_10`). It has no timestamps.

An item is cut at scene changes, and each continuous shot becomes a clip; shots
longer than `max_length` become several consecutive clips. Fades and dissolves
are not detected. Items in a top-level folder `train` or `test` belong to that
split; the converter splits the others. All clips of an item are in one split.

Names lose their suffixes in ids, unless two would become equal. Folders
`images`, `images_2`, ... with the same pictures at several sizes are one item,
read at the smallest size that is large enough.

The last good frame replaces unreadable pictures and missing video frames (the
first good one at the start of a folder); `Clip.replaced` counts these. If a
video has no frames for more than half a second, a new shot begins instead.
Clips in which most frames are replaced are skipped.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np
from absl import logging

from xfactor.data import images, sources
from xfactor.data.formats import video
from xfactor.data.sources import listing, shots
from xfactor.errors import UserError

VIDEO_SUFFIXES = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm')
IMAGE_SUFFIXES = images.SUFFIXES


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """Clips from a folder of videos and frames.

  Attributes:
    source: Folder, or a single video file.
    size: Width and height of the centre-cropped frames.
    fps: Frames per second to keep of videos, by their timestamps; None keeps
      all. Frame folders have no rate, so all their frames are kept.
    stride: Keeps every `stride`-th frame; not together with `fps`.
    min_length: Minimum number of frames; shorter shots are skipped.
    max_length: Maximum number of frames; longer shots are cut into clips.
    quality: JPEG quality.
    cut_threshold: Minimum difference of two frames for a cut between them, from
      0 (same except for motion and light) to 1 (unrelated); 2 disables cuts.
    max_megapixels: Maximum size of pictures, millions of pixels; larger ones
      count as unreadable.
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
  max_megapixels: int = images.MAX_MEGAPIXELS

  def items(self) -> list[sources.Item]:
    """Lists one item per video file or frame folder; see the base class."""
    self._check_options()
    if os.path.isfile(self.source):
      return [listing.video_item(self.source)]
    if not os.path.isdir(self.source):
      raise UserError(
        f'there is no folder {self.source}; give a folder of videos or of '
        'frames as source'
      )
    suffixes = VIDEO_SUFFIXES, IMAGE_SUFFIXES
    items = listing.items(self.source, *suffixes, self.size)
    if not items:
      raise UserError(
        f'{self.source} holds no videos ({", ".join(VIDEO_SUFFIXES)}) and no '
        f'frames ({", ".join(IMAGE_SUFFIXES)}); give another folder as source'
      )
    return items

  def ignored(self) -> dict[str, int]:
    """Counts the files that are no frames and no videos; see the base class."""
    if os.path.isfile(self.source):
      return {}
    suffixes = images.readable(IMAGE_SUFFIXES)
    found = listing.ignored(self.source, VIDEO_SUFFIXES, suffixes)
    return {
      f'{kind} ({images.HEIF_INSTALL})' if kind in IMAGE_SUFFIXES else kind: n
      for kind, n in found.items()
    }

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
    last, lost = None, collections.Counter()
    for shot in self._shots(pictures):
      longest, total = max(longest, len(shot)), total + len(shot)
      replaced = sum(frame.replaced for frame in shot)
      stand_ins += replaced
      if len(shot) < self.min_length:
        lost['frames skipped: in shots below min_length'] += len(shot)
        continue
      if 2 * replaced > len(shot):
        logging.warning(
          '%s: skipped a shot in which %d of %d frames cannot be read',
          path,
          replaced,
          len(shot),
        )
        lost['frames skipped: in mostly unreadable shots'] += len(shot)
        continue
      times = [frame.time for frame in shot]
      if last is not None:
        yield last
      last = sources.Clip(
        id=f'{item.id}/{clips:03d}',
        frames=[frame.jpeg for frame in shot],
        height=self.size,
        width=self.size,
        timestamps=None if None in times else np.array(times, np.float64),
        replaced=replaced,
        notes=dict(
          collections.Counter(what for frame in shot for what in frame.changes)
        ),
      )
      clips += 1
    if last is not None:
      last.notes.update(lost)
      yield last
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
        f'fps={self.fps} with stride={self.stride} is invalid; give a '
        'positive fps or a stride, not both'
      )

  def _from_video(self, path: str) -> Iterator[shots.Frame]:
    """Yields the frames of a video, with JPEGs only for kept frames."""
    last, first_time = -1, None
    for index, picture in enumerate(video.read_video(path)):
      first_time = picture.time if first_time is None else first_time
      seconds = picture.time - first_time
      if self.fps is None:
        tick = index // self.stride
      else:
        # Timestamps are rounded: 0.0999 s is the frame at 0.1 s.
        tick = int(seconds * self.fps + 0.01)
      keep = tick > last
      frame = self._frame(picture.rgb, seconds, keep, picture.replaced)
      yield dataclasses.replace(
        frame, after_hole=picture.after_hole, changes=picture.changes
      )
      last = max(tick, last)

  def _from_folder(self, path: str) -> Iterator[shots.Frame]:
    """Yields the frames of a folder; neighbours replace unreadable ones."""
    suffixes = images.readable(IMAGE_SUFFIXES)
    names = listing.pictures(os.listdir(path), suffixes)
    if not names:
      raise UserError(f'the pictures in {path} are HEIC: {images.HEIF_INSTALL}')
    broken: list[str] = []
    good = None
    done = 0  # Frames yielded.
    for count, name in enumerate(names, 1):
      try:
        with open(os.path.join(path, name), 'rb') as f:
          good = images.read_square(f.read(), self.size, self.max_megapixels)
        readable = True
      except (images.ImageError, OSError):
        broken.append(name)
        readable = False
      if good is None:
        continue
      # More than one if unreadable pictures come before the first good one.
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
        'Neighbours replace %d unreadable pictures in %s: %s',
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
  ) -> shots.Frame:
    crop = images.centre_crop_resize(
      rgb, self.size if keep else shots.THUMBNAIL
    )
    jpeg = images.encode_jpeg(crop, self.quality) if keep else None
    return shots.Frame(time, jpeg, shots.thumbnail(crop), replaced)

  def _shots(
    self, frames: Iterable[shots.Frame]
  ) -> Iterator[list[shots.Frame]]:
    """Groups the kept frames into shots of at most `max_length` frames."""
    shot: list[shots.Frame] = []
    for frame, cut in shots.mark_cuts(frames, self.cut_threshold):
      cut = cut or frame.after_hole
      if shot and (cut or len(shot) == self.max_length):
        yield shot
        shot = []
      if frame.jpeg is not None:
        shot.append(frame)
    if shot:
      yield shot
