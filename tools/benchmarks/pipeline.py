"""Compares the training pipeline on records with frames in loose files.

PIL reads the files at training time, as JPEGs and PNGs: in the size of the
records, and the originals of 640 x 360 pixels.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterable

import grain
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from benchmarks.measuring import (
  Table,
  Time,
  Unequal,
  alternate,
  peak_mib,
  place,
  timed,
)
from xfactor.data import images as images_lib
from xfactor.data.convert import run as convert_run
from xfactor.data.pipeline import parts as pipeline_parts
from xfactor.data.pipeline import training as pipeline_training
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic, video
from xfactor.data.views import Views

# Minimum number of frames that a run of `pipeline` reads.
_FRAMES = 512
# Size of typical original pictures, as (height, width) in pixels.
_ORIGINAL = 360, 640


class Loose:
  """Loads an example from loose files, with the frames of the pipeline."""

  def __init__(self, folder: str, extension: str, size: int):
    self._folder = folder
    self._extension = extension
    self._size = size

  def __call__(self, chosen: tuple[str, list[int]]) -> dict[str, np.ndarray]:
    clip, frames = chosen
    return {'images': np.stack([self._read(clip, i) for i in frames])}

  def _read(self, clip: str, frame: int) -> np.ndarray:
    path = os.path.join(self._folder, clip, f'{frame:04d}.{self._extension}')
    with Image.open(path) as image:
      square = ImageOps.fit(
        image.convert('RGB'),
        (self._size, self._size),
        Image.Resampling.LANCZOS,
      )
      return np.asarray(square)


class Reader:
  """A reader of the frames of training batches, and its measurements."""

  def __init__(
    self,
    settings: pipeline_parts.DataConfig,
    chosen: list[tuple[str, list[int]]],
    loose: tuple[str, str] | None,
  ):
    """Prepares the reader.

    Args:
      settings: Settings of the pipeline.
      chosen: Clip and frames of each example, as chosen by the pipeline.
      loose: Folder and extension of loose files, or None for the pipeline.
    """
    self._settings = settings
    self._chosen = chosen
    self._loose = loose

  def read(self, threads: int) -> tuple[Time, np.ndarray]:
    """Reads all batches, prefetched by threads or, if 0, one by one.

    Returns:
      The time and the images of the first batch.
    """
    batches = self._open(threads)
    first = None
    with timed() as result:
      for _ in range(len(self._chosen) // self._settings.batch_size):
        images = next(batches)['images']
        first = images if first is None else first
    batches.close()
    return result, first

  def peak(self) -> float:
    """Returns the peak resident size of the process in MiB."""
    return peak_mib()

  def _open(self, threads: int):
    settings = dataclasses.replace(self._settings, threads=threads)
    if self._loose is None:
      return pipeline_training.Pipeline(settings).batches()
    load = Loose(*self._loose, settings.image_size)
    dataset = grain.MapDataset.source(self._chosen).map(load)
    return iter(
      dataset.batch(settings.batch_size).to_iter_dataset(
        grain.ReadOptions(
          num_threads=threads,
          prefetch_buffer_size=settings.prefetch if threads else 0,
        )
      )
    )


def make_walks(walks: int, frames: int, shape: tuple[int, int]):
  """Yields the frames of synthetic walks as wide pictures.

  Yields:
    Name of the walk and its frames: uint8 [height, width, 3] each.
  """
  height, width = shape
  source = synthetic.Source(
    scenes=walks, frames=frames, size=height, with_depth=False
  )
  left = (width - height) // 2
  sides = (0, 0), (left, width - height - left), (0, 0)
  for number, item in enumerate(source.items()):
    (clip,) = source.clips(item)
    yield (
      f'{number:04d}',
      [np.pad(images_lib.decode(x), sides, 'reflect') for x in clip.frames],
    )


def write_loose(folder: pathlib.Path, frames: Iterable[np.ndarray]) -> None:
  """Writes pictures as JPEGs and as PNGs."""
  folder.mkdir(parents=True)
  for number, rgb in enumerate(frames):
    path = folder / f'{number:04d}.jpg'
    path.write_bytes(images_lib.encode_jpeg(rgb))
    path.with_suffix('.png').write_bytes(images_lib.encode_png(rgb))


def make_files(folder: pathlib.Path, size: int) -> None:
  """Makes originals and, from them, records and loose files of the same size.

  Under `folder`, `original/CLIP` has the wide pictures and `small/CLIP` the
  frames of the records, both as JPEGs and PNGs; `jpeg` is the source of the
  records.
  """
  for name, frames in make_walks(3, 12, _ORIGINAL):
    write_loose(folder / 'original' / name, frames)
    jpegs = folder / 'jpeg/train' / name
    jpegs.mkdir(parents=True)
    for path in (folder / 'original' / name).glob('*.jpg'):
      (jpegs / path.name).hardlink_to(path)
  source = video.Source(str(folder / 'jpeg'), size=size, cut_threshold=2.0)
  convert_run.convert(source, folder, workers=0, quiet=True)
  store = store_lib.open_split(folder, source.name, 'train')
  for clip in range(len(store)):
    frames = store.clip_frames(clip, range(int(store.num_frames[clip])))
    small = folder / 'small' / _walk(store, clip)
    write_loose(small, map(images_lib.decode, frames))
    for number, frame in enumerate(frames):  # Avoids encoding twice.
      (small / f'{number:04d}.jpg').write_bytes(frame)


def _walk(store: store_lib.FrameStore, clip: int) -> str:
  return store.clip_id(clip).split('/')[1]


def pipeline_settings(config: ConfigDict, folder: str, size: int, name: str):
  """Returns the recipe's pipeline settings for clips of 12 frames."""
  views = Views(
    num_views=config.data.contexts + 1, window=(12, 12), ramp_steps=0
  )
  return pipeline_parts.DataConfig(
    data_dir=folder,
    parts=(pipeline_parts.MixtureEntry(name, views),),
    batch_size=config.data.batch,
    image_size=size,
    min_length=views.num_views,
    threads=config.data.threads,
    prefetch=config.data.prefetch,
  )


def _choices(
  settings: pipeline_parts.DataConfig,
) -> list[tuple[str, list[int]]]:
  """Returns clips and frames of a run's batches, as the pipeline chooses."""
  (part,) = settings.parts
  store = store_lib.open_split(settings.data_dir, part.name, part.split)
  batches = pipeline_training.Pipeline(settings).batches()
  chosen = []
  while len(chosen) * part.views.num_views < _FRAMES:
    batch = next(batches)
    clips = [_walk(store, clip) for clip in batch['clip'].tolist()]
    chosen += zip(clips, batch['frames'].tolist(), strict=True)
  batches.close()
  return chosen


def check_frames_equal(images: dict[str, np.ndarray]) -> str:
  """Returns a line stating that all read the same pictures.

  Raises:
    Unequal: If they differ by more than decoding, resampling and the JPEG
      compression of the records explain.
  """
  (_, ours), *others = images.items()
  worst = 0.0
  for name, other in others:
    off = np.abs(ours.astype(np.int32) - other).mean()
    worst = max(worst, float(off))
    if off > 6:
      raise Unequal(
        f'the first batch from {name} differs from that of the pipeline by '
        f'{off:.1f} levels of 255 on average: they do not read the same '
        'frames, so their times cannot be compared'
      )
  return f'all read the same pictures, within {worst:.2g} levels of 255'


def run(
  config: ConfigDict, *, sizes: Iterable[int], repeats: int, isolate: bool
) -> list[Table]:
  """Compares readers of training batches, for each frame size.

  Raises:
    Unequal: If they do not read the same pictures.
  """
  return [_compare_readers(config, size, repeats, isolate) for size in sizes]


def _compare_readers(
  config: ConfigDict, size: int, repeats: int, isolate: bool
) -> Table:
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    make_files(pathlib.Path(folder), size)
    settings = pipeline_settings(config, folder, size, video.Source.name)
    chosen = _choices(settings)
    height, width = _ORIGINAL
    kinds = {'records': None} | {
      f'{files} {extension.upper()}': (os.path.join(folder, kind), extension)
      for kind, files in (
        ('small', f'{size} x {size}'),
        ('original', f'{width} x {height}'),
      )
      for extension in ('jpg', 'png')
    }
    readers = {
      name: place(isolate)(stack, Reader, settings, chosen, loose)
      for name, loose in kinds.items()
    }
    views = settings.parts[0].views.num_views
    frames = len(chosen) * views
    table = Table(
      f'pipeline: runs of {frames} frames to {size} pixels in batches of '
      f'{settings.batch_size} x {views}, files in the page cache',
      list(readers),
    )
    warm = {name: call('read', 0)[1] for name, call in readers.items()}
    print(check_frames_equal(warm), flush=True)
    _measure_readers(table, readers, repeats, frames, settings.threads)
    for name, loose in kinds.items():
      where, extension = loose or (os.path.join(folder, 'small'), 'jpg')
      sizes = [p.stat().st_size for p in _files(where, f'*.{extension}')]
      table.add('KiB a frame', name, np.mean(sizes) / 1024)
  return table


def _files(folder: str, pattern: str) -> list[pathlib.Path]:
  return sorted(pathlib.Path(folder).rglob(pattern))


def _measure_readers(
  table: Table, readers, repeats: int, frames: int, threads: int
) -> None:
  for name in alternate(readers, repeats):
    result, _ = readers[name]('read', 0)
    table.add('frames/s, one thread', name, frames / result.wall)
    table.add('frames/CPU s, one thread', name, frames / result.cpu)
  # With threads only wall time counts, since they read ahead.
  for name in alternate(readers, repeats):
    result, _ = readers[name]('read', threads)
    table.add(f'frames/s, {threads} threads', name, frames / result.wall)
  for name, call in readers.items():
    table.add('peak RSS, MiB', name, call('peak'))
