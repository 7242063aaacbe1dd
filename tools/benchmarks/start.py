"""Measures the time from process start to first batch, with a million clips."""

import contextlib
import dataclasses
import os
import tempfile
import time

import numpy as np
from ml_collections import ConfigDict

from benchmarks.measuring import Table, alternate, peak_mib, place
from benchmarks.pipeline import pipeline_settings
from xfactor.data import files, images
from xfactor.data.pipeline import parts as pipeline_parts
from xfactor.data.pipeline import training as pipeline_training
from xfactor.data.records import codec, folders, store
from xfactor.data.records import shards as shards_lib


def make_index(folder: str, name: str, clips: int) -> None:
  """Makes a data set of any number of clips, a thousand of them distinct.

  Its shards of frames are links to one file. The shard of clips, which training
  does not read, is empty.
  """
  frames = folders.frames_folder(folder, name, '1.0.0')
  table = folders.clips_folder(folder, name, '1.0.0')
  for path in (frames, table):
    path.mkdir(parents=True)
  rng = np.random.default_rng(0)
  writer = shards_lib.ShardWriter(frames / 'one')
  for _ in range(1000 * 12):
    grey = rng.integers(0, 256, (2, 2, 1), np.uint8).repeat(3, -1)
    jpeg = images.encode_jpeg(np.kron(grey, np.ones((8, 8, 1), np.uint8)))
    writer.write(codec.encode_frame(jpeg))
  shard = dataclasses.asdict(writer.close())
  count = clips // 1000
  names = [shards_lib.shard_name(name, 'train', i, count) for i in range(count)]
  for link in names:
    os.link(frames / 'one', frames / link)
  shards = [shard | {'file': link} for link in names]
  (table / 'none').write_text('')
  absent = {'file': 'none', 'records': 1000 * count, 'bytes': 0}
  shards_lib.write_index(
    table / 'clips-train.index.npz',
    ((f'{i:024x}', 12, 16, 16) for i in range(1000 * count)),
  )
  for path, split in (
    (frames, {'shards': shards}),
    (table, {'shards': [absent], 'frames_digest': files.digest(shards)}),
  ):
    manifest = {'format': store.FORMAT, 'splits': {'train': split}}
    files.write_json(path / 'manifest.json', manifest)


class Starter:
  """Makes the first batch of a process."""

  def __init__(self, settings: pipeline_parts.DataConfig):
    self._settings = settings

  def first(self) -> tuple[float, float]:
    """Returns the CPU seconds and peak MiB of the process so far."""
    batches = pipeline_training.Pipeline(self._settings).batches()
    next(batches)
    cpu = time.process_time()
    batches.close()
    return cpu, peak_mib()


def run(
  config: ConfigDict, *, clips: int, repeats: int, isolate: bool
) -> list[Table]:
  """Measures the time of a process to its first batch, including imports."""
  with tempfile.TemporaryDirectory() as folder:
    sizes = {f'{n:,} clips': n for n in (clips // 1000 * 1000, 1000)}
    table = Table('start: from a process to its first batch', list(sizes))
    settings = {}
    for name, count in sizes.items():
      make_index(folder, f'clips{count}', count)
      settings[name] = pipeline_settings(config, folder, 16, f'clips{count}')
    for name in alternate(sizes, repeats):
      began = time.perf_counter()
      with contextlib.ExitStack() as stack:
        call = place(isolate)(stack, Starter, settings[name])
        cpu, peak = call('first')
        table.add('wall s', name, time.perf_counter() - began)
      table.add('CPU s', name, cpu)
      table.add('peak RSS, MiB', name, peak)
  return [table]
