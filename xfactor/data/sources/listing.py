"""Lists the videos and the folders of pictures below a folder."""

import collections
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from xfactor.data import files, naming, sources
from xfactor.data.sources import pyramid

# Surely files.
_PICTURES = ('.jpg', '.jpeg', '.png')


class Folder(NamedTuple):
  """A folder below another one.

  Attributes:
    path: Path relative to the other one; '.' for that one itself.
    names: Names of its files, sorted, without hidden ones.
    error: Why the folder cannot be read, or None.
  """

  path: str
  names: list[str]
  error: str | None = None


def walk(root: str | os.PathLike[str]) -> Iterator[Folder]:
  """Yields a folder and those below it, each once, hidden ones excluded.

  Follows symbolic links, after all folders that are not behind one: a folder
  goes by its own name, and loops end.
  """
  if files.is_remote(root):
    yield from _walk_remote(epath.Path(root), '.')
    return
  seen: set[tuple[int, int]] = set()
  waiting, links = collections.deque(['.']), collections.deque()
  while waiting or links:
    relative = (waiting or links).popleft()
    names = []
    try:
      stat = os.stat(os.path.join(root, relative))
      if (key := (stat.st_dev, stat.st_ino)) in seen:
        continue
      seen.add(key)
      with os.scandir(os.path.join(root, relative)) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
      yield Folder(relative, [], str(error))
      continue
    for entry in entries:
      if entry.name.startswith('.'):
        continue
      # Only links cost a call.
      link = entry.is_symlink()
      if os.path.isdir(entry.path) if link else entry.is_dir():
        below = os.path.normpath(os.path.join(relative, entry.name))
        (links if link else waiting).append(below)
      else:
        names.append(entry.name)
    yield Folder(relative, names)


def _walk_remote(folder: epath.Path, relative: str) -> Iterator[Folder]:
  """Does the same in a bucket, which has no links."""
  names, folders = [], []
  for path in sorted(folder.iterdir(), key=lambda path: path.name):
    if not path.name.startswith('.'):
      # Asking about each picture would be slow.
      known = path.name.lower().endswith(_PICTURES)
      is_folder = not known and path.is_dir()
      (folders if is_folder else names).append(path.name)
  yield Folder(relative, names)
  for name in folders:
    below = os.path.normpath(os.path.join(relative, name))
    yield from _walk_remote(folder / name, below)


def pictures(names: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
  """Returns the names of pictures in natural order, without hidden files."""
  kept = [
    name
    for name in names
    if name.lower().endswith(suffixes) and not name.startswith('.')
  ]
  return sorted(kept, key=naming.natural)


def items(
  root: str,
  video_suffixes: tuple[str, ...],
  picture_suffixes: tuple[str, ...],
  size: int,
) -> list[sources.Item]:
  """Returns an item for each video and each folder of pictures.

  Pictures next to videos are no frames. Folders such as images, images_2 and
  images_4 with the same pictures are one item.

  Args:
    root: Folder.
    video_suffixes: Suffixes of videos.
    picture_suffixes: Suffixes of pictures.
    size: Pixels of the frames, to choose one of several sizes.

  Returns:
    Items with unique ids; the payload is the path relative to `root`.
  """
  found: list[_Found] = []
  folders: dict[str, list[str]] = {}
  for folder in walk(root):
    if folder.error is not None:
      found.append(_Found(folder.path, problem=folder.error))
    videos = [n for n in folder.names if n.lower().endswith(video_suffixes)]
    for name in videos:
      path = os.path.normpath(os.path.join(folder.path, name))
      if not _is_repeated(root, path):
        found.append(_Found(path, bytes=_bytes(root, [path])))
    if not videos and (own := pictures(folder.names, picture_suffixes)):
      folders[folder.path] = own
  found += _picture_folders(root, folders, size)
  return _with_ids(root, found)


def ignored(
  root: str, video_suffixes: tuple[str, ...], picture_suffixes: tuple[str, ...]
) -> dict[str, int]:
  """Returns how many files of each kind are in no item; see `items`."""
  count = collections.Counter()
  for folder in walk(root):
    videos = any(n.lower().endswith(video_suffixes) for n in folder.names)
    for name in folder.names:
      if name.lower().endswith(picture_suffixes):
        count['pictures next to videos'] += videos
      elif not name.lower().endswith(video_suffixes):
        count[_kind(name)] += 1
  return dict(+count)


def others(root: str, pattern: str) -> dict[str, int]:
  """Returns how many files of each kind below a folder do not fit a pattern.

  Args:
    root: Folder.
    pattern: Regular expression of paths relative to it, in lower case.
  """
  fits = re.compile(pattern).fullmatch
  return dict(
    collections.Counter(
      _kind(name)
      for folder in walk(root)
      for name in folder.names
      if not fits(os.path.normpath(f'{folder.path}/{name}').lower())
    )
  )


def _kind(name: str) -> str:
  return os.path.splitext(name)[1].lower() or 'without suffix'


def video_item(path: str) -> sources.Item:
  """Returns the item of a single video file."""
  folder, name = os.path.split(path)
  return _with_ids(folder, [_Found(name, bytes=_bytes(folder, [name]))])[0]


class _Found(NamedTuple):
  """A video or a folder of pictures, its name if different, and its group."""

  path: str
  bytes: int = 1
  name: str | None = None
  group: str | None = None
  problem: str | None = None


def _picture_folders(
  root: str, folders: dict[str, list[str]], size: int
) -> Iterator[_Found]:
  """Yields the folders of pictures, one for those of the same pictures."""
  families = collections.defaultdict(list)
  for path in folders:
    parent, name = os.path.split(path)
    families[parent if pyramid.is_level(name) else path].append(path)
  for parent, paths in families.items():
    levels = [(pathlib.Path(root, path), folders[path]) for path in paths]
    group = None
    if len(paths) > 1:
      if pyramid.is_pyramid(levels):
        chosen = pyramid.choose(levels, size)
        path = paths[levels.index(chosen)]
        name = os.path.join(parent, 'images')
        yield _Found(path, _bytes(root, _join(path, folders[path])), name)
        continue
      group = parent if pyramid.same_pictures(levels) else None
    for path in paths:
      total = _bytes(root, _join(path, folders[path]))
      yield _Found(path, total, group=group)


def _join(folder: str, names: Iterable[str]) -> list[str]:
  return [os.path.join(folder, name) for name in names]


def _bytes(root: str, paths: Iterable[str]) -> int:
  """Returns the size of files; those that are missing count as empty."""
  total = 0
  for path in paths:
    try:
      total += os.path.getsize(os.path.join(root, path))
    except OSError:
      continue
  return total


def _is_repeated(root: str, path: str) -> bool:
  """Returns whether a video is a link to a file below the same folder."""
  full = os.path.join(root, path)
  if not os.path.islink(full) or not os.path.exists(full):
    return False
  real, base = os.path.realpath(full), os.path.realpath(root)
  return real.startswith(base + os.sep) and '/.' not in real[len(base) :]


def _with_ids(root: str, found: Sequence[_Found]) -> list[sources.Item]:
  """Returns items; equal names get the suffixes of their files."""
  top = os.path.basename(os.path.abspath(root))
  stems = {}
  for one in found:
    name = one.name or one.path
    if not os.path.isdir(os.path.join(root, one.path)):
      name = os.path.splitext(name)[0]
    stems[one] = naming.clip_id(
      (top if name == '.' else name).replace(os.sep, '/')
    )
  count = collections.Counter(stems.values())
  out = []
  for one, stem in stems.items():
    full = naming.clip_id((one.name or one.path).replace(os.sep, '/'))
    first, *rest = stem.split('/')
    group = stem if one.group is None else naming.clip_id(one.group)
    out.append(
      sources.Item(
        id=stem if count[stem] == 1 or one.path == '.' else full,
        payload=one.path,
        split=first if rest and first in ('train', 'test') else None,
        size=one.bytes,
        group=group,
        problem=one.problem,
      )
    )
  return sorted(out, key=lambda item: (item.id, item.payload))
