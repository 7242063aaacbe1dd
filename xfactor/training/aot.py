"""Compiles train steps for absent TPUs and reports on the programs.

libtpu compiles for any topology on any machine; jax.experimental.topologies
provides the devices.
"""

import collections
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from xfactor.errors import UserError
from xfactor.methods.base import StepKind
from xfactor.metrics import lpips
from xfactor.training import build as builds
from xfactor.training import chips

TOPOLOGIES = (
  *('v3:2x2', 'v3:4x4', 'v4:2x2x1', 'v4:4x4x4'),
  *('v5e:2x2', 'v5e:4x4', 'v5e:8x8', 'v5e:16x16'),
  *('v5p:2x2x1', 'v5p:4x4x4', 'v5p:8x8x8', 'v5p:16x16x24'),
  *('v6e:2x2', 'v6e:4x4', 'v6e:8x8', 'v6e:16x16'),
)
# Otherwise libtpu looks for a TPU machine and for other users of its TPU.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
_GIB = 2**30


@dataclasses.dataclass
class Collective:
  """Uses of one kind of collective in a step, on one chip.

  Attributes:
    count: Instructions of the program.
    bytes: Size of the full arrays that they gather, reduce or exchange.
    sent: Bytes sent by a chip, with ring algorithms.
  """

  count: int = 0
  bytes: float = 0.0
  sent: float = 0.0


KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
)
_NETWORK = 'over the network'
_HEAD = re.compile(r'^(?:ENTRY )?%([\w.\-]+) \(.*\{$')
_OP = re.compile(rf' = (.*?) ({"|".join(KINDS)})(-start)?\(')
_SEND = re.compile(r' = (.*?) send\(.*_xla_megascale_transfer_type')
_CALL = re.compile(
  r'(?:calls|to_apply|body|condition|\w+_computation)=%([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_WHILE = re.compile(r' while\(.*condition=%([\w.\-]+)')
# In the backend config of CPUs and GPUs; TPUs have a constant in the condition.
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]')


def collectives(hlo: str) -> dict[str, Collective]:
  """Counts collectives in the text of an optimized TPU program.

  TPUs reduce-scatter in fusions named all-reduce-scatter, which contain an
  all-reduce. Asynchronous collectives appear several times with the same
  channel. Between slices, hosts send parts of all-reduces.
  """
  bodies, entry = _computations(hlo)
  found = {kind: Collective() for kind in (*KINDS, _NETWORK)}
  seen = set()
  for name, turns in _turns(bodies, entry).items():
    for line in bodies[name]:
      if network := _SEND.search(line):
        found[_NETWORK].count += 1
        found[_NETWORK].bytes += turns * max(_sizes(network[1]))
      if not (op := _OP.search(line)):
        continue
      shape, kind, started = op.groups()
      channel = re.search(r'channel_id=(\d+)', line)
      if channel and kind != 'collective-permute':
        if (kind, channel[1]) in seen:
          continue
        seen.add((kind, channel[1]))
      # The shape of a start instruction has the operand and the result.
      size = max(_sizes(shape)) if started else sum(_sizes(shape))
      if 'all-reduce-scatter' in name and kind == 'all-reduce':
        kind = 'reduce-scatter'
      ways = _group_size(line)
      if kind == 'reduce-scatter' and 'all-reduce-scatter' not in name:
        size *= ways
      share = (ways - 1) / ways if ways else 1
      total = found[kind]
      total.count += 1
      total.bytes += turns * size
      passes = {'all-reduce': 2 * share, 'collective-permute': 1}
      total.sent += turns * size * passes.get(kind, share)
  return found


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """Returns the lines of each computation, and the name of the entry."""
  bodies, name, entry = {}, '', ''
  for line in hlo.splitlines():
    if head := _HEAD.match(line):
      name = head[1]
      bodies[name] = []
      entry = name if line.startswith('ENTRY') else entry
    elif name:
      bodies[name].append(line)
  return bodies, entry


def _turns(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
  """Returns how often each computation runs in a step, callers first."""
  calls = {name: list(_calls(bodies, name)) for name in bodies}
  order, seen = [], set()

  def visit(name):
    if name in seen:
      return
    seen.add(name)
    for callee, _ in calls[name]:
      visit(callee)
    order.append(name)

  visit(entry)
  turns = collections.Counter({entry: 1})
  for name in reversed(order):
    for callee, times in calls[name]:
      turns[callee] += turns[name] * times
  return turns


def _calls(
  bodies: dict[str, list[str]], name: str
) -> Iterator[tuple[str, int]]:
  for line in bodies[name]:
    loop, known = _WHILE.search(line), _KNOWN_TRIPS.search(line)
    times = 1
    if loop:
      times = int(known[1]) if known else _trip_count(bodies[loop[1]])
    names = _CALL.findall(line)
    for branches in _BRANCHES.findall(line):
      names += re.findall(r'%([\w.\-]+)', branches)
    yield from ((callee, times) for callee in names if callee in bodies)


def _trip_count(condition: list[str]) -> int:
  """Returns the length of a scan, the constant in its loop condition."""
  limits = [int(n) for n in re.findall(r'constant\((\d+)\)', str(condition))]
  return max(limits, default=1)


def _sizes(shape: str) -> list[int]:
  return [
    math.prod(int(n) for n in dims.split(',') if n)
    * (1 if kind == 'pred' else int(bits) // 8)
    for kind, bits, dims in _ARRAY.findall(shape)
  ]


def _group_size(line: str) -> int:
  """Returns the number of devices of a replica group."""
  if found := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return len(found[1].split(','))
  if found := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(found[1])
  if found := re.search(r'replica_groups=mesh\[(.*?)\].*?\{(.*?)\}', line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    axes = re.findall(r"'(\w+)'", found[2])
    return math.prod(int(sizes[axis]) for axis in axes)
  return 0


@dataclasses.dataclass
class Report:
  """Memory that a program needs, and bounds of its speed.

  Attributes:
    program: 'split' or 'whole'.
    fits: Whether it fits into the memory of a chip.
    seconds: Time of tracing and compiling.
    needed: GiB per chip, in total.
    capacity: GiB available to a program.
    arguments, temporaries, peak: GiB, as XLA counts them.
    kernels: Number of Mosaic (attention) kernels.
    collectives: Collectives by kind.
    bounds: Minimum seconds of a step by 'compute', 'HBM', 'ICI'.
    model_tflop: Model TFLOP of a step, on all chips.
    mfu: Upper bound of the model FLOPs utilization.
  """

  program: str
  fits: bool
  seconds: float
  needed: float
  capacity: float
  arguments: float = math.nan
  temporaries: float = math.nan
  peak: float = math.nan
  kernels: int = 0
  collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)
  bounds: dict[str, float] = dataclasses.field(default_factory=dict)
  model_tflop: float = math.nan
  mfu: float = math.nan

  def __str__(self) -> str:
    lines = [
      f'{self.program} program, compiled in {self.seconds:.0f} s: '
      f'{self.needed:.2f} of {self.capacity:.2f} GiB a chip, '
      f'{"fits" if self.fits else "DOES NOT FIT"}'
    ]
    if self.collectives:
      lines += [
        f'arguments {self.arguments:.2f}, temporaries {self.temporaries:.2f}, '
        f'peak {self.peak:.2f} GiB; {self.kernels} attention kernels',
        ', '.join(
          f'{kind} {uses.count} ({uses.bytes / 1e9:.3g} GB)'
          for kind, uses in self.collectives.items()
          if uses.count
        )
        or 'no collectives',
        f'{self.model_tflop:.4g} TFLOP a step; at least '
        + ', '.join(f'{k} {1e3 * v:.3g} ms' for k, v in self.bounds.items())
        + f': MFU below {self.mfu:.0%}',
      ]
    return '\n    '.join(lines)


def describe(name: str, slices: int) -> Sequence[jax.Device]:
  """Returns the devices of a topology, one per chip since v4.

  Raises:
    UserError: If libtpu is missing or does not know the topology.
  """
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
    raise UserError(
      f'--topology={name} is unknown to libtpu ({e}): choose one of these or '
      f'another size of them: {", ".join(TOPOLOGIES)}'
    ) from e


def compile_step(build: builds.Build, kind: StepKind) -> Report:
  """Compiles one program for the build's devices and reports on it."""
  chip = chips.chip(build.mesh.devices.flat[0].device_kind)
  weights = None
  if build.needs_lpips:
    weights = lpips.param_shapes('vgg16')
  name = kind.value
  start = time.perf_counter()
  try:
    program = build.compile(kind, weights=weights, controlled=True)
  except jax.errors.JaxRuntimeError as e:
    needed = re.search(
      r'\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)G\)', str(e)
    )
    if not needed:
      raise
    scale = {'K': 2**-20, 'M': 2**-10, 'G': 1, 'T': 2**10}[needed[2]]
    return Report(
      name,
      fits=False,
      seconds=time.perf_counter() - start,
      needed=float(needed[1]) * scale,
      capacity=float(needed[3]),
    )
  seconds = time.perf_counter() - start
  memory, hlo = program.memory_analysis(), program.as_text()
  held = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  needed = (
    held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  )
  report = Report(
    name,
    fits=chip is None or needed <= chip.hbm_gib * _GIB,
    seconds=seconds,
    needed=needed / _GIB,
    capacity=chip.hbm_gib if chip else math.nan,
    arguments=memory.argument_size_in_bytes / _GIB,
    temporaries=memory.temp_size_in_bytes / _GIB,
    peak=memory.peak_memory_in_bytes / _GIB,
    kernels=hlo.count('custom_call_target="tpu_custom_call"'),
    collectives=collectives(hlo),
  )
  model = build.method.flops(build, kind)
  report.model_tflop = model / 1e12
  if chip:
    run = build.method.executed_flops(build, kind)
    peak = chip.tflops * 1e12 * build.mesh.size
    moved = held + memory.output_size_in_bytes + 2 * memory.temp_size_in_bytes
    sent = sum(uses.sent for uses in report.collectives.values())
    report.bounds = {
      'compute': run / peak,
      'HBM': moved / (chip.hbm_gbps * 1e9),
      'ICI': sent / (chip.link_gbps * 1e9),
    }
    report.mfu = model / peak / max(report.bounds.values())
  return report


def compile_recipe(
  config: ConfigDict, devices: Sequence[jax.Device]
) -> Iterator[Report]:
  """Compiles all programs of a recipe; yields each report when it is done."""
  build = builds.build(config, devices)
  for kind in build.step_kinds():
    jax.clear_caches()
    yield compile_step(build, kind)


def largest(fits: Callable[[int], bool], limit: int, known: int = 0) -> int:
  """Finds the largest number up to `limit` that fits, by bisection.

  Args:
    fits: Tests a number; all numbers below a fitting one must fit.
    limit: Maximum number to try.
    known: Number that is known to fit.
  """
  low, high = known, max(2 * known, 1)
  while high <= limit and fits(high):
    low, high = high, 2 * high
  high = min(high, limit + 1)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low
