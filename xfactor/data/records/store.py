"""Reads converted data sets, whose on-disk format is as follows.

A data set NAME is two ordinary TFDS array_record data sets, readable with
`tfds.builder_from_directory(FOLDER).as_data_source(SPLIT)`:

  DATA_DIR/NAME/frames/VERSION   one frame per record: `image` (JPEG, or PNG in
                                 sets of small pictures) and, for data sets
                                 that have it, `depth` (16-bit PNG); the frames
                                 of a clip are contiguous
  DATA_DIR/NAME/clips/VERSION    one clip per record: `codec.Clip`

Both folders hold `manifest.json` (source, sizes, checksums). The clips' folder
also holds `clips-SPLIT.index.npz`, the clips' table as columns, which opens a
million clips without a million reads.

Records are `tf.train.Example` protocol buffers. Reading needs neither
TensorFlow nor TFDS.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from etils import epath

from xfactor.data import files
from xfactor.data.formats import npz
from xfactor.data.records import codec
from xfactor.data.records import folders as folders_lib
from xfactor.errors import UserError

FORMAT = 1
# Clip records per read when reading all of them.
_CHUNK = 4096


class FrameStore:
  """The clips and frames of one split; picklable, opens its files lazily.

  Safe to use from many threads. Get one from `open_split`.

  Attributes:
    name: Name of the data set.
    split: Name of the split, for instance 'train'.
    version: Semantic version.
    num_frames: int32 [clips], the length of each clip.
    first_frame: int64 [clips], the index of each clip's first frame.
    height: int32 [clips] pixels.
    width: int32 [clips] pixels.
    digest: sha256 over the names, sizes and checksums of the split's records.
  """

  def __init__(
    self,
    *,
    name: str,
    split: str,
    version: str,
    clips_folder: epath.Path,
    frames: array_record_data_source.ArrayRecordDataSource,
    clips: array_record_data_source.ArrayRecordDataSource,
    columns: dict[str, np.ndarray],
    digest: str,
  ):
    self.name = name
    self.split = split
    self.version = version
    self.digest = digest
    self.num_frames = columns['num_frames']
    self.height = columns['height']
    self.width = columns['width']
    ends = np.cumsum(self.num_frames, dtype=np.int64)
    self.first_frame = ends - self.num_frames
    self._id_offsets = columns['id_offsets']
    self._clips_folder = clips_folder
    self._frames = frames
    self._clips = clips

  def __len__(self) -> int:
    """Returns the number of clips."""
    return len(self.num_frames)

  def manifest(self) -> dict[str, Any]:
    """Returns the clips' manifest: source, its version and options, ..."""
    return files.read_json(self._clips_folder / 'manifest.json')

  def __repr__(self) -> str:
    return (
      f'FrameStore({self.name}/{self.split} {self.version}: {len(self)} '
      f'clips, {len(self._frames)} frames)'
    )

  @functools.cached_property
  def _id_bytes(self) -> bytes:
    # Read lazily: ids are the bulk of the table, and training needs none.
    return _load_index(self._clips_folder, self.split, ('id_bytes',))[
      'id_bytes'
    ].tobytes()

  def clip_id(self, clip: int) -> str:
    """Returns the id of clip number `clip`."""
    begin, end = self._id_offsets[clip : clip + 2]
    try:
      return self._id_bytes[begin:end].decode()
    except UnicodeDecodeError as e:
      raise UserError(
        f'the names of clips in {self._clips_folder} are damaged ({e}); copy '
        'or convert the data set again'
      ) from e

  def clip_ids(self) -> list[str]:
    """Returns the ids of all clips, in order."""
    return [self.clip_id(i) for i in range(len(self))]

  def rows_of(self, ids: Sequence[str], path: epath.Path) -> np.ndarray:
    """Returns int64 [n], the indices of clips that a file names.

    Raises:
      UserError: If the split lacks one of them.
    """
    numbers = {clip_id: i for i, clip_id in enumerate(self.clip_ids())}
    if unknown := [i for i in ids if i not in numbers]:
      raise UserError(
        f'{path} names clips that are not in the data set, for instance '
        f'{unknown[0]}; delete the file'
      )
    return np.array([numbers[i] for i in ids], np.int64)

  def remember(
    self, name: str, key: str, choose: Callable[[], Any]
  ) -> tuple[Any, epath.Path]:
    """Returns a choice that is stored with the clips, and the path of its file.

    Args:
      name: Prefix of the file name, NAME-SPLIT.json.
      key: Key of the choice in the file.
      choose: Function of the data that makes the choice, as JSON values.
    """
    path = self._clips_folder / f'{name}-{self.split}.json'
    entries = files.read_json(path) if path.exists() else {}
    if key not in entries:
      entries[key] = choose()
      # If this is read-only, the next reader will make the same choice.
      with contextlib.suppress(OSError):
        files.write_json(path, entries)
    return entries[key], path

  def clip(self, clip: int) -> codec.Clip:
    """Reads the record of clip number `clip`."""
    return codec.decode_clip(self._clips[clip])

  @functools.cached_property
  def posed(self) -> np.ndarray:
    """bool [clips], whether the cameras of all of a clip's frames are known.

    The first access reads the record of every clip (half a minute per million
    from a disk) and stores the result in `clips/VERSION/cameras-SPLIT.json`.

    Raises:
      UserError: If no clip has cameras, or a record is damaged.
    """
    spans, _ = self.remember('cameras', self.digest, self._posed_spans)
    if not spans:
      raise UserError(
        f'no clip of {self.name}/{self.split} has cameras, which posed models '
        'need; convert a data set with known cameras, or train an XFactor '
        'recipe, which needs none'
      )
    out = np.zeros(len(self), bool)
    for begin, end in spans:
      out[begin:end] = True
    return out

  def _posed_spans(self) -> list[list[int]]:
    """Returns [begin, end) of each run of clips with cameras; usually one."""
    # Pad with 0 on both sides so that every run has a start and an end.
    posed = np.zeros(len(self) + 2, np.int8)
    try:
      for first in range(0, len(self), _CHUNK):
        chunk = range(first, min(first + _CHUNK, len(self)))
        clips = map(codec.decode_clip, self._clips.__getitems__(chunk))
        posed[first + 1 : chunk.stop + 1] = [clip.posed for clip in clips]
    except RuntimeError as e:
      raise UserError(
        f'the cameras of {self} cannot be read: {e}; copy or convert the data '
        'set again'
      ) from e
    return np.flatnonzero(np.diff(posed)).reshape(-1, 2).tolist()

  def frame(self, frame: int) -> bytes:
    """Returns the JPEG or PNG of frame `frame` of the split.

    Raises:
      RuntimeError: If the bytes on disk do not match their checksum.
      ValueError: If there is no such frame or its record is broken.
    """
    return codec.decode_frame(self._frames[frame])

  def frames(self, frames: Iterable[int]) -> list[bytes]:
    """Returns several frames of the split; raises like `frame`."""
    # One by one: for the few frames of a training example, the data source's
    # batched read is six times slower, as it starts a thread pool each time.
    return [self.frame(int(i)) for i in frames]

  def clip_frames(self, clip: int, offsets: Iterable[int]) -> list[bytes]:
    """Returns frames of one clip, counted from its beginning.

    Raises:
      IndexError: If an offset is outside the clip.
    """
    first, length = int(self.first_frame[clip]), int(self.num_frames[clip])
    offsets = [int(i) for i in offsets]
    if not all(0 <= i < length for i in offsets):
      raise IndexError(f'frames {offsets} of a clip of {length} frames')
    return self.frames(first + i for i in offsets)

  def depth(self, frame: int) -> bytes:
    """Returns the depth PNG of frame `frame`; raises like `frame`."""
    return codec.decode_frame(self._frames[frame], 'depth')


def _index_file(folder: epath.Path, split: str) -> epath.Path:
  return folder / f'clips-{split}.index.npz'


def _load_index(
  folder: epath.Path, split: str, keys: Sequence[str]
) -> dict[str, np.ndarray]:
  return npz.read(_index_file(folder, split), keys)


def _data_source(
  folder: epath.Path, shards: Sequence[dict[str, Any]]
) -> array_record_data_source.ArrayRecordDataSource:
  """Opens records without reading each file's footer.

  Raises:
    UserError: If a file is missing or its size has changed.
  """

  def check(shard: dict[str, Any]) -> str | None:
    path = folder / shard['file']
    if path.name != shard['file']:
      return f'the manifest of {folder} names a file in another folder'
    try:
      size = path.stat().length
    except FileNotFoundError:
      return f'{path} is missing'
    if size != shard['bytes']:
      return f'{path} has {size} bytes instead of {shard["bytes"]}'
    return None

  with futures.ThreadPoolExecutor(16) as pool:
    for problem in pool.map(check, shards):
      if problem:
        raise UserError(f'{problem}; copy or convert the data set again')
  return array_record_data_source.ArrayRecordDataSource(
    [f'{folder / s["file"]}[0:{s["records"]}]' for s in shards]
  )


def open_split(
  data_dir: str | os.PathLike[str],
  name: str,
  split: str,
  version: str | None = None,
) -> FrameStore:
  """Opens one split of a converted data set.

  Args:
    data_dir: Folder of converted data sets, local or gs://.
    name: Name of the data set.
    split: Name of the split, for instance 'train'.
    version: Semantic version; the newest by default.

  Raises:
    UserError: If the data set, version or split is missing, or files are
      missing, truncated or from different conversions.
  """
  found = folders_lib.versions(data_dir, name)
  if not found or (version and version not in found):
    raise folders_lib.missing(data_dir, name, version or '')
  version = version or found[-1]
  folders = (
    folders_lib.frames_folder(data_dir, name, version),
    folders_lib.clips_folder(data_dir, name, version),
  )
  try:
    return _open(name, split, version, folders)
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
    raise UserError(
      f'the manifests or the index of {folders[0]} and {folders[1]} are '
      f'damaged ({type(e).__name__}: {e}); copy or convert the data set again'
    ) from e


def _open(
  name: str, split: str, version: str, folders: tuple[epath.Path, epath.Path]
) -> FrameStore:
  manifests = [files.read_json(folder / 'manifest.json') for folder in folders]
  if any(m['format'] != FORMAT for m in manifests):
    raise UserError(
      f'{folders[0].parent.parent} was written in format '
      f'{manifests[0]["format"]}, but this program reads format '
      f'{FORMAT}; convert it again with --overwrite'
    )
  splits = [m['splits'] for m in manifests]
  if split not in splits[0]:
    raise UserError(
      f'data set {name!r} has no split {split!r}; it has '
      f'{", ".join(sorted(splits[0]))}'
    )
  frames, clips = (s[split] for s in splits)
  columns = _load_index(
    folders[1], split, ('num_frames', 'height', 'width', 'id_offsets')
  )
  num_frames, offsets = columns['num_frames'], columns['id_offsets']
  shapes = {columns[key].shape for key in ('num_frames', 'height', 'width')}
  if (
    shapes != {(len(offsets) - 1,)}
    or min(num_frames, default=0) < 0
    or not (np.diff(offsets, prepend=0) >= 0).all()
  ):
    raise ValueError('columns do not fit together')
  counts = [sum(s['records'] for s in c['shards']) for c in (frames, clips)]
  if clips['frames_digest'] != files.digest(frames['shards']) or counts != [
    int(columns['num_frames'].sum(dtype=np.int64)),
    len(columns['num_frames']),
  ]:
    raise UserError(
      f'{folders[0]} and {folders[1]} are not from the same conversion; '
      'convert the data set again with --overwrite'
    )
  return FrameStore(
    name=name,
    split=split,
    version=version,
    clips_folder=folders[1],
    frames=_data_source(folders[0], frames['shards']),
    clips=_data_source(folders[1], clips['shards']),
    columns=columns,
    digest=files.digest(frames['shards'], clips['shards']),
  )
