"""The device mesh and the sharding rules of parameters and batches.

Axes: 'data' replicates the parameters and splits the batch, 'fsdp' splits both,
'tensor' splits the widths of wide layers. Only 'data' crosses the network
between slices (TPU slices, or machines with GPUs); the other axes need the fast
links within one.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from xfactor.errors import UserError


def match_rule(path: str, rules: tuple):
  """Returns the value of the first rule whose pattern matches the whole path.

  Raises:
    ValueError: If no rule matches: a new parameter needs an explicit rule.
  """
  for pattern, value in rules:
    if re.fullmatch(pattern, path):
      return value
  raise ValueError(f'no rule covers the parameter {path!r}; add one')


AXES = ('data', 'fsdp', 'tensor')
BATCH = P(('data', 'fsdp'))


# A very large fsdp axis compiles to full all-reduces and saves hardly any more
# memory.
_MOST_FSDP = 8


@dataclasses.dataclass(frozen=True)
class Config:
  """Devices along each axis; one axis may be -1: the remaining devices.

  If data and fsdp are both -1, fsdp takes up to 8 of a slice, data the rest.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


_MLPS = r'mlp|head|pose|focal|query|color|density|embed_\w+'
# Specs of the last dimensions; stacked layers have a leading one as well.
PARAM_RULES = (
  (rf'(.*/)?(qkv|q|kv|embed|project|{_MLPS})/kernel', ('fsdp', 'tensor')),
  (r'.*/convs/\d+/kernel', ('fsdp', 'tensor')),
  (r'.*/out/kernel', ('tensor', 'fsdp')),
  (rf'(.*/)?({_MLPS})/layers/0/kernel', ('fsdp', 'tensor')),
  (rf'(.*/)?({_MLPS})/layers/\d+/kernel', ('tensor', 'fsdp')),
  (r'.*/(scale|bias|registers|pixel_embedding|\w+_camera)', ()),
  (r'scene|camera', ()),
)


def make_mesh(
  config: Config,
  devices: Sequence[jax.Device] | None = None,
  hosts: Sequence[int] | None = None,
) -> Mesh:
  """Creates the mesh over all devices, laid out for their interconnect.

  Args:
    config: Devices along each axis.
    devices: Devices; by default all.
    hosts: TPU slice or machine with GPUs of each device; by default what JAX
      says, which it does not for absent GPUs.

  Raises:
    UserError: If the axes do not multiply to the number of devices, or an axis
      other than 'data' would cross slices.
  """
  devices = jax.devices() if devices is None else devices
  if hosts is None:
    hosts = [getattr(device, 'slice_index', 0) for device in devices]
  parts = {}
  for device, host in zip(devices, hosts, strict=True):
    parts.setdefault(host, []).append(device)
  sizes = _axis_sizes(config, len(devices), len(parts))
  if sizes[0] % len(parts):
    raise UserError(
      f'config.mesh.data={sizes[0]} must be a multiple of {len(parts)}, the '
      'number of slices (or machines with GPUs): no other axis may cross the '
      'network between them'
    )
  places = [
    mesh_utils.create_device_mesh(
      (sizes[0] // len(parts), *sizes[1:]),
      part,
      allow_split_physical_axes=True,
    )
    for part in parts.values()
  ]
  return Mesh(np.concatenate(places), AXES, axis_types=(AxisType.Auto,) * 3)


def _axis_sizes(config: Config, devices: int, slices: int) -> list[int]:
  sizes = [config.data, config.fsdp, config.tensor]
  if sizes[:2] == [-1, -1] and config.tensor > 0:
    in_slice = devices // slices // config.tensor
    sizes[1] = max(
      (n for n in range(1, _MOST_FSDP + 1) if in_slice % n == 0), default=1
    )
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
    sizes[sizes.index(-1)] = devices // known
  if -1 in sizes or math.prod(sizes) != devices:
    asked = ' x '.join(
      f'{name}={size}' for name, size in dataclasses.asdict(config).items()
    )
    raise UserError(
      f'config.mesh asks for {asked} but there are {devices} devices; '
      'use -1 for one axis to take the remaining ones'
    )
  return sizes


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
  """Returns the number of shards that a mesh splits a batch into."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def split_batch(x: Array) -> Array:
  """Keeps the leading axis of activations split as the batch is.

  Nothing else tells XLA where activations lie. Without this it splits the carry
  of a scan over layers by features, and FSDP then sends activations instead of
  weights: 235 GB per step and GPU instead of 2 GB (`sm` on 8 H200).

  Outside of a mesh, or if the batch cannot be divided, `x` is returned as it
  is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or x.shape[0] % batch_ways(mesh):
    return x
  return jax.lax.with_sharding_constraint(x, BATCH)


def gather(kernel: Array, rows: bool = False) -> Array:
  """Gathers a kernel along the fsdp axis, for a product.

  Otherwise XLA may move activations instead: `sm` on 8 H200 gathered a third of
  the weights three times. With data, fsdp and tensor axes it also exchanged
  examples between devices wrongly (CPUs, jax 0.10.2).

  Args:
    kernel: Kernel of a dense layer or convolution, in the dtype of the product.
    rows: Whether the tensor axis splits its inputs, not its outputs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel
  axes = [None] * kernel.ndim
  split = -2 if rows else -1
  if kernel.shape[split] % mesh.shape['tensor'] == 0:
    axes[split] = 'tensor'
  return jax.lax.with_sharding_constraint(kernel, P(*axes))


def check_batch(mesh: Mesh, batch: int, name: str) -> None:
  """Raises UserError if the mesh does not divide the batch size `name`."""
  ways = batch_ways(mesh)
  if batch % ways:
    raise UserError(
      f'{name}={batch} must be a multiple of {ways}, the number of devices '
      f'along config.mesh.data x config.mesh.fsdp'
    )


def param_shardings(
  mesh: Mesh, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, NamedSharding]:
  """Returns the sharding of each parameter.

  A dimension that its mesh axis does not divide is not split.

  Raises:
    ValueError: If no rule covers a parameter.
  """
  return {
    path: NamedSharding(mesh, _spec(mesh, path, leaf.shape))
    for path, leaf in shapes.items()
  }


def _spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> P:
  rule = match_rule(path, PARAM_RULES)
  axes = (None,) * (len(shape) - len(rule)) + rule
  return P(
    *(
      axis if axis and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(axes, shape, strict=True)
    )
  )


def optimizer_shardings(
  mesh: Mesh,
  tx: optax.GradientTransformation,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  params: Mapping[str, NamedSharding],
):
  """Shards the optimizer's state: moments like their parameters.

  A moment is identified by its key, the path of its parameter.
  """
  everywhere = NamedSharding(mesh, P())
  return jax.tree_util.tree_map_with_path(
    lambda path, _: params.get(getattr(path[-1], 'key', None), everywhere),
    jax.eval_shape(tx.init, dict(shapes)),
  )


def to_mesh(mesh: Mesh, batch):
  """Assembles the parts of all processes to one global batch on the mesh."""
  sharding = NamedSharding(mesh, BATCH)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )
