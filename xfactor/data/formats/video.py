"""Decodes video files."""

import math
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from absl import logging
from etils import epath

from xfactor.data.formats import clock, upright
from xfactor.errors import UserError

# Formats of phones and cameras; playlists could refer to other files.
_CONTAINERS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif'


def open_video(file: str | BinaryIO) -> av.container.InputContainer:
  """Opens a video of a known format; raises av.FFmpegError for others."""
  return av.open(
    file,
    options={'format_whitelist': _CONTAINERS},
    metadata_errors='replace',  # Titles and the like may be in any encoding.
  )


def read_frames(
  path: epath.Path, times: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the frames of a video nearest to the given times.

  Times without a frame within half a frame duration are skipped. Only the part
  of the video between the first and the last time is decoded.

  Args:
    path: Path of the video, local or gs://.
    times: [N] ascending seconds since the beginning of the video.

  Yields:
    Index into `times` and the upright frame, uint8 [H, W, 3].

  Raises:
    UserError: If the file is not a video.
  """
  try:
    with path.open('rb') as file, open_video(file) as container:
      stream, screen, period = _prepare(path, container)
      begin = (container.start_time or 0) / av.time_base
      first = max(times[0] + begin - period, 0.0)
      container.seek(int(first / stream.time_base), stream=stream)
      todo = list(enumerate(times))[::-1]
      for at, frame, end in _spans(container, stream, begin, period):
        rgb = None
        while todo and todo[-1][1] < end:
          index, time = todo.pop()
          # Some containers round timestamps to milliseconds.
          if abs(at - time) > period / 2 + 1e-3:
            continue
          if rgb is None:
            rgb = screen.show(frame).rgb
          yield index, rgb
        if not todo:
          return
  except (av.FFmpegError, OSError, IndexError) as error:
    raise UserError(
      f'{path} is no video that can be read ({error}); download it again'
    ) from error


def _spans(
  container: av.container.InputContainer,
  stream: av.VideoStream,
  begin: float,
  period: float,
) -> Iterator[tuple[float, av.VideoFrame, float]]:
  """Yields each good frame, its time, and until when it is the nearest."""
  last = None
  for tick in _ticks(container, stream, period):
    if tick.frame is None:
      continue
    time = tick.time - begin
    if last is not None:
      yield *last, (last[0] + time) / 2
    last = time, tick.frame.picture
  if last is not None:
    yield *last, math.inf


_STILLS = 'mjpeg', 'png', 'bmp', 'gif', 'tiff', 'webp'  # Or old cameras.
_HOLE = 0.5  # Maximum seconds without a frame that are filled.
_FEW = 8  # Frames until the usual interval is known.


class Picture(NamedTuple):
  """A frame of a video.

  Attributes:
    time: Seconds.
    rgb: uint8 [H, W, 3], upright.
    replaced: Whether this is the last good frame in place of a missing one.
    after_hole: Whether more than `_HOLE` seconds are missing before it.
    changes: What was done to its pixels and its time, in words.
  """

  time: float
  rgb: np.ndarray
  replaced: bool = False
  after_hole: bool = False
  changes: tuple[str, ...] = ()


def read_video(path: str) -> Iterator[Picture]:
  """Yields each frame of a video, with replacements for missing frames.

  Frames look as in a player, see `upright`; their times increase, see `clock`.

  Frames are missing if packets cannot be decoded, or only in part. A gap of k
  frame intervals there gets k - 1 replacements at even times, unless it is
  longer than `_HOLE`. Other gaps are kept, because frame rates may vary. A
  warning at the end reports the losses and whether the video stopped early.

  Raises:
    UserError: If the file is not a video, or no frame can be decoded.
  """
  try:
    container = open_video(path)
  except (av.FFmpegError, OSError) as error:
    raise UserError(
      f'{path} is no video that can be read ({error}); remove it or convert it '
      'to mp4'
    ) from error
  with container:
    stream, screen, period = _prepare(path, container)
    promised = float(container.duration or 0) / av.time_base
    count, lost, stand_ins, holes = 0, 0, 0, 0
    time, rgb = -period, None
    longest = period  # Longest interval of two frames so far.
    failed: list[float | None] = []  # Times of frames that failed.
    for at, found, repaired in _ticks(container, stream, period):
      if found is None:
        lost += 1
        failed.append(at)
        continue
      frame, interlaced = found
      before, time = time, at
      due = sum(t is None or before < t < time for t in failed)
      # Frames are in time order, packets need not be.
      failed = [t for t in failed if t is not None and t > time]
      gap, after_hole = time - before, False
      if rgb is not None:
        hole = gap - period > _HOLE
        # Damaged files may lose packets without an error.
        lapse = count >= _FEW and gap > 3 * longest
        after_hole = hole and (due > 0 or lapse)
        missing = max(due, round(gap / period) - 1) if due and not hole else 0
        for i in range(1, missing + 1):
          yield Picture(before + gap * i / (missing + 1), rgb, replaced=True)
        holes += after_hole
        stand_ins += missing
        if not due and not after_hole:
          longest = max(longest, gap)
      count += 1
      rgb, changes = screen.show(frame)
      changes += ('frames deinterlaced',) * interlaced
      changes += ('frames with repaired times',) * repaired
      yield Picture(time, rgb, after_hole=after_hole, changes=changes)
  if not count:
    raise UserError(
      f'no frame of {path} can be decoded; remove it or convert it to mp4'
    )
  # Sound often continues shortly after the last frame.
  early = time < 0.9 * promised - 1
  if lost or holes or early:
    logging.warning(
      '%s is damaged: kept %d frames, lost %d packets, replaced %d missing '
      'frames, cut at %d holes%s',
      path,
      count,
      lost,
      stand_ins,
      holes,
      f', ended {promised - time:.1f} s early' if early else '',
    )


def _prepare(
  path: object, container: av.container.InputContainer
) -> tuple[av.VideoStream, upright.Screen, float]:
  """Returns the stream to decode, its screen, and its seconds per frame."""
  stream = main_stream(path, container)
  # Conversion runs one process per core already.
  stream.codec_context.thread_count = 1
  screen = upright.Screen(float(stream.sample_aspect_ratio or 0))
  return stream, screen, float(1 / (stream.average_rate or 30))


def main_stream(
  path: object, container: av.container.InputContainer
) -> av.VideoStream:
  """Returns the stream that people mean: the largest that is no thumbnail.

  Raises:
    UserError: If there is no video stream, or none that can be decoded.
  """
  streams = container.streams.video
  if not streams:
    raise UserError(f'{path} has no video stream; remove it')
  decoders = [s for s in streams if s.codec_context is not None]
  if not decoders:
    raise UserError(
      f'{path} has a codec that no decoder here knows; convert it to mp4'
    )
  cover = av.stream.Disposition.attached_pic
  return max(
    decoders,
    key=lambda s: (
      not s.disposition & cover,
      s.codec_context.name not in _STILLS,
      s.codec_context.width * s.codec_context.height,
    ),
  )


class _Decoded(NamedTuple):
  picture: av.VideoFrame
  interlaced: bool  # Whether it was, before `upright.deinterlace`.


def _ticks(
  container: av.container.InputContainer,
  stream: av.VideoStream,
  period: float,
) -> Iterator[clock.Tick[_Decoded]]:
  """Yields the frames of a stream, progressive and with increasing times."""
  frames = upright.deinterlace(_decode(container, stream))
  return clock.repair(
    (
      (time, None if frame is None else _Decoded(frame, interlaced))
      for (time, frame), interlaced in frames
    ),
    period,
  )


def _decode(
  container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[float | None, av.VideoFrame | None]]:
  """Yields the time of each frame, if known, and the frame, or None if bad.

  Frames that the decoder filled in partly are bad, too.
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
