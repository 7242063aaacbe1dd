"""Reads .npz files, whose memory is bounded before any is allocated."""

import io
import math
import os
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from etils import epath

from xfactor.errors import UserError

# Compressed arrays of more bytes than this may be so many times their file.
_FREE, _RATIO = 2**26, 100


def read(
  file: str | os.PathLike[str] | bytes, keys: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """Reads arrays of a .npz file by name.

  Args:
    file: Path, local or gs://, or content of the file.
    keys: Names of the arrays; all by default.

  Raises:
    UserError: If the file is missing or damaged, holds other than plain
      arrays, or declares arrays out of proportion to its size.
  """
  name = 'the file' if isinstance(file, bytes) else os.fspath(file)
  try:
    with _open(file) as stream, zipfile.ZipFile(stream) as archive:
      infos = {
        info.filename.removesuffix('.npy'): info for info in archive.infolist()
      }
      size = stream.seek(0, os.SEEK_END)
      declared = sum(info.file_size for info in infos.values())
      if declared > max(_FREE, _RATIO * size):
        raise ValueError(f'{declared} bytes in {size}')
      return {
        key: _read(archive, infos[key])
        for key in (infos if keys is None else keys)
      }
  except FileNotFoundError:
    raise UserError(f'{name} does not exist') from None
  except Exception as error:  # Parsers raise anything on damaged files.
    raise UserError(
      f'{name} is not a readable .npz file ({error}); fetch a good copy'
    ) from error


def _open(file: str | os.PathLike[str] | bytes) -> BinaryIO:
  if isinstance(file, bytes):
    return io.BytesIO(file)
  return epath.Path(file).open('rb')


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  with archive.open(info) as stream:
    shape, fortran, dtype = _header(stream)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0:
      raise ValueError(f'{info.filename} holds objects')
    if stream.tell() + size != info.file_size:
      raise ValueError(f'{info.filename} is not of {size} bytes')
    array = np.frombuffer(bytearray(stream.read()), dtype)
    return array.reshape(shape, order='F' if fortran else 'C')


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
  version = np.lib.format.read_magic(stream)
  if version == (1, 0):
    return np.lib.format.read_array_header_1_0(stream)
  return np.lib.format.read_array_header_2_0(stream)
