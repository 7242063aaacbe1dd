"""What a step needs at least: bytes to send, and seconds."""

import math
from collections.abc import Mapping

from xfactor.training import build as builds
from xfactor.training import chips
from xfactor.training.aot import products as products_lib


def least_bytes(
  build: builds.Build, products: products_lib.Products
) -> dict[str, float]:
  """Returns the bytes that a device must send in a step, by reason.

  * FSDP: each split parameter is gathered once forward and once backward, and
    its gradient is reduced and scattered once, for each accumulated part.
  * data: all-reduce of the gradients, whose axes are those that do not split
    the parameter.
  * tensor: all-reduce of products whose contracted axis is split.

  A parameter has the dtype in which it is multiplied. CPUs have no
  reduce-scatter: there an all-reduce takes its place.
  """
  shape = build.mesh.shape
  scatters = build.mesh.devices.flat[0].platform != 'cpu'
  least = dict.fromkeys(('gather', 'reduce', 'tensor'), 0.0)
  for path, leaf in build.functional.shapes.items():
    dtype = products.dtypes.get(path, leaf.dtype)
    axes = [axis for axis in build.places.params[path].spec if axis]
    size = math.prod(leaf.shape) * dtype.itemsize
    if 'tensor' in axes:
      size /= shape['tensor']
    fsdp = shape['fsdp'] if 'fsdp' in axes else 1
    others = shape['data'] * shape['fsdp'] // fsdp
    least['gather'] += 2 * build.accumulate * size * _share(fsdp)
    if scatters:
      least['reduce'] += build.accumulate * size * _share(fsdp)
      least['reduce'] += 2 * size / fsdp * _share(others)
    else:
      parts = build.accumulate if fsdp > 1 else 1
      least['reduce'] += 2 * parts * size * _share(fsdp * others)
  local = products.sums / shape['data'] / shape['fsdp']
  least['tensor'] = 2 * local * _share(shape['tensor'])
  return least


def _share(ways: int) -> float:
  return (ways - 1) / ways


def compute_seconds(
  chip: chips.Chip, flops: Mapping[str, float], devices: int
) -> float:
  """Returns the time of the products at the peak of their precisions."""
  return sum(
    work / devices / (1e12 * chip.rate(kind.partition(' ')[2]))
    for kind, work in flops.items()
  )
