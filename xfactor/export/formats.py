"""Writes a trained model in one of several formats."""

import json
from collections.abc import Callable

from etils import epath

from xfactor.errors import UserError
from xfactor.exchange import convert, snapshot
from xfactor.export import networks as networks_lib
from xfactor.export import programs, pytorch, web

Paths = list[epath.Path]


def _safetensors(workdir: epath.Path, out: epath.Path) -> Paths:
  path = out / 'model.safetensors'
  convert.convert(workdir, path, to='safetensors', overwrite=True)
  return [path]


def _both(write: Callable[..., epath.Path]) -> Callable[..., Paths]:
  def written(workdir: epath.Path, out: epath.Path) -> Paths:
    networks = networks_lib.load(workdir)
    return [
      *(write(network, out) for network in networks.all()),
      write_facts(networks, out),
    ]

  return written


def _torch(workdir: epath.Path, out: epath.Path) -> Paths:
  networks = networks_lib.load(workdir)
  return [*pytorch.write(networks, out), write_facts(networks, out)]


def _web(workdir: epath.Path, out: epath.Path) -> Paths:
  # The page takes one picture, which models of several views render, too.
  networks = networks_lib.load(workdir, contexts=1)
  runtime = web.write(out)  # First: it may need the network.
  return [
    *runtime,
    *(programs.write_onnx(network, out) for network in networks.all()),
    write_facts(networks, out),
  ]


_WRITERS = {
  'stablehlo': _both(programs.write_stablehlo),
  'onnx': _both(programs.write_onnx),
  'safetensors': _safetensors,
  'torch': _torch,
  'web': _web,
}
FORMATS = tuple(_WRITERS)


def write(
  workdir: epath.PathLike,
  out: epath.PathLike,
  *,
  to: str,
  overwrite: bool = False,
) -> Paths:
  """Writes the newest checkpoint of a run; returns the files.

  Args:
    workdir: Run to export.
    out: Folder to write.
    to: One of FORMATS.
    overwrite: Whether to replace files in a folder that is not empty.

  Raises:
    UserError: If the run cannot be read or is of a method that the format does
      not cover, or the folder is not empty.
  """
  workdir, out = epath.Path(workdir), epath.Path(out)
  if not overwrite and snapshot.is_taken(out):
    raise UserError(
      f'{out} already exists: give another --out, or --overwrite to replace '
      'its files'
    )
  try:
    return _WRITERS[to](workdir, out)
  except OSError as e:
    raise UserError(f'cannot write {out}: {e}') from e


def write_facts(networks: networks_lib.Networks, out: epath.Path) -> epath.Path:
  path = out / 'model.json'
  with snapshot.whole(path) as file:
    file.write(json.dumps(networks.facts, indent=2).encode())
  return path
