"""Reads and writes the shards of a data set."""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from xfactor.data import files

# Groups of one record, uncompressed: a read touches only its own bytes, and
# JPEG does not compress.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of records: its name, records, bytes and sha256 in hex."""

  file: str
  records: int
  bytes: int
  sha256: str


class ShardWriter:
  """Writes one array_record file, which gets its name only when complete.

  Files in a bucket are written to a temporary file and then copied.

  Attributes:
    records: Number of records written so far.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = epath.Path(path)
    if files.is_remote(path):
      file, self._partial = tempfile.mkstemp(prefix='xfactor-')
      os.close(file)
    else:
      self._partial = f'{os.fspath(path)}{files.partial_suffix()}'
    self._writer = array_record_module.ArrayRecordWriter(
      self._partial, _WRITER_OPTIONS
    )
    self.records = 0

  def write(self, record: bytes) -> None:
    """Appends one record."""
    self._writer.write(record)
    self.records += 1

  def close(self) -> Shard:
    """Finishes the file, checks it and gives it its final name.

    Raises:
      RuntimeError: If the file does not hold all records.
    """
    self._writer.close()
    if (found := _count(self._partial)) != self.records:
      raise RuntimeError(
        f'{self._partial} holds {found} of {self.records} records'
      )
    with open(self._partial, 'rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
      # Before the renaming, in case of a power cut.
      os.fsync(f.fileno())
    size = os.path.getsize(self._partial)
    if files.is_remote(self._path):
      epath.Path(self._partial).copy(self._path, overwrite=True)
      os.remove(self._partial)
    else:
      os.replace(self._partial, self._path)
    return Shard(self._path.name, self.records, size, digest)

  def abort(self) -> None:
    """Deletes the unfinished file."""
    # The writer flushes when closed, which fails again if the disk is full.
    with contextlib.suppress(RuntimeError):
      self._writer.close()
    if os.path.exists(self._partial):
      os.remove(self._partial)


def _count(path: str) -> int:
  """Returns the number of records of a file; 0 if it is unfinished."""
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
    if files.is_remote(path):
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      path = epath.Path(path).copy(epath.Path(folder) / 'shard')
    reader = array_record_module.ArrayRecordReader(
      os.fspath(path), 'readahead_buffer_size:1048576'
    )
    if not reader.ok():
      reader.close()  # Raises the error.
    yield reader
    # Raises the same error again after a damaged record.
    with contextlib.suppress(RuntimeError):
      reader.close()


def read_shard(path: str | os.PathLike[str]) -> Iterator[bytes]:
  """Yields the records of one file, local or in a bucket, in order."""
  with open_shard(path) as reader:
    for _ in range(reader.num_records()):
      yield reader.read()


def write_index(
  path: str | os.PathLike[str],
  rows: Iterable[tuple[str, int, int, int]],
) -> str:
  """Writes the clips of a split as columns; returns the file's sha256.

  Args:
    path: Path of the file.
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
  return files.sha256(path)


def shard_name(name: str, split: str, index: int, count: int) -> str:
  """Returns the file name that TFDS expects."""
  return f'{name}-{split}.array_record-{index:05d}-of-{count:05d}'
