"""Writes a PyTorch state dict, and the module that it is of."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from xfactor.errors import UserError
from xfactor.exchange import snapshot
from xfactor.export.networks import Networks

# A file for users: it imports torch, and nothing of xfactor.
_MODULE = pathlib.Path(__file__).with_name('xfactor_torch.py')


def write(networks: Networks, folder: epath.Path) -> list[epath.Path]:
  """Writes model.safetensors and xfactor_torch.py.

  Raises:
    UserError: If the model has explicit poses, which the module lacks.
  """
  if networks.model.pose != 'latent':
    raise UserError(
      f'a model with config.model.pose={networks.model.pose!r} cannot be '
      'written for PyTorch: give --to=stablehlo or --to=onnx'
    )
  module, arrays = folder / _MODULE.name, folder / 'model.safetensors'
  with snapshot.whole(module) as file:
    file.write(_MODULE.read_bytes())
  with snapshot.whole(arrays) as file:
    file.write(safetensors.numpy.save(state_dict(networks.params)))
  return [module, arrays]


def state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns parameters by PyTorch's names: layers apart, kernels transposed.

  Those of `nuisance`, which inference does not use, are skipped.
  """
  out = {}
  for path, array in params.items():
    if path.startswith('nuisance/'):
      continue
    network, stacked, leaf = path.partition('/stack/layers/')
    if stacked:
      for i, layer in enumerate(np.asarray(array)):
        out |= _entry(f'{network}/blocks/{i}/{leaf}', layer)
    else:
      out |= _entry(path, np.asarray(array))
  return out


def _entry(path: str, array: np.ndarray) -> dict[str, np.ndarray]:
  # Norms of heads and gains of branches are our own modules there as well.
  if re.search(r'norm(_attention|_mlp)?/scale$', path):
    path = path.removesuffix('scale') + 'weight'
  elif path.endswith('/kernel'):
    path, array = path.removesuffix('kernel') + 'weight', array.T
  return {path.replace('/', '.'): np.ascontiguousarray(array)}
