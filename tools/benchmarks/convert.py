"""Measures conversion of 720p pictures and video to records on one core."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable
from unittest import mock

import av

from benchmarks.measuring import Table, Time, alternate, place, timed
from benchmarks.pipeline import make_walks
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import video

# Pixels of the footage, as (height, width).
_HD = 720, 1280


def make_footage(folder: pathlib.Path) -> None:
  """Makes a folder of JPEGs and an mp4 of the same 720p frames."""
  ((_, frames),) = make_walks(1, 24, _HD)
  for kind in ('jpeg/train/a', 'mp4/train'):
    (folder / kind).mkdir(parents=True)
  for number, rgb in enumerate(frames):
    path = folder / 'jpeg/train/a' / f'{number:04d}.jpg'
    path.write_bytes(images.encode_jpeg(rgb))
  with av.open(str(folder / 'mp4/train/a.mp4'), 'w') as container:
    stream = container.add_stream('libx264', rate=30)
    stream.height, stream.width = _HD
    stream.pix_fmt = 'yuv420p'
    for rgb in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, 'rgb24')))
    container.mux(stream.encode())


class Converter:
  """Converts footage on one core and measures the time."""

  def __init__(self, folder: str, size: int, full: bool):
    """Prepares the conversion.

    Args:
      folder: Folder of the footage.
      size: Image size of the records in pixels.
      full: Whether JPEGs are decoded in full before they are resized.
    """
    self._source = video.Source(folder, size=size, cut_threshold=2.0)
    self._full = full

  def convert(self) -> tuple[Time, int, int]:
    """Returns the time, the number of frames and their size in bytes."""
    with contextlib.ExitStack() as stack:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      if self._full:
        stack.enter_context(
          mock.patch.object(
            images,
            'read_square',
            lambda data, size, _: images.centre_crop_resize(
              images.decode(data), size
            ),
          )
        )
      with timed() as result:
        convert_run.convert(self._source, folder, workers=0, quiet=True)
      store = store_lib.open_split(folder, self._source.name, 'train')
      sizes = [len(frame) for frame in store.frames(range(24))]
      return result, len(sizes), sum(sizes)


def run(*, sizes: Iterable[int], repeats: int, isolate: bool) -> list[Table]:
  """Measures conversion of 720p footage to frames of each size."""
  return [_compare_converters(size, repeats, isolate) for size in sizes]


def _compare_converters(size: int, repeats: int, isolate: bool) -> Table:
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    make_footage(folder)
    kinds = {
      'JPEGs': ('jpeg', False),
      'JPEGs decoded in full': ('jpeg', True),
      'mp4': ('mp4', False),
    }
    converters = {
      name: place(isolate)(stack, Converter, str(folder / kind), size, full)
      for name, (kind, full) in kinds.items()
    }
    height, width = _HD
    table = Table(
      f'convert: {width} x {height} to {size} pixels, one core', list(kinds)
    )
    for call in converters.values():
      call('convert')  # Warm-up: imports and caches.
    for name in alternate(converters, repeats):
      result, frames, written = converters[name]('convert')
      table.add('frames/s', name, frames / result.wall)
      table.add('frames/CPU s', name, frames / result.cpu)
      table.add('KiB written a frame', name, written / frames / 1024)
  return table
