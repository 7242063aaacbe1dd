"""The on-disk format of a converted data set: writing it and reading it.

A data set NAME is two ordinary TFDS array_record data sets, readable with
`tfds.builder_from_directory(FOLDER).as_data_source(SPLIT)`:

  DATA_DIR/NAME/frames/VERSION   one frame a record: `image` (JPEG, or PNG in
                                 sets of small pictures) and, for data sets
                                 that have it, `depth` (16-bit PNG); the frames
                                 of a clip are contiguous
  DATA_DIR/NAME/clips/VERSION    one clip a record: `Clip` below

Beside the records of each lies `manifest.json` (where they came from, sizes,
checksums) and beside the clips `clips-SPLIT.index.npz`, the clips' table as
columns, so that a million clips open at once instead of a million reads.

Records are `tf.train.Example` protocol buffers. Reading needs neither
TensorFlow nor TFDS.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from xfactor.data import sources, views
from xfactor.errors import UserError

FORMAT = 1
EVAL_CLIPS = 256
# Groups of one record, uncompressed: a read touches only its own bytes, and
# JPEG does not compress.
_WRITER_OPTIONS = 'group_size:1,uncompressed'
# Clip records read at once where all are.
_CHUNK = 4096
_VERSION = re.compile(r'\d+\.\d+\.\d+')


# ==============================================================================
# tf.train.Example without TensorFlow
# ==============================================================================


def _example_class() -> type[Any]:
  """Returns the message class of tf.train.Example, made at run time.

  The pool is private, so that the names cannot clash with TensorFlow's.
  """
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name='example.proto', package='xfactor', syntax='proto3'
  )

  def message(parent, name: str, *fields: tuple[str, int, str]):
    add = parent.message_type if parent is file else parent.nested_type
    out = add.add(name=name)
    for number, (key, label, kind) in enumerate(fields, 1):
      spec = out.field.add(name=key, number=number, label=label)
      if kind.startswith('.'):
        spec.type, spec.type_name = field.TYPE_MESSAGE, kind
      else:
        spec.type = getattr(field, f'TYPE_{kind}')
    return out

  one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
  message(file, 'BytesList', ('value', many, 'BYTES'))
  message(file, 'FloatList', ('value', many, 'FLOAT'))
  message(file, 'Int64List', ('value', many, 'INT64'))
  feature = message(
    file,
    'Feature',
    ('bytes_list', one, '.xfactor.BytesList'),
    ('float_list', one, '.xfactor.FloatList'),
    ('int64_list', one, '.xfactor.Int64List'),
  )
  feature.oneof_decl.add(name='kind')
  for spec in feature.field:
    spec.oneof_index = 0
  features = message(
    file, 'Features', ('feature', many, '.xfactor.Features.FeatureEntry')
  )
  entry = message(
    features,
    'FeatureEntry',
    ('key', one, 'STRING'),
    ('value', one, '.xfactor.Feature'),
  )
  entry.options.map_entry = True
  message(file, 'Example', ('features', one, '.xfactor.Features'))

  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName('xfactor.Example')
  )


Example = _example_class()


def _serialize(values: dict[str, bytes | int]) -> bytes:
  example = Example()
  for key, value in values.items():
    feature = example.features.feature[key]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    else:
      feature.int64_list.value.append(value)
  # Maps have no order of their own; equal data must give equal bytes.
  return example.SerializeToString(deterministic=True)


def encode_frame(image: bytes, depth: bytes | None = None) -> bytes:
  """Returns the record of one frame: its picture and, if any, its depth PNG."""
  values = {'image': image}
  if depth is not None:
    values['depth'] = depth
  return _serialize(values)


def decode_frame(record: bytes, key: str = 'image') -> bytes:
  """Returns the encoded bytes of a frame's `image` or `depth`.

  Raises:
    ValueError: If the record is no such frame.
  """
  try:
    values = Example.FromString(record).features.feature
  except Exception as e:  # protobuf's DecodeError is no ValueError
    raise ValueError(f'not a frame record: {e}') from e
  if key not in values:
    raise ValueError(f'this frame has no {key}')
  return values[key].bytes_list.value[0]


@dataclasses.dataclass
class Clip:
  """What is known of one clip beside its frames.

  Attributes:
    id: Unique within the data set.
    first_frame: Index of its first frame among the frames of its split.
    num_frames: N.
    height: Pixels.
    width: Pixels.
    timestamps: float64 [N] seconds, or None.
    intrinsics: float32 [N, 4] normalised (fx, fy, cx, cy), or None.
    world_to_camera: float32 [N, 3, 4] [R|t], or None.
    replaced: Number of frames for which a neighbour stands in.
  """

  id: str
  first_frame: int
  num_frames: int
  height: int
  width: int
  timestamps: np.ndarray | None = None
  intrinsics: np.ndarray | None = None
  world_to_camera: np.ndarray | None = None
  replaced: int = 0

  @property
  def posed(self) -> bool:
    """Whether the cameras of all frames are known."""
    return all(
      array is not None and np.isfinite(array).all()
      for array in (self.intrinsics, self.world_to_camera)
    )


_INTEGERS = ('first_frame', 'num_frames', 'height', 'width', 'replaced')
# Raw bytes, since tf.train.Example has no float64. An empty array says unknown.
_ARRAYS = {
  'timestamps': (np.dtype('<f8'), (-1,)),
  'intrinsics': (np.dtype('<f4'), (-1, 4)),
  'world_to_camera': (np.dtype('<f4'), (-1, 3, 4)),
}


def encode_clip(clip: Clip) -> bytes:
  """Returns the record of one clip."""
  values = {'id': clip.id.encode()}
  for key in _INTEGERS:
    values[key] = int(getattr(clip, key))
  for key, (dtype, _) in _ARRAYS.items():
    array = getattr(clip, key)
    values[key] = b'' if array is None else np.asarray(array, dtype).tobytes()
  return _serialize(values)


def decode_clip(record: bytes) -> Clip:
  """Inverse of `encode_clip`."""
  values = Example.FromString(record).features.feature
  arrays = {}
  for key, (dtype, shape) in _ARRAYS.items():
    data = values[key].bytes_list.value[0]
    arrays[key] = np.frombuffer(data, dtype).reshape(shape) if data else None
  integers = {key: values[key].int64_list.value[0] for key in _INTEGERS}
  return Clip(values['id'].bytes_list.value[0].decode(), **integers, **arrays)


# ==============================================================================
# Writing
# ==============================================================================


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of records: its name, records, bytes and sha256 in hex."""

  file: str
  records: int
  bytes: int
  sha256: str


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path is in a bucket (gs:// and the like)."""
  return '://' in os.fspath(path)


def partial_suffix() -> str:
  """Returns what the names of this process's unfinished files end with."""
  # Hosts that share a folder may write one file at the same time.
  return f'.incomplete-{socket.gethostname()}-{os.getpid()}'


class ShardWriter:
  """Writes one array_record file, which gets its name only when complete.

  One that belongs in a bucket is written to a temporary file and then copied.

  Attributes:
    records: Number written so far.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = epath.Path(path)
    if is_remote(path):
      file, self._partial = tempfile.mkstemp(prefix='xfactor-')
      os.close(file)
    else:
      self._partial = f'{os.fspath(path)}{partial_suffix()}'
    self._writer = array_record_module.ArrayRecordWriter(
      self._partial, _WRITER_OPTIONS
    )
    self.records = 0

  def write(self, record: bytes) -> None:
    """Appends one record."""
    self._writer.write(record)
    self.records += 1

  def close(self) -> Shard:
    """Finishes the file, checks it and gives it its name.

    Raises:
      RuntimeError: If the file does not hold all that was written.
    """
    self._writer.close()
    if (found := _count(self._partial)) != self.records:
      raise RuntimeError(
        f'{self._partial} holds {found} of {self.records} records'
      )
    with open(self._partial, 'rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
      # The name must not outlive a power cut that the bytes did not survive.
      os.fsync(f.fileno())
    size = os.path.getsize(self._partial)
    if is_remote(self._path):
      epath.Path(self._partial).copy(self._path, overwrite=True)
      os.remove(self._partial)
    else:
      os.replace(self._partial, self._path)
    return Shard(self._path.name, self.records, size, digest)

  def abort(self) -> None:
    """Drops what was written."""
    # The writer flushes when closed, which fails again where the disk is full.
    with contextlib.suppress(RuntimeError):
      self._writer.close()
    if os.path.exists(self._partial):
      os.remove(self._partial)


def _count(path: str) -> int:
  """Returns the number of records of a file; 0 where it is unfinished."""
  reader = array_record_module.ArrayRecordReader(path)
  try:
    return reader.num_records() if reader.ok() else 0
  finally:
    reader.close()


@contextlib.contextmanager
def open_shard(path: str | os.PathLike[str]) -> Iterator[Any]:
  """Yields array_record's reader of one file, local or in a bucket.

  Raises:
    RuntimeError: If the file is damaged.
  """
  with contextlib.ExitStack() as stack:
    if is_remote(path):
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      path = epath.Path(path).copy(epath.Path(folder) / 'shard')
    reader = array_record_module.ArrayRecordReader(
      os.fspath(path), 'readahead_buffer_size:1048576'
    )
    if not reader.ok():
      reader.close()  # Raises what is wrong.
    yield reader
    # After a damaged record, which has been told, it would raise the same.
    with contextlib.suppress(RuntimeError):
      reader.close()


def read_shard(path: str | os.PathLike[str]) -> Iterator[bytes]:
  """Yields the records of one file, local or in a bucket, in order."""
  with open_shard(path) as reader:
    for _ in range(reader.num_records()):
      yield reader.read()


def sha256(path: str | os.PathLike[str]) -> str:
  """Returns the sha256 in hex of a file."""
  with epath.Path(path).open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  path = epath.Path(path)
  text = json.dumps(value, indent=1, sort_keys=True) + '\n'
  if is_remote(path):  # Buckets show a file when it is whole.
    path.write_text(text)
    return
  partial = path.with_name(path.name + partial_suffix())
  partial.write_text(text)
  partial.replace(path)


def read_json(path: str | os.PathLike[str]) -> Any:
  """Returns the content of a JSON file."""
  return json.loads(epath.Path(path).read_text())


def digest(*values: Any) -> str:
  """Returns the sha256 in hex of anything that JSON can hold."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_index(
  path: str | os.PathLike[str],
  rows: Iterable[tuple[str, int, int, int]],
) -> str:
  """Writes the clips of a split as columns; returns the file's sha256.

  Args:
    path: The file.
    rows: (id, number of frames, height, width) of each clip, in order.
  """
  ids, num_frames, height, width = zip(*rows, strict=True)
  encoded = [i.encode() for i in ids]
  offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
  with epath.Path(path).open('wb') as f:
    np.savez(
      f,
      num_frames=np.array(num_frames, np.int32),
      height=np.array(height, np.int32),
      width=np.array(width, np.int32),
      id_offsets=offsets,
      id_bytes=np.frombuffer(b''.join(encoded), np.uint8),
    )
  return sha256(path)


def shard_name(name: str, split: str, index: int, count: int) -> str:
  """Returns the file name that TFDS expects."""
  return f'{name}-{split}.array_record-{index:05d}-of-{count:05d}'


def write_tfds_metadata(
  folder: str | os.PathLike[str],
  *,
  name: str,
  config: str,
  version: str,
  description: str,
  shards: dict[str, Sequence[Shard]],
  depth: bool = False,
  encoding: str | None = 'jpeg',
) -> None:
  """Writes dataset_info.json and features.json beside finished records.

  Args:
    folder: Where the records are.
    name: Of the data set.
    config: 'frames' or 'clips'.
    version: Semantic version.
    description: One sentence.
    shards: The files of each split, in order.
    depth: Whether all frames have depth.
    encoding: 'jpeg', 'png' or, where there are both, None.
  """
  # Here, not above: readers and workers do without TFDS and its import time.
  import tensorflow_datasets as tfds

  def raw(shape, dtype):
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding='bytes')

  if config == 'frames':
    features = {
      'image': tfds.features.Image(
        shape=(None, None, 3), encoding_format=encoding
      )
    }
    if depth:
      features['depth'] = tfds.features.Image(
        shape=(None, None, 1), dtype=np.uint16, encoding_format='png'
      )
  else:
    features = {'id': tfds.features.Text()}
    features |= {key: tfds.features.Scalar(np.int64) for key in _INTEGERS}
    features |= {
      key: raw(tuple(None if n < 0 else n for n in shape), dtype.type)
      for key, (dtype, shape) in _ARRAYS.items()
    }
  info = tfds.core.DatasetInfo(
    builder=tfds.core.dataset_info.DatasetIdentity(
      name=name,
      version=tfds.core.Version(version),
      data_dir=os.fspath(folder),
      module_name='',
      config_name=config,
    ),
    features=tfds.features.FeaturesDict(features),
    description=description,
  )
  info.set_file_format('array_record')
  template = tfds.core.ShardedFileTemplate(
    data_dir=epath.Path(folder),
    dataset_name=name,
    filetype_suffix='array_record',
  )
  info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[s.records for s in files],
          num_bytes=sum(s.bytes for s in files),
          filename_template=template.replace(split=split),
        )
        for split, files in shards.items()
      ]
    )
  )
  info.write_to_directory(folder)


# ==============================================================================
# Finding
# ==============================================================================


def data_folder(data_dir: str | os.PathLike[str]) -> epath.Path:
  """Returns a folder, local or in a bucket, with `~` made plain.

  Raises:
    UserError: If it is in a bucket that cannot be reached.
  """
  path = epath.Path(data_dir).expanduser()
  if is_remote(path):
    try:
      path.exists()
    except ImportError as e:
      raise UserError(
        f"{path}: {e}; install what buckets need: pip install -e '.[gcs]'"
      ) from e
    except Exception as e:  # Of a library that is not always there.
      words = ' '.join(str(e).split())
      raise UserError(
        f'{path} cannot be reached ({words}); check its name and your '
        'credentials (gcloud auth application-default login)'
      ) from e
  return path


def frames_folder(
  data_dir: str | os.PathLike[str], name: str, version: str
) -> epath.Path:
  """Returns where the frames of a data set are or would be."""
  return data_folder(data_dir) / name / 'frames' / version


def clips_folder(
  data_dir: str | os.PathLike[str], name: str, version: str
) -> epath.Path:
  """Returns where the clips of a data set are or would be."""
  return data_folder(data_dir) / name / 'clips' / version


def versions(data_dir: str | os.PathLike[str], name: str) -> list[str]:
  """Returns the complete versions of a data set, oldest first."""
  clips = data_folder(data_dir) / name / 'clips'
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
  folder = data_folder(data_dir)
  if not folder.exists():
    return []
  names = (p.name for p in folder.iterdir() if not p.name.startswith('.'))
  return sorted(name for name in names if versions(data_dir, name))


def splits(data_dir: str | os.PathLike[str], name: str) -> list[str]:
  """Returns the splits of a data set's newest version, sorted; [] of none."""
  found = versions(data_dir, name)
  if not found:
    return []
  folder = clips_folder(data_dir, name, found[-1])
  return sorted(read_json(folder / 'manifest.json')['splits'])


def _missing(
  data_dir: str | os.PathLike[str], name: str, version: str
) -> UserError:
  """Says what was looked for, what there is, and how to make it."""
  folder = data_folder(data_dir)
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


# ==============================================================================
# Reading
# ==============================================================================


class FrameStore:
  """The clips and frames of one split; picklable, opens its files lazily.

  Safe to use from many threads. Get one from `open_split`.

  Attributes:
    name: Of the data set.
    split: For instance 'train'.
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
    """Number of clips."""
    return len(self.num_frames)

  def manifest(self) -> dict[str, Any]:
    """Where the clips came from: source, its version and options, ..."""
    return read_json(self._clips_folder / 'manifest.json')

  def __repr__(self) -> str:
    return (
      f'FrameStore({self.name}/{self.split} {self.version}: {len(self)} '
      f'clips, {len(self._frames)} frames)'
    )

  @functools.cached_property
  def _id_bytes(self) -> bytes:
    # Ids are the bulk of the table, and training never asks for them.
    return _load_index(self._clips_folder, self.split, ('id_bytes',))[
      'id_bytes'
    ].tobytes()

  def clip_id(self, clip: int) -> str:
    """Returns the id of clip number `clip`."""
    begin, end = self._id_offsets[clip : clip + 2]
    return self._id_bytes[begin:end].decode()

  def clip_ids(self) -> list[str]:
    """Returns the ids of all clips, in order."""
    return [self.clip_id(i) for i in range(len(self))]

  def rows_of(self, ids: Sequence[str], path: epath.Path) -> np.ndarray:
    """Returns int64 [n], the numbers of clips that a file names.

    Raises:
      UserError: If one of them is not there.
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
    """Returns a choice that is kept beside the clips, and the file it is in.

    Args:
      name: Of the file, NAME-SPLIT.json.
      key: Of the choice in it.
      choose: Makes it anew, as JSON can hold it: a function of the data.
    """
    path = self._clips_folder / f'{name}-{self.split}.json'
    entries = read_json(path) if path.exists() else {}
    if key not in entries:
      entries[key] = choose()
      # Where this is read-only, the next reader will make the same choice.
      with contextlib.suppress(OSError):
        write_json(path, entries)
    return entries[key], path

  def clip(self, clip: int) -> Clip:
    """Returns all that is known of clip number `clip` (reads its record)."""
    return decode_clip(self._clips[clip])

  @functools.cached_property
  def posed(self) -> np.ndarray:
    """bool [clips], whether the cameras of all of a clip's frames are known.

    The first to ask reads the record of every clip (half a minute a million,
    from a disk) and keeps the answer in `clips/VERSION/cameras-SPLIT.json`.

    Raises:
      UserError: If there is no such clip, or a record is damaged.
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
    """Returns [begin, end) of runs of clips with cameras: mostly one."""
    # One clip more at either end, without cameras, has every run begin and end.
    posed = np.zeros(len(self) + 2, np.int8)
    try:
      for first in range(0, len(self), _CHUNK):
        chunk = range(first, min(first + _CHUNK, len(self)))
        clips = map(decode_clip, self._clips.__getitems__(chunk))
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
    return decode_frame(self._frames[frame])

  def frames(self, frames: Iterable[int]) -> list[bytes]:
    """Returns several frames of the split; raises as `frame`."""
    # One by one: for the handful of a training example the data source's own
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
    """Returns the depth PNG of frame `frame`; raises as `frame`."""
    return decode_frame(self._frames[frame], 'depth')


def _index_file(folder: epath.Path, split: str) -> epath.Path:
  return folder / f'clips-{split}.index.npz'


def _load_index(
  folder: epath.Path, split: str, keys: Sequence[str]
) -> dict[str, np.ndarray]:
  with _index_file(folder, split).open('rb') as f, np.load(f) as columns:
    return {key: columns[key] for key in keys}


def _data_source(
  folder: epath.Path, shards: Sequence[dict[str, Any]]
) -> array_record_data_source.ArrayRecordDataSource:
  """Opens records without touching each file's footer.

  Raises:
    UserError: If a file is missing or has another size than when written.
  """

  def check(shard: dict[str, Any]) -> str | None:
    path = folder / shard['file']
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
    name: Of the data set.
    split: For instance 'train'.
    version: Semantic version; the newest by default.

  Raises:
    UserError: If the data set, version or split is missing, or files are
      missing, truncated or from different conversions.
  """
  found = versions(data_dir, name)
  if not found or (version and version not in found):
    raise _missing(data_dir, name, version or '')
  version = version or found[-1]
  folders = (
    frames_folder(data_dir, name, version),
    clips_folder(data_dir, name, version),
  )
  manifests = [read_json(folder / 'manifest.json') for folder in folders]
  if any(m['format'] != FORMAT for m in manifests):
    raise UserError(
      f'{folders[0].parent.parent} was written in format '
      f'{manifests[0]["format"]} of the records and this program reads '
      f'format {FORMAT}; convert it again with --overwrite'
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
  counts = [sum(s['records'] for s in c['shards']) for c in (frames, clips)]
  if clips['frames_digest'] != digest(frames['shards']) or counts != [
    int(columns['num_frames'].sum(dtype=np.int64)),
    len(columns['num_frames']),
  ]:
    raise UserError(
      f'{folders[0]} and {folders[1]} are not of the same conversion; '
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
    digest=digest(frames['shards'], clips['shards']),
  )


# ==============================================================================
# Which clips and frames evaluation looks at
# ==============================================================================


@dataclasses.dataclass(frozen=True)
class EvalIndex:
  """Fixed examples of a split: numbers of different runs can be compared.

  Attributes:
    clip_ids: One a example.
    clips: int64 [examples], the same clips as numbers within the split.
    frames: int64 [examples, views], counted from the clip's beginning.
  """

  clip_ids: tuple[str, ...]
  clips: np.ndarray
  frames: np.ndarray


def unit_hash(text: str) -> float:
  """Returns a number in [0, 1) from the sha256 of a text."""
  head = hashlib.sha256(text.encode()).digest()[:8]
  # 53 bits, all that a double holds: rounding up to 1 is impossible.
  return (int.from_bytes(head, 'big') >> 11) / 2**53


def choose_eval(
  store: FrameStore,
  num_views: int,
  window: int,
  num_clips: int = EVAL_CLIPS,
  *,
  ordered: bool = True,
  cameras: bool = False,
) -> list[tuple[str, list[int]]]:
  """Chooses evaluation examples from the data alone.

  The clips are those with the smallest hashes of their ids, so that the choice
  changes little when clips are added; see `eval_index` for the rest.

  Returns:
    (clip id, frames counted from the clip's beginning), at most `num_clips`.

  Raises:
    UserError: If no clip is long enough or, where they are needed, has cameras.
  """
  if not 2 <= num_views <= window:
    raise UserError(
      f'evaluation needs at least two views and a window of at least as many '
      f'frames, not {num_views} views in {window} frames'
    )
  lengths = store.num_frames
  if cameras:
    lengths = np.where(store.posed, lengths, 0)
  shortest = window if ordered else num_views
  long_enough = [
    (store.clip_id(i), int(n)) for i, n in enumerate(lengths) if n >= shortest
  ]
  if not long_enough:
    raise UserError(
      f'no clip of {store.name}/{store.split} {"with cameras " * cameras}has '
      f'the {shortest} frames that evaluation needs; the longest has '
      f'{lengths.max()}: use '
      + ('a smaller window' if ordered else 'fewer views')
    )
  long_enough.sort(key=lambda clip: (unit_hash(clip[0]), clip[0]))
  out = []
  for clip_id, length in long_enough[:num_clips]:
    if ordered:
      frames = views.eval_frames(length, num_views, window)
    else:
      rng = np.random.default_rng(int(unit_hash(clip_id) * 2**53))
      frames = views.choose_set(rng, length, num_views, window)
    out.append((clip_id, frames.tolist()))
  return out


def eval_index(
  data_dir: str | os.PathLike[str],
  name: str,
  split: str = 'test',
  num_views: int = 2,
  window: int = 20,
  version: str | None = None,
  *,
  ordered: bool = True,
  cameras: bool = False,
) -> EvalIndex:
  """Returns the fixed evaluation examples of a split, one a clip.

  They are kept in `clips/VERSION/eval_index-SPLIT.json`. A combination of views
  and window that is not there yet is chosen by `choose_eval` and added; where
  the folder is read-only it is only returned (it is a function of the data).

  Ordered views are spread evenly over the `window` frames in the middle of the
  clip. Others are a set of its frames that its id draws as `views.choose_set`
  does, in random order: the first are a model's inputs.

  Args:
    data_dir: Folder of converted data sets.
    name: Of the data set.
    split: For instance 'test'.
    num_views: Views an example.
    window: Frames from the first to the last view, both counted; where views
      are not ordered, at most so many.
    version: Semantic version; the newest by default.
    ordered: Whether the views are in order and evenly spread, or a random set.
    cameras: Whether clips without cameras are left out.

  Raises:
    UserError: As `open_split`, or if no clip is long enough (`window` frames,
      or `num_views` of a random set) or has the cameras that are needed.
  """
  store = open_split(data_dir, name, split, version)
  examples, path = store.remember(
    'eval_index',
    f'views={num_views},window={window}'
    + ',random' * (not ordered)
    + ',cameras' * cameras,
    lambda: choose_eval(
      store, num_views, window, ordered=ordered, cameras=cameras
    ),
  )
  ids = tuple(clip_id for clip_id, _ in examples)
  return EvalIndex(
    clip_ids=ids,
    clips=store.rows_of(ids, path),
    frames=np.array([f for _, f in examples], np.int64),
  )
