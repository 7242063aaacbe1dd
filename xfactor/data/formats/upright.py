"""Makes decoded video frames what a player shows.

Players weave the two fields of interlaced frames, stretch pixels that are not
square, turn and mirror frames by their display matrix, and map high dynamic
range to what screens can show.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type

from xfactor.data import images
from xfactor.data.formats import hdr
from xfactor.errors import UserError

# Pixels of a shape outside of this are damaged metadata.
_LONGEST_PIXEL = 4
_TRANSFERS = {16: 'pq', 18: 'hlg'}  # FFmpeg's AVColorTransferCharacteristic.
_BT2020, _BT2020_MATRIX, _UNSPECIFIED = 9, 9, 2

Timed = tuple[float | None, av.VideoFrame | None]


class Shown(NamedTuple):
  """A picture as a player shows it.

  Attributes:
    rgb: uint8 [H, W, 3].
    changes: What was done to its pixels, in words.
  """

  rgb: np.ndarray
  changes: tuple[str, ...]


class Screen:
  """Shows the frames of one video as a player does."""

  def __init__(self, pixel_aspect: float):
    """Initializes the screen.

    Args:
      pixel_aspect: Width of a pixel divided by its height; 0 if unknown.
    """
    known = 1 / _LONGEST_PIXEL <= pixel_aspect <= _LONGEST_PIXEL
    self._aspect = pixel_aspect if known else 1
    self._rotation: int | None = None
    self._matrix: np.ndarray | None = None

  def show(self, frame: av.VideoFrame) -> Shown:
    """Returns the picture of a deinterlaced frame.

    Raises:
      UserError: If it has too many pixels.
    """
    if frame.width * frame.height > images.MAX_MEGAPIXELS * 10**6:
      raise UserError(
        f'a video has frames of {frame.width} x {frame.height} pixels, which '
        'are too large; make it smaller'
      )
    changes, form = [], {}
    if self._aspect != 1:
      # Pixels are stretched, never squeezed: nothing is lost.
      form = {
        'width': round(frame.width * max(self._aspect, 1)),
        'height': round(frame.height / min(self._aspect, 1)),
        'interpolation': 'BICUBIC',
      }
      changes.append('frames stretched to square pixels')
    if transfer := _TRANSFERS.get(int(frame.color_trc)):
      wide = int(frame.color_primaries) in (_BT2020, _UNSPECIFIED)
      if int(frame.colorspace) == _UNSPECIFIED:
        frame.colorspace = _BT2020_MATRIX
      rgb = frame.to_ndarray(format='rgb48le', **form)
      rgb = hdr.to_sdr(rgb, transfer, wide)
      changes.append('frames tone-mapped from HDR')
    else:
      rgb = frame.to_ndarray(format='rgb24', **form)
    return Shown(self._turn(frame, rgb), tuple(changes))

  def _turn(self, frame: av.VideoFrame, rgb: np.ndarray) -> np.ndarray:
    # Only if it changes: PyAV's object for side data and the frame refer to
    # each other, which delays the release of the frame's memory.
    if self._rotation != frame.rotation:
      self._rotation = frame.rotation
      found = frame.side_data.get(Type.DISPLAYMATRIX)
      self._matrix = found and np.frombuffer(bytes(found), np.int32)
    return rgb if self._matrix is None else _turn(rgb, self._matrix)


def _turn(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Applies a display matrix, up to its scale and translation.

  The matrix takes the point (x, y) to (a x + c y, b x + d y), y downwards.
  """
  a, b, _, c, d = matrix[:5].astype(np.int64)
  if abs(a) + abs(d) < abs(b) + abs(c):
    rgb, a, d = rgb.swapaxes(0, 1), c, b
  return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def deinterlace(frames: Iterable[Timed]) -> Iterator[tuple[Timed, bool]]:
  """Replaces interlaced frames by progressive ones, with the filter bwdif.

  Args:
    frames: Times and frames in the order in which they are shown; None for
      frames that failed to decode.

  Yields:
    The same, in the same order, and whether the frame was interlaced.
  """
  graph, form = None, None
  waiting: collections.deque[tuple[float | None, bool]] = collections.deque()

  def pull() -> Iterator[tuple[Timed, bool]]:
    while waiting:
      try:
        frame = graph.vpull()
      except (av.BlockingIOError, av.EOFError):
        return
      time, interlaced = waiting.popleft()
      yield (time, frame), interlaced

  for time, frame in frames:
    now = frame and (frame.width, frame.height, frame.format.name)
    if graph is not None and now != form:
      graph.vpush(None)
      yield from pull()
      graph = None
    if frame is None or (graph is None and not frame.interlaced_frame):
      yield (time, frame), False
      continue
    if graph is None:
      graph, form = _graph(frame), now
    waiting.append((time, frame.interlaced_frame))
    graph.vpush(frame)
    yield from pull()
  if graph is not None:
    graph.vpush(None)
    yield from pull()


def _graph(frame: av.VideoFrame) -> av.filter.Graph:
  graph = av.filter.Graph()
  source = graph.add_buffer(
    width=frame.width,
    height=frame.height,
    format=frame.format,
    time_base=frame.time_base,
  )
  # One frame for each; those that are not marked as interlaced are copied.
  lines = graph.add('bwdif', 'mode=send_frame:deint=interlaced')
  graph.link_nodes(source, lines, graph.add('buffersink')).configure()
  return graph
