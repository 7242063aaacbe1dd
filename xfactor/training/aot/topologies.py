"""Describes absent accelerators to the compiler."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from xfactor.errors import UserError

TPUS = (
  *('v3:2x2', 'v3:4x4', 'v4:2x2x1', 'v4:4x4x4'),
  *('v5e:2x2', 'v5e:4x4', 'v5e:8x8', 'v5e:16x16'),
  *('v5p:2x2x1', 'v5p:4x4x4', 'v5p:4x4x8', 'v5p:8x8x8', 'v5p:16x16x24'),
  *('v6e:2x2', 'v6e:4x4', 'v6e:8x8', 'v6e:16x16'),
)
# Numbers of devices, or of hosts and of devices of each.
EXAMPLES = (*TPUS, *('a100:4', 'h100:8', 'h100:2x8', 'h200:8', 'b200:8'))
EXAMPLES += ('cpu:8',)
_TARGETS = pathlib.Path(__file__).parent / 'gpu_targets'
_NAME = re.compile(r'([a-z]+\d*):(?:(\d+)x)?(\d+)')
# Otherwise libtpu looks for a TPU machine and for other users of its TPU.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices of one kind.

  Attributes:
    name: Name, as it was asked for.
    devices: Devices; for TPUs, one per chip since v4.
    hosts: Host with GPUs (or slice of TPUs) of each device; between them is
      the network.
  """

  name: str
  devices: Sequence[jax.Device]
  hosts: Sequence[int]

  @property
  def platform(self) -> str:
    """'cpu', 'gpu' or 'tpu'."""
    return self.devices[0].platform


def describe(name: str, slices: int = 1) -> Topology:
  """Describes a topology.

  Args:
    name: For example 'v5e:4x4', 'h200:8', 'h100:2x8' (two hosts of eight GPUs)
      or 'cpu:8' (virtual devices).
    slices: Slices of that topology, for TPUs.

  Raises:
    UserError: If the topology is unknown, or what compiles for it is missing.
  """
  found = _NAME.fullmatch(name)
  if found and found[1] in ('cpu', *gpus()):
    hosts, each = int(found[2] or 1), int(found[3])
    if hosts * each == 0:
      raise _unknown(name, 'no devices')
    if slices > 1:
      raise UserError(
        f'--slices={slices} is for TPUs; write {found[1]}:{slices}x{each} for '
        f'{slices} hosts'
      )
    if found[1] == 'cpu':
      devices = _cpus(hosts * each)
    else:
      devices = _gpus(found[1], hosts, each)
    return Topology(name, devices, [i // each for i in range(hosts * each)])
  if not re.match(r'v\d', name):
    raise _unknown(name, 'no such accelerator')
  devices = _tpus(name, slices)
  slices = [getattr(device, 'slice_index', 0) for device in devices]
  return Topology(name, devices, slices)


def gpus() -> list[str]:
  """Returns the names of the GPUs that there are descriptions of."""
  return sorted(path.stem for path in _TARGETS.glob('*.txtpb'))


def has_cuda() -> bool:
  """Whether the compiler for NVIDIA GPUs is installed."""
  plugins = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
  return any(importlib.util.find_spec(name) for name in plugins)


def _cpus(number: int) -> Sequence[jax.Device]:
  # JAX may have started, maybe with enough devices.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', number)
  devices = jax.devices('cpu')
  if len(devices) < number:
    raise UserError(
      f'--topology=cpu:{number} needs {number} virtual devices, JAX has '
      f'{len(devices)}: set XLA_FLAGS=--xla_force_host_platform_device_count='
      f'{number}'
    )
  return devices[:number]


def _gpus(kind: str, hosts: int, each: int) -> Sequence[jax.Device]:
  if not has_cuda():
    raise UserError(
      'compiling for GPUs needs the compiler for CUDA (6 GB): run '
      '`pip install -e .[cuda]`'
    )
  return topologies.get_topology_desc(
    platform='cuda',
    topology=f'1x{hosts}x{each}',
    target_config=(_TARGETS / f'{kind}.txtpb').read_text(),
  ).devices


def _tpus(name: str, slices: int) -> Sequence[jax.Device]:
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      'compiling for TPUs needs libtpu: run `pip install -e .[tpu]`'
    )
  for key, value in ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  options = {'num_slices': slices} if slices > 1 else {}
  if name.startswith('v4:'):
    options['chip_config_name'] = 'megacore'
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    ).devices
  except jax.errors.JaxRuntimeError as e:
    raise _unknown(name, str(e)) from e


def _unknown(name: str, cause: str) -> UserError:
  return UserError(
    f'--topology={name} is unknown ({cause}): choose one of these or another '
    f'size of them: {", ".join(EXAMPLES)}'
  )
