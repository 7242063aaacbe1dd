"""Reads files of torch.save without torch; tensors become NumPy arrays.

Supports both formats of torch/serialization.py: the zip archive (since PyTorch
1.6) and the earlier stream of pickles. A pickle can run any program; this
reader accepts only tensors, NumPy numbers, plain Python values and
`OrderedDict`.
"""

import collections
import io
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from xfactor.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
  name: np.dtype(getattr(ml_dtypes, name, name))
  for name in (
    *('bool', 'uint8', 'uint16', 'uint32', 'uint64'),
    *('int8', 'int16', 'int32', 'int64'),
    *('float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz'),
    *('bfloat16', 'float16', 'float32', 'float64', 'complex64', 'complex128'),
  )
}
# Untyped storages hold bytes.
_STORAGES = {
  'BoolStorage': 'bool',
  'ByteStorage': 'uint8',
  'CharStorage': 'int8',
  'ShortStorage': 'int16',
  'IntStorage': 'int32',
  'LongStorage': 'int64',
  'HalfStorage': 'float16',
  'BFloat16Storage': 'bfloat16',
  'FloatStorage': 'float32',
  'DoubleStorage': 'float64',
  'ComplexFloatStorage': 'complex64',
  'ComplexDoubleStorage': 'complex128',
  'UntypedStorage': 'uint8',
}


def load(file: str | os.PathLike[str] | bytes) -> Any:
  """Reads a file of torch.save.

  Tensors and parameters become arrays (bfloat16 and float8 as in `ml_dtypes`;
  scalars have no dimensions), which are read-only or share memory if the
  tensors do. NumPy numbers are kept. A `torch.Size` becomes a tuple; a torch
  dtype or device becomes its name.

  Args:
    file: Path, local or gs://, or content of the file.

  Raises:
    UserError: If the file is damaged, is not a file of torch.save, or holds
      objects of other classes; the message names the class.
  """
  if isinstance(file, bytes):
    return _load(io.BytesIO(file), 'the file')
  path = epath.Path(file)
  try:
    with path.open('rb') as stream:
      return _load(stream, str(path))
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _load(stream: BinaryIO, name: str) -> Any:
  try:
    if zipfile.is_zipfile(stream):
      return _load_zip(stream, name)
    stream.seek(0)
    return _load_legacy(stream, name)
  except (OSError, UserError):
    raise
  except Exception as error:
    # Damaged pickles can raise any exception.
    raise UserError(
      f'{name} is not a valid file of torch.save ({error}); download it again'
    ) from error


def _load_zip(stream: BinaryIO, name: str) -> Any:
  with zipfile.ZipFile(stream) as archive:
    names = archive.namelist()
    (main,) = [n for n in names if n.split('/')[1:] == ['data.pkl']]
    top = main.split('/')[0]
    order = f'{top}/byteorder'
    swap = order in names and archive.read(order) == b'big'

    def read(kind: str, key: str, count: int) -> np.ndarray:
      data = archive.read(f'{top}/data/{key}')
      values = np.frombuffer(data, _DTYPES[kind], count)
      return values.byteswap() if swap else values

    return _Unpickler(io.BytesIO(archive.read(main)), name, read).load()


def _load_legacy(stream: BinaryIO, name: str) -> Any:
  """Reads a header, the object, and then the values of its tensors."""
  end = stream.seek(0, os.SEEK_END)
  stream.seek(0)

  def read(kind: str, key: str, count: int) -> np.ndarray:
    if not 0 <= count * _DTYPES[kind].itemsize <= end:
      raise ValueError(f'a tensor of {count} numbers')
    return np.zeros(count, _DTYPES[kind])

  def unpickle() -> Any:
    return _Unpickler(stream, name, read).load()

  if (unpickle(), unpickle()) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
    raise ValueError('neither a zip archive nor the format before PyTorch 1.6')
  swap = not unpickle()['little_endian']
  unpickler = _Unpickler(stream, name, read)
  out = unpickler.load()
  for key in unpickle():
    values = unpickler.storages[key].values
    (count,) = struct.unpack('<q', stream.read(8))
    if count != values.size:
      raise ValueError(f'storage {key} has {count} values, not {values.size}')
    # Fills the memory that the tensors refer to.
    data = np.frombuffer(stream.read(values.nbytes), values.dtype)
    values[:] = data.byteswap() if swap else data
  return out


class _Storage(NamedTuple):
  """The memory behind tensors: one-dimensional `values`."""

  values: np.ndarray


class _NumberType:
  """Wraps a NumPy dtype, because a pickle sets its byte order afterwards."""

  def __init__(self, dtype: np.dtype):
    self.dtype = dtype

  def __setstate__(self, state: tuple) -> None:
    self.dtype = self.dtype.newbyteorder(state[1])


class _Unpickler(pickle.Unpickler):
  """Unpickles only tensors, numbers and plain values.

  Args:
    stream: Stream of the pickle.
    name: Name of the file, for messages.
    read: Function of dtype, key and length that returns a storage's values.
  """

  def __init__(
    self,
    stream: BinaryIO,
    name: str,
    read: Callable[[str, str, int], np.ndarray],
  ):
    # torch reads pickles of Python 2 the same way.
    super().__init__(stream, encoding='utf-8')
    self._name = name
    self._read = read
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    # Types are strings and functions are bound methods, because a pickle could
    # change the attributes of other objects.
    if module in ('torch', 'torch.storage', 'torch.cuda'):
      if name in _STORAGES:
        return _STORAGES[name]
      if module == 'torch' and name in _DTYPES:
        return name
    known = {
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('_codecs', 'encode'): self._encode,
      ('numpy', 'dtype'): self._number_type,
      ('numpy.core.multiarray', 'scalar'): self._number,
      ('numpy._core.multiarray', 'scalar'): self._number,
      ('torch', 'Size'): tuple,
      ('torch', 'device'): self._device,
      ('torch._utils', '_rebuild_tensor_v2'): self._tensor,
      ('torch._utils', '_rebuild_tensor_v3'): self._tensor_of_dtype,
      ('torch._utils', '_rebuild_parameter'): self._parameter,
      ('torch._utils', '_rebuild_parameter_with_state'): self._parameter,
    }
    if (module, name) in known:
      return known[module, name]
    raise UserError(
      f'{self._name} holds an object of {module}.{name}, which is refused '
      'because pickles can run code; save only tensors, numbers, strings, '
      'lists and dicts'
    )

  def persistent_load(self, pid: Any) -> _Storage:
    tag, kind, key, _, count, *view = pid
    if tag != 'storage' or any(view):
      raise ValueError(f'a reference {tag!r} to something other than a storage')
    if key not in self.storages:
      self.storages[key] = _Storage(self._read(kind, key, count))
    return self.storages[key]

  def _tensor(
    self,
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,
  ) -> np.ndarray:
    return _strided(storage.values, offset, shape, strides)

  def _tensor_of_dtype(
    self,
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    dtype: str,
    *_: Any,
  ) -> np.ndarray:
    values = storage.values.view(_DTYPES[dtype])
    return _strided(values, offset, shape, strides)

  def _parameter(self, value: np.ndarray, *_: Any) -> np.ndarray:
    return value

  def _number_type(self, name: str, *_: Any) -> '_NumberType':
    if not re.fullmatch(r'[biufc]\d+', name):
      raise ValueError(f'a number of type {name!r}')
    return _NumberType(np.dtype(name))

  def _number(self, kind: '_NumberType', data: bytes) -> np.generic:
    (value,) = np.frombuffer(data, kind.dtype)
    return value

  def _encode(self, text: str, encoding: str) -> bytes:
    # Encoding of bytes in pickle protocol 2, which torch uses.
    if encoding != 'latin1':
      raise ValueError(f'bytes as {encoding!r}')
    return text.encode('latin1')

  def _device(self, kind: str, index: int | None = None) -> str:
    return kind if index is None else f'{kind}:{index}'


def _strided(
  values: np.ndarray,
  offset: int,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
) -> np.ndarray:
  """Returns a tensor as a view of one-dimensional `values`."""
  if min(offset, *shape, *strides, 0) < 0 or len(shape) != len(strides):
    raise ValueError(f'a tensor of shape {shape} and strides {strides}')
  if not math.prod(shape):
    return np.zeros(shape, values.dtype)
  last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if offset + last >= values.size:
    raise ValueError(f'a tensor of shape {shape} over {values.size} values')
  return np.lib.stride_tricks.as_strided(
    values[offset:], shape, [s * values.itemsize for s in strides]
  )
