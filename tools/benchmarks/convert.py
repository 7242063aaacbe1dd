"""Measures conversion of 720p pictures and video to records on one core.

The same frames as JPEGs, as video in SDR and in HDR, which is tone-mapped, and
as JPEGs with the cameras of a lens, whose distortion is undone or not.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable
from unittest import mock

import av

from benchmarks.measuring import Table, Time, alternate, place, timed
from benchmarks.pipeline import make_walks
from xfactor.data import images, sources, verify
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import colmap, video

# Pixels of the footage, as (height, width).
_HD = 720, 1280


_CAMERA = '1 OPENCV 1280 720 900 900 640 360 -0.1 0.02 0 0'


def make_footage(folder: pathlib.Path) -> None:
  """Makes JPEGs, videos and a COLMAP project of the same 720p frames."""
  ((_, frames),) = make_walks(1, 24, _HD)
  for kind in ('jpeg/train/a', 'mp4/train', 'hdr/train', 'colmap/a/sparse'):
    (folder / kind).mkdir(parents=True)
  for number, rgb in enumerate(frames):
    path = folder / 'jpeg/train/a' / f'{number:04d}.jpg'
    path.write_bytes(images.encode_jpeg(rgb))
  (folder / 'colmap/a/images').symlink_to(folder / 'jpeg/train/a')
  model = {
    'cameras': [_CAMERA],
    'images': [f'{i + 1} 1 0 0 0 {i} 0 0 1 {i:04d}.jpg\n' for i in range(24)],
  }
  for name, lines in model.items():
    path = folder / 'colmap/a/sparse' / f'{name}.txt'
    path.write_text('\n'.join(lines) + '\n')
  for kind, pixels in (('mp4', 'yuv420p'), ('hdr', 'yuv420p10le')):
    with av.open(str(folder / kind / 'train/a.mp4'), 'w') as container:
      stream = container.add_stream('libx264', rate=30)
      stream.height, stream.width = _HD
      stream.pix_fmt = pixels
      if kind == 'hdr':  # HLG of BT.2020, by FFmpeg's numbers.
        context = stream.codec_context
        context.color_trc = 18
        context.color_primaries = context.colorspace = 9
      for rgb in frames:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, 'rgb24')))
      container.mux(stream.encode())


class Converter:
  """Converts footage on one core and measures the time."""

  def __init__(self, source: sources.Source, full: bool = False):
    """Prepares the conversion.

    Args:
      source: Source of the footage.
      full: Whether JPEGs are decoded in full before they are resized.
    """
    self._source = source
    self._full = full

  def convert(self) -> tuple[Time, Time, int, int]:
    """Returns the times of conversion and check, frames and their bytes."""
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
      with timed() as conversion:
        convert_run.convert(
          self._source, folder, workers=0, test_fraction=0.0, quiet=True
        )
      with timed() as check:
        verify.verify(folder, workers=0, quiet=True)
      store = store_lib.open_split(folder, self._source.name, 'train')
      sizes = [len(frame) for frame in store.frames(range(24))]
      return conversion, check, len(sizes), sum(sizes)


def run(*, sizes: Iterable[int], repeats: int, isolate: bool) -> list[Table]:
  """Measures conversion of 720p footage to frames of each size."""
  return [_compare_converters(size, repeats, isolate) for size in sizes]


def _compare_converters(size: int, repeats: int, isolate: bool) -> Table:
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    make_footage(folder)

    def footage(kind: str) -> video.Source:
      return video.Source(str(folder / kind), size=size, cut_threshold=2.0)

    def posed(undistort: bool) -> colmap.Source:
      return colmap.Source(
        str(folder / 'colmap'), size=size, undistort=undistort
      )

    variants = {
      'JPEGs': (footage('jpeg'),),
      'JPEGs decoded in full': (footage('jpeg'), True),
      'mp4': (footage('mp4'),),
      'mp4 in HDR': (footage('hdr'),),
      'with cameras': (posed(False),),
      'undistorted': (posed(True),),
    }
    converters = {
      name: place(isolate)(stack, Converter, *arguments)
      for name, arguments in variants.items()
    }
    height, width = _HD
    table = Table(
      f'convert: {width} x {height} to {size} pixels, one core', list(variants)
    )
    for call in converters.values():
      call('convert')  # Warm-up: imports and caches.
    for name in alternate(converters, repeats):
      conversion, check, frames, written = converters[name]('convert')
      table.add('frames/s', name, frames / conversion.wall)
      table.add('frames/CPU s', name, frames / conversion.cpu)
      table.add('verified frames/CPU s', name, frames / check.cpu)
      table.add('KiB written a frame', name, written / frames / 1024)
  return table
