"""Finds the folders, versions and splits of converted data sets."""

import dataclasses
import importlib
import os
import re

from etils import epath

from xfactor.data import files, sources
from xfactor.errors import UserError

_VERSION = re.compile(r'\d+\.\d+\.\d+')


def frames_folder(
  data_dir: str | os.PathLike[str], name: str, version: str
) -> epath.Path:
  """Returns the folder for the frames of a data set."""
  return files.data_folder(data_dir) / name / 'frames' / version


def clips_folder(
  data_dir: str | os.PathLike[str], name: str, version: str
) -> epath.Path:
  """Returns the folder for the clips of a data set."""
  return files.data_folder(data_dir) / name / 'clips' / version


def versions(data_dir: str | os.PathLike[str], name: str) -> list[str]:
  """Returns the complete versions of a data set, oldest first."""
  clips = files.data_folder(data_dir) / name / 'clips'
  if not clips.exists():
    return []
  found = [p.name for p in clips.iterdir() if _VERSION.fullmatch(p.name)]
  found = [
    v
    for v in found
    if (clips / v / 'manifest.json').exists()
    and (frames_folder(data_dir, name, v) / 'manifest.json').exists()
  ]
  return sorted(found, key=lambda v: tuple(map(int, v.split('.'))))


def available(data_dir: str | os.PathLike[str]) -> list[str]:
  """Returns the names of the complete data sets of a folder, sorted."""
  folder = files.data_folder(data_dir)
  if not folder.exists():
    return []
  names = (p.name for p in folder.iterdir() if not p.name.startswith('.'))
  return sorted(name for name in names if versions(data_dir, name))


def splits(data_dir: str | os.PathLike[str], name: str) -> list[str]:
  """Returns the splits of a data set's newest version, sorted."""
  found = versions(data_dir, name)
  if not found:
    return []
  folder = clips_folder(data_dir, name, found[-1])
  return sorted(files.read_json(folder / 'manifest.json')['splits'])


def missing(
  data_dir: str | os.PathLike[str], name: str, version: str
) -> UserError:
  """Returns the error for a missing data set, with what exists and a remedy."""
  folder = files.data_folder(data_dir)
  root = folder / name
  if name in sources.NAMES:
    remedy, flags = 'make it with', f'--dataset={name}'
    source = importlib.import_module(f'{sources.__name__}.{name}').Source
    for field in dataclasses.fields(source):
      if field.default is dataclasses.MISSING:
        value = 'FOLDER' if field.name == 'source' else field.name.upper()
        flags += f' --{field.name}={value}'
  else:
    remedy = f'there is no converter for {name} yet; convert your copy with'
    flags = f'--dataset=video --name={name} --source=FOLDER'
  unfinished = root.exists() and any(
    p.name.startswith('.incomplete-') for p in root.iterdir()
  )
  others = ', '.join(available(data_dir)) or 'no data set'
  return UserError(
    f'there is no data set {name!r}{version and f" of version {version}"}: '
    f'looked for {root / "frames"} and {root / "clips"}; '
    f'{folder} holds {others}; '
    + ('its conversion was not finished, ' if unfinished else '')
    + f'{remedy}: python tools/convert_datasets.py {flags} '
    f'--data_dir={folder}'
  )
