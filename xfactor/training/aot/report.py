"""Compiles the programs of a recipe and reports on them."""

import dataclasses
import math
import re
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from xfactor.methods.base import StepKind
from xfactor.metrics import lpips
from xfactor.training import build as builds
from xfactor.training import chips
from xfactor.training.aot import bounds, hlo, kernels, traffic
from xfactor.training.aot import products as products_lib
from xfactor.training.aot.topologies import Topology

_GIB = 2**30
# What a program compiled for an absent GPU does not tell.
UNKNOWN = (
  'not known without a GPU: XLA counts no cost, products are not autotuned, '
  "cuDNN's plans are not built"
)


@dataclasses.dataclass
class Report:
  """Memory that a program needs, what it sends, and bounds of its speed.

  Numbers are those of a device and a step, except FLOPs: of all devices.

  Attributes:
    program: 'split' or 'whole'.
    fits: Whether it fits into the memory of a device.
    compile_seconds: Time of tracing and compiling.
    memory_bytes: Memory needed, in total.
    capacity_bytes: Memory available to a program.
    argument_bytes, temporary_bytes, peak_bytes: As XLA counts them.
    collectives: Instructions by kind of collective.
    sent_bytes: Bytes sent.
    sent_by_kind, sent_by_axis, sent_by_kind_and_axis: Parts of `sent_bytes`.
    network_bytes: Part of `sent_bytes` that leaves the host or slice.
    largest_transfers: Operations of the model that send most.
    least_bytes: What must be sent; see `bounds.least_bytes`.
    least_by_reason: Parts of it.
    kernels: Instructions by kernel.
    moved_bytes: Bytes read and written by kernel.
    flops: FLOPs by operation and precision.
    products: Number of these operations.
    model_flops: FLOPs of the model, without recomputation and LPIPS.
    least_seconds: Minimum time by cause.
    mfu_bound: Upper bound of the model FLOPs utilization.
  """

  program: str
  fits: bool
  compile_seconds: float
  memory_bytes: float
  capacity_bytes: float
  argument_bytes: float = math.nan
  temporary_bytes: float = math.nan
  peak_bytes: float = math.nan
  collectives: dict[str, int] = dataclasses.field(default_factory=dict)
  sent_bytes: float = math.nan
  sent_by_kind: dict[str, float] = dataclasses.field(default_factory=dict)
  sent_by_axis: dict[str, float] = dataclasses.field(default_factory=dict)
  sent_by_kind_and_axis: dict[str, float] = dataclasses.field(
    default_factory=dict
  )
  network_bytes: float = math.nan
  largest_transfers: dict[str, float] = dataclasses.field(default_factory=dict)
  least_bytes: float = math.nan
  least_by_reason: dict[str, float] = dataclasses.field(default_factory=dict)
  kernels: dict[str, int] = dataclasses.field(default_factory=dict)
  moved_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
  flops: dict[str, float] = dataclasses.field(default_factory=dict)
  products: dict[str, int] = dataclasses.field(default_factory=dict)
  model_flops: float = math.nan
  least_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  mfu_bound: float = math.nan

  @property
  def ratio(self) -> float:
    """Bytes sent in multiples of the bytes that must be sent."""
    if not self.sent_bytes:
      return 0.0
    return self.sent_bytes / self.least_bytes if self.least_bytes else math.inf

  def __str__(self) -> str:
    lines = [
      f'{self.program} program, compiled in {self.compile_seconds:.0f} s: '
      f'{self.memory_bytes / _GIB:.2f} of {self.capacity_bytes / _GIB:.2f} GiB '
      f'a device, {"fits" if self.fits else "DOES NOT FIT"}'
    ]
    if self.kernels:
      lines += self._details()
    return '\n    '.join(lines)

  def _details(self) -> list[str]:
    kinds = ', '.join(
      f'{kind} {_size(n)}' for kind, n in self.sent_by_kind_and_axis.items()
    )
    parts = ', '.join(
      f'{reason} {_size(n)}' for reason, n in self.least_by_reason.items() if n
    )
    lines = [
      f'arguments {self.argument_bytes / _GIB:.2f}, temporaries '
      f'{self.temporary_bytes / _GIB:.2f}, peak {self.peak_bytes / _GIB:.2f} '
      'GiB',
      f'sends {_size(self.sent_bytes)}: {kinds or "nothing"}',
      f'must send {_size(self.least_bytes)}: {parts or "nothing"}; ratio '
      f'{self.ratio:.2f}',
      'kernels: ' + ', '.join(f'{n} {k}' for k, n in self.kernels.items()),
      'TFLOP of all devices: '
      + ', '.join(
        f'{self.flops[k] / 1e12:.4g} in {n} {k}'
        for k, n in self.products.items()
      ),
    ]
    if self.least_seconds:
      seconds = self.least_seconds.items()
      lines.append(
        f'{self.model_flops / 1e12:.4g} TFLOP of the model; at least '
        + ', '.join(f'{k} {1e3 * v:.3g} ms' for k, v in seconds)
        + f': MFU below {self.mfu_bound:.0%}'
      )
    return lines


def compile_recipe(config: ConfigDict, topology: Topology) -> Iterator[Report]:
  """Compiles all programs of a recipe; yields each report when it is done."""
  build = builds.build(config, topology.devices, topology.hosts)
  for kind in build.step_kinds():
    jax.clear_caches()
    yield compile_step(build, kind, topology)


def compile_step(
  build: builds.Build, kind: StepKind, topology: Topology
) -> Report:
  """Compiles one program for the build's devices and reports on it.

  Args:
    build: Build of the recipe.
    kind: Kind of the step.
    topology: Topology of its devices.
  """
  chip = chips.chip(build.mesh.devices.flat[0].device_kind)
  weights = lpips.param_shapes('vgg16') if build.needs_lpips else None
  start = time.perf_counter()
  traced = build.trace(kind, weights=weights, controlled=True)
  try:
    with jax.set_mesh(build.mesh):
      program = traced.lower().compile()
  except jax.errors.JaxRuntimeError as e:
    found = re.search(
      r'\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)G\)', str(e)
    )
    if not found:
      raise
    scale = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}[found[2]]
    return Report(
      kind.value,
      fits=False,
      compile_seconds=time.perf_counter() - start,
      memory_bytes=float(found[1]) * scale,
      capacity_bytes=float(found[3]) * _GIB,
    )
  seconds = time.perf_counter() - start
  memory = program.memory_analysis()
  needed = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  capacity = chip.hbm_gib * _GIB if chip else math.inf
  report = Report(
    kind.value,
    fits=needed <= capacity,
    compile_seconds=seconds,
    memory_bytes=needed,
    capacity_bytes=capacity,
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=memory.peak_memory_in_bytes,
    model_flops=build.method.flops(build, kind),
  )
  parsed = hlo.parse(program.as_text())
  _add_traffic(report, parsed, build, topology)
  _add_work(report, parsed, build, traced)
  if chip:
    _add_bounds(report, chip, build.mesh.devices.flat[0].platform, build)
  return report


def _add_traffic(report: Report, parsed, build, topology: Topology) -> None:
  hosts = dict(zip(topology.devices, topology.hosts, strict=True))
  places = [hosts[device] for device in build.mesh.devices.flat]
  found = traffic.transfers(parsed, build.mesh.shape, places)
  for transfer in found:
    count = report.collectives.get(transfer.kind, 0)
    report.collectives[transfer.kind] = count + 1
  report.sent_bytes = sum(x.sent for x in found)
  report.network_bytes = sum(x.network for x in found)
  report.sent_by_kind = traffic.total(found, lambda x: x.kind)
  report.sent_by_axis = traffic.total(found, lambda x: x.axes)
  report.sent_by_kind_and_axis = traffic.total(
    found, lambda x: f'{x.kind} over {x.axes}'
  )
  sources = traffic.total(found, lambda x: f'{x.kind} {x.source}')
  report.largest_transfers = dict(list(sources.items())[:10])


def _add_work(report: Report, parsed, build, traced) -> None:
  found = step_products(build, traced)
  report.flops, report.products = dict(found.flops), dict(found.counts)
  report.least_by_reason = bounds.least_bytes(build, found)
  report.least_bytes = sum(report.least_by_reason.values())
  report.kernels = kernels.names(parsed)
  report.moved_bytes = kernels.moved(parsed)


def step_products(build: builds.Build, traced) -> products_lib.Products:
  """Counts the products of a traced step of a build."""
  leaves = jax.tree_util.tree_flatten_with_path(traced.in_avals)[0]
  paths = [
    getattr(path[-1], 'key', None)
    if any(getattr(key, 'name', None) == 'params' for key in path)
    else None
    for path, _ in leaves
  ]
  specs = {path: x.spec for path, x in build.places.params.items()}
  return products_lib.count(traced.jaxpr, paths, specs)


def _add_bounds(report: Report, chip: chips.Chip, platform: str, build) -> None:
  compute = bounds.compute_seconds(chip, report.flops, build.mesh.size)
  moved = report.moved_bytes
  hbm = chip.hbm_gbps * 1e9
  report.least_seconds = {
    'compute': compute,
    'HBM': _least_moved(report, platform) / hbm,
    'links': (report.sent_bytes - report.network_bytes)
    / (chip.link_gbps * 1e9),
  }
  if report.network_bytes:
    report.least_seconds['network'] = report.network_bytes / (
      chip.network_gbps * 1e9
    )
  if platform == 'gpu':
    # Kernels follow each other: those without products add to those with.
    others = sum(n for k, n in moved.items() if k not in kernels.PRODUCTS)
    report.least_seconds['kernels'] = compute + others / hbm
  peak = chip.tflops * 1e12 * build.mesh.size
  report.mfu_bound = (
    report.model_flops / peak / max(report.least_seconds.values())
  )


def _least_moved(report: Report, platform: str) -> float:
  """Returns bytes that HBM must move at least.

  Kernels of TPUs overlap and keep much in fast memory, which the program does
  not show: there, arguments, results and temporaries count once.
  """
  if platform == 'gpu':
    return sum(report.moved_bytes.values())
  return 2 * (report.argument_bytes + report.temporary_bytes)


def _size(n: float) -> str:
  return f'{n / 1e9:.3g} GB'
