"""Reads files of torch.save without torch; tensors become NumPy arrays.

Supports both formats of torch/serialization.py: the zip archive (since PyTorch
1.6) and the earlier stream of pickles. A pickle can run any program; this
reader accepts only tensors, NumPy numbers, plain Python values and
`OrderedDict`. It hands no class to a pickle, and what it allocates is bounded
by the size of the file.
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
    if any(x.compress_type != zipfile.ZIP_STORED for x in archive.infolist()):
      raise ValueError('torch.save does not compress')
    names = archive.namelist()
    (main,) = [n for n in names if n.split('/')[1:] == ['data.pkl']]
    top = main.split('/')[0]
    order = f'{top}/byteorder'
    swap = order in names and archive.read(order) == b'big'

    budget = _Budget(stream.seek(0, os.SEEK_END))

    def read(kind: str, key: str, count: int) -> np.ndarray:
      info = archive.getinfo(f'{top}/data/{key}')
      budget.spend(info.file_size)
      if info.file_size != count * _DTYPES[kind].itemsize:
        raise ValueError(f'storage {key} of {info.file_size} bytes')
      values = np.frombuffer(archive.read(info), _DTYPES[kind], count)
      return values.byteswap() if swap else values

    budget.spend(archive.getinfo(main).file_size)
    pickled = io.BytesIO(archive.read(main))
    return _Unpickler(pickled, name, read, budget).load()


def _load_legacy(stream: BinaryIO, name: str) -> Any:
  """Reads a header, the object, and then the values of its tensors."""
  budget = _Budget(stream.seek(0, os.SEEK_END))
  stream.seek(0)

  def read(kind: str, key: str, count: int) -> np.ndarray:
    budget.spend(count * _DTYPES[kind].itemsize)
    return np.zeros(count, _DTYPES[kind])

  def unpickle() -> Any:
    return _Unpickler(stream, name, read, budget).load()

  if (unpickle(), unpickle()) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
    raise ValueError('neither a zip archive nor the format before PyTorch 1.6')
  swap = not unpickle()['little_endian']
  unpickler = _Unpickler(stream, name, read, budget)
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


_KEYS = (str, bytes, int, float, bool, type(None))


class _Budget:
  """Bytes that may still be allocated: about as many as the file has."""

  def __init__(self, size: int):
    self.size = size
    self._left = size + 2**20

  def spend(self, count: int) -> None:
    """Takes bytes; raises ValueError if there are not so many left."""
    if not 0 <= count <= self._left:
      raise ValueError(f'{count} more bytes than the file can hold')
    self._left -= count


class _Bounded:
  """A stream that never reads more than the file has."""

  # Without annotations: tests check those at each of the many calls.

  def __init__(self, stream, size):
    self._read, self._size = stream.read, size
    self.readline = stream.readline

  def read(self, count):
    if count > self._size:
      raise ValueError(f'{count} bytes of {self._size}')
    return self._read(count)


class _Dict(collections.OrderedDict):
  """A dict whose attributes a pickle cannot set; torch sets `_metadata`."""

  def __setstate__(self, state: Any) -> None:
    pass


class _Storage(NamedTuple):
  """The memory behind tensors: one-dimensional `values`."""

  values: np.ndarray


class _NumberType:
  """Wraps a NumPy dtype, because a pickle sets its byte order afterwards."""

  def __init__(self, dtype: np.dtype):
    self.dtype = dtype

  def __setstate__(self, state: tuple) -> None:
    self.dtype = self.dtype.newbyteorder(state[1])


class _Unpickler(pickle._Unpickler):
  """Unpickles only tensors, numbers and plain values.

  In Python, because pickles can make the reader in C allocate any amount.

  Args:
    stream: Stream of the pickle.
    name: Name of the file, for messages.
    read: Function of dtype, key and length that returns a storage's values.
    budget: Bytes that may be allocated.
  """

  dispatch = dict(pickle._Unpickler.dispatch)

  def __init__(
    self,
    stream: BinaryIO,
    name: str,
    read: Callable[[str, str, int], np.ndarray],
    budget: _Budget,
  ):
    # torch reads pickles of Python 2 the same way.
    super().__init__(_Bounded(stream, budget.size), encoding='utf-8')
    self._budget = budget
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
      ('collections', 'OrderedDict'): self._dict,
      ('_codecs', 'encode'): self._encode,
      ('numpy', 'dtype'): self._number_type,
      ('numpy.core.multiarray', 'scalar'): self._number,
      ('numpy._core.multiarray', 'scalar'): self._number,
      ('torch', 'Size'): _ints,
      ('torch', 'device'): self._device,
      ('torch._utils', '_rebuild_tensor_v2'): self._tensor,
      ('torch._utils', '_rebuild_tensor_v3'): self._tensor_of_dtype,
      ('torch._utils', '_rebuild_parameter'): self._parameter,
      ('torch._utils', '_rebuild_parameter_with_state'): self._parameter,
    }
    if (module, name) in known:
      return known[module, name]
    raise UserError(
      f'{self._name} holds an object of {f"{module}.{name}"[:99]}, which is '
      'refused because pickles can run code; save only tensors, numbers, '
      'strings, lists and dicts'
    )

  def persistent_load(self, pid: Any) -> _Storage:
    tag, kind, key, _, count, *view = pid
    if tag != 'storage' or any(view):
      raise ValueError('a reference to something other than a storage')
    if not (isinstance(key, str | int) and isinstance(count, int)):
      raise ValueError('a storage without name or length')
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
      raise ValueError(f'bytes as {encoding!r:.20}')
    self._budget.spend(len(text))
    return text.encode('latin1')

  def _dict(self, items: Any = ()) -> _Dict:
    self._budget.spend(8 * len(items))
    return _Dict(items)

  def load_build(self) -> None:
    if not isinstance(self.stack[-2], _Dict | _NumberType):
      raise ValueError('a state of an object that has none')
    super().load_build()

  dispatch[pickle.BUILD[0]] = load_build

  def load_setitems(self) -> None:
    # Hashes and texts of nested tuples take exponential time.
    if not all(isinstance(x, _KEYS) for x in self.stack[::2]):
      raise ValueError('a key that is neither a text nor a number')
    super().load_setitems()

  dispatch[pickle.SETITEMS[0]] = load_setitems

  def load_setitem(self) -> None:
    if not isinstance(self.stack[-2], _KEYS):
      raise ValueError('a key that is neither a text nor a number')
    super().load_setitem()

  dispatch[pickle.SETITEM[0]] = load_setitem

  def _device(self, kind: str, index: int | None = None) -> str:
    if not (isinstance(kind, str) and isinstance(index, int | None)):
      raise ValueError('a device without name or number')
    self._budget.spend(len(kind))
    return kind if index is None else f'{kind}:{index}'


def _ints(values: tuple[int, ...]) -> tuple[int, ...]:
  if len(values) > 64 or not all(isinstance(x, int) for x in values):
    raise ValueError('a size that is no short tuple of integers')
  return tuple(values)


def _strided(
  values: np.ndarray,
  offset: int,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
) -> np.ndarray:
  """Returns a tensor as a view of one-dimensional `values`."""
  shape, strides = _ints(shape), _ints(strides)
  if min(offset, *shape, *strides, 0) < 0 or len(shape) != len(strides):
    raise ValueError(f'a tensor of shape {shape} and strides {strides}')
  if not math.prod(shape):
    return np.zeros(shape, values.dtype)
  last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  # Strides of zero could make it any size when it is copied.
  most = max(values.size, 2**20)
  if offset + last >= values.size or math.prod(shape) > most:
    raise ValueError(f'a tensor of shape {shape} over {values.size} values')
  return np.lib.stride_tricks.as_strided(
    values[offset:], shape, [s * values.itemsize for s in strides]
  )
