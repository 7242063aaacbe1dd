"""Reads and writes TFRecord files without TensorFlow."""

import os
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
from etils import epath

from xfactor.data.records import codec
from xfactor.errors import UserError

_HEADER = struct.Struct('<QI')  # Length and its checksum.
_FOOTER = struct.Struct('<I')  # Checksum of the data.


def read(
  path: str | os.PathLike[str], start: int = 0, stop: int | None = None
) -> Iterator[bytes]:
  """Yields records `start` to `stop` of a TFRecord file.

  The format is `tsl/lib/io/record_writer.h` of TensorFlow, uncompressed.

  Args:
    path: Path of the file, local or gs://.
    start: Number of records to skip; their data is not read.
    stop: First record not to read, or None to read to the end.

  Raises:
    UserError: If the file is missing, truncated or damaged.
  """
  try:
    with epath.Path(path).open('rb') as file:
      number = 0
      size = file.seek(0, os.SEEK_END)
      file.seek(0)
      while (stop is None or number < stop) and (head := file.read(12)):
        if len(head) < _HEADER.size:
          raise _damaged(path, number)
        length, checksum = _HEADER.unpack(head)
        if _masked_crc(head[:8]) != checksum or length > size:
          raise _damaged(path, number)
        if number < start:
          file.seek(length + _FOOTER.size, os.SEEK_CUR)
        else:
          data = file.read(length)
          tail = file.read(_FOOTER.size)
          if tail != _FOOTER.pack(_masked_crc(data)):
            raise _damaged(path, number)
          yield data
        number += 1
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  if stop is not None and number < stop:
    raise UserError(
      f'{path} has {number} of the {stop} records expected; copy it again'
    )


def encode(data: bytes) -> bytes:
  """Returns a record of a TFRecord file."""
  head = struct.pack('<Q', len(data))
  return b''.join(
    (
      head,
      _FOOTER.pack(_masked_crc(head)),
      data,
      _FOOTER.pack(_masked_crc(data)),
    )
  )


def example(record: bytes) -> dict[str, Any]:
  """Returns the features of a serialised tf.train.Example.

  Args:
    record: Serialised message, for instance a record of `read`.

  Returns:
    Lists of bytes, float32 [N] or int64 [N] by name.

  Raises:
    UserError: If the record is not such a message.
  """
  try:
    features = codec.Example.FromString(record).features.feature
  except Exception as error:  # protobuf's DecodeError is not a ValueError
    raise UserError(f'not a tf.train.Example: {error}') from error
  out = {}
  for key, feature in features.items():
    if feature.HasField('float_list'):
      out[key] = np.array(feature.float_list.value, np.float32)
    elif feature.HasField('int64_list'):
      out[key] = np.array(feature.int64_list.value, np.int64)
    else:
      out[key] = list(feature.bytes_list.value)
  return out


def _masked_crc(data: bytes) -> int:
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _damaged(path: str | os.PathLike[str], number: int) -> UserError:
  return UserError(
    f'{path} is truncated or damaged at record {number}; copy it again'
  )
