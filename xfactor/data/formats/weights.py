"""Reads arrays from weight files of any framework: npz, safetensors, torch."""

import os

import numpy as np
import safetensors.numpy
from etils import epath

from xfactor.data.formats import npz, torch_file
from xfactor.errors import UserError

SUFFIXES = ('.npz', '.safetensors', '.pt', '.pth')


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads the named arrays of a file without running code in it.

  Args:
    path: Path of a .npz or .safetensors file, or of a dict of tensors written
      by torch.save (any other suffix); local or gs://.

  Returns:
    The arrays by their names in the file.

  Raises:
    UserError: If the file is missing or damaged, or holds anything other than
      named arrays.
  """
  path = epath.Path(path)
  try:
    if path.suffix == '.npz':
      return npz.read(path)
    if path.suffix == '.safetensors':
      if '://' in os.fspath(path):
        return safetensors.numpy.load(path.read_bytes())
      # Maps the file into memory.
      return safetensors.numpy.load_file(path)
  except UserError:
    raise
  except Exception as error:  # Parsers raise anything on damaged files.
    raise UserError(
      f'{path} cannot be read ({error}); fetch a good copy'
    ) from error
  arrays = torch_file.load(path)
  if not isinstance(arrays, dict) or not all(
    isinstance(array, np.ndarray) for array in arrays.values()
  ):
    raise UserError(
      f'{path} is not a dict of named arrays; save a flat dict of tensors'
    )
  return dict(arrays)
