"""Lists converted data sets from their manifests."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np
from jaxtyping import Int

from xfactor.data import files
from xfactor.data.records import folders
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError

HEADERS = (
  *('data set', 'version', 'split', 'clips', 'frames', 'MiB', 'depth'),
  'converted by',
)
_ROWS = 200  # Listed bad inputs; manifest.json has all of them.


@dataclasses.dataclass(frozen=True)
class Split:
  """A split of one version of a data set, from the manifests.

  Attributes:
    name: Name of the data set.
    version: Semantic version.
    split: Name of the split, for instance 'train'.
    clips: Number of clips.
    frames: Number of frames.
    bytes: Size of the records of frames and clips.
    depth: Whether frames have depth.
    source: Source of the conversion and its version.
  """

  name: str
  version: str
  split: str
  clips: int
  frames: int
  bytes: int
  depth: bool
  source: str

  @property
  def label(self) -> str:
    return f'{self.name} {self.version} {self.split}'

  def row(self) -> tuple[str, ...]:
    """Returns the row of the split in the table of all splits."""
    size, depth = f'{self.bytes / 2**20:,.1f}', 'yes' if self.depth else 'no'
    counts = f'{self.clips:,}', f'{self.frames:,}'
    name = self.name, self.version, self.split
    return *name, *counts, size, depth, self.source


def overview(data_dir: str | os.PathLike[str]) -> tuple[list[Split], list[str]]:
  """Returns all splits of a folder, and a sentence per unreadable version.

  Raises:
    UserError: If there is no converted data set.
  """
  splits, problems = [], []
  names = folders.available(data_dir)
  if not names:
    raise UserError(
      f'{data_dir} holds no converted data set; pass the --data_dir of a '
      'conversion (python tools/convert_datasets.py)'
    )
  for name in names:
    for version in folders.versions(data_dir, name):
      try:
        splits += _splits(data_dir, name, version)
      except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        root = files.data_folder(data_dir) / name
        problems.append(
          f'{name} {version} cannot be listed ({e!r}); check it with '
          f'python tools/convert_datasets.py --verify={root}.'
        )
  return splits, problems


def _splits(
  data_dir: str | os.PathLike[str], name: str, version: str
) -> list[Split]:
  frames_folder = folders.frames_folder(data_dir, name, version)
  clips_folder = folders.clips_folder(data_dir, name, version)
  features = files.read_json(frames_folder / 'features.json')
  frames = files.read_json(frames_folder / 'manifest.json')['splits']
  manifest = files.read_json(clips_folder / 'manifest.json')
  return [
    Split(
      name=name,
      version=version,
      split=split,
      clips=clips['clips'],
      frames=clips['frames'],
      bytes=sum(x['bytes'] for x in frames[split]['shards'] + clips['shards']),
      depth='depth' in features['featuresDict']['features'],
      source=f'{manifest["source"]} {manifest["source_version"]}',
    )
    for split, clips in sorted(manifest['splits'].items())
  ]


def open_split(
  data_dir: str | os.PathLike[str], split: Split
) -> store_lib.FrameStore:
  """Opens a split, or returns the store that is already open.

  Raises:
    UserError: Errors of `store.open_split`.
    OSError: If the split was deleted.
  """
  folder = folders.clips_folder(data_dir, split.name, split.version)
  written = (folder / 'manifest.json').stat().mtime
  return _opened(data_dir, split, written)


@functools.lru_cache(maxsize=4)
def _opened(
  data_dir: str | os.PathLike[str], split: Split, _: Any
) -> store_lib.FrameStore:
  return store_lib.open_split(data_dir, split.name, split.split, split.version)


@functools.lru_cache(maxsize=4)
def _ids(store: store_lib.FrameStore) -> list[str]:
  return [clip_id.casefold() for clip_id in store.clip_ids()]


def search(store: store_lib.FrameStore, text: str) -> Int[np.ndarray, 'n']:
  """Returns the numbers of clips whose id contains a text, in any case."""
  if not text:
    return np.arange(len(store))
  wanted = text.casefold()
  found = [i for i, clip_id in enumerate(_ids(store)) if wanted in clip_id]
  return np.array(found, int)


def bad_inputs(
  store: store_lib.FrameStore,
) -> tuple[str, list[tuple[str, str]]]:
  """Returns a summary of the bad inputs of a conversion, and a list of them.

  The list has the first inputs that could not be converted, and the reasons.
  """
  manifest = store.manifest()
  skipped, missing = manifest['skipped'], manifest.get('missing')
  facts = [
    f'Inputs of {store.name} {store.version} that could not be converted: '
    f'{len(skipped):,}',
    f'unreadable frames of {store.split} replaced by a neighbouring frame: '
    f'{manifest["splits"][store.split]["replaced"]:,}',
  ]
  if left_out := manifest.get('left_out'):
    facts.append(f'clips excluded by the split lists: {left_out:,}')
  if missing:
    facts.append(f'ids of the split lists without a clip: {len(missing):,}')
  if len(skipped) > _ROWS:
    facts.append(f'the first {_ROWS} are listed below, manifest.json has all')
  return '; '.join(facts) + '.', [(i, why) for i, why in skipped[:_ROWS]]
