"""Finds batches and settings that fit a chip."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from xfactor.errors import UserError
from xfactor.nn import sharding
from xfactor.training import build as builds
from xfactor.training.aot import report as reports
from xfactor.training.aot.topologies import Topology

# Policies of config.model.remat by increasing recomputation, and the largest
# number of examples per device that is tried.
POLICIES = ('none', 'dots', 'full')
_LARGEST = 1024
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a recipe that decide whether it fits, and how fast it is."""

  remat: str
  accumulate: int
  data: int
  fsdp: int

  def apply(self, config: ConfigDict) -> ConfigDict:
    """Returns the recipe with these settings."""
    changed = copy.deepcopy(config)
    changed.model.remat = self.remat
    changed.train.accumulate = self.accumulate
    changed.mesh.data, changed.mesh.fsdp = self.data, self.fsdp
    return changed

  def __str__(self) -> str:
    return (
      f'--config.model.remat={self.remat} '
      f'--config.train.accumulate={self.accumulate} '
      f'--config.mesh.data={self.data} --config.mesh.fsdp={self.fsdp}'
    )


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


def print_best(config: ConfigDict, topology: Topology) -> bool:
  """Prints the largest batch per policy and the best settings.

  Returns:
    Whether anything fits the recipe's batch.
  """
  build = builds.build(config, topology.devices, topology.hosts)
  ways = sharding.batch_ways(build.mesh) * build.accumulate
  best, known = {}, 0
  for remat in POLICIES:

    def fits(examples, remat=remat):
      trial = copy.deepcopy(config)
      trial.model.remat, trial.data.batch = remat, examples * ways
      for report in reports.compile_recipe(trial, topology):
        print(f'remat {remat}, {examples} a device: {report}', flush=True)
        if not report.fits:
          return False
      return True

    # A batch that fits also fits with more recomputation.
    best[remat] = known = largest(fits, _LARGEST, known)
  for remat, examples in best.items():
    print(
      f'remat {remat}: at most {examples} examples a device at a time, '
      f'config.data.batch={examples * ways}'
    )
  fast = sorted(_fitting(config, topology, best), key=lambda item: item[0])
  for seconds, settings in fast:
    print(f'{settings}: at least {1e3 * seconds:.3g} ms')
  verdict = f'best for config.data.batch={build.batch}: '
  print(verdict + (str(fast[0][1]) if fast else 'nothing fits'))
  return bool(fast)


def _fitting(
  config: ConfigDict, topology: Topology, best: dict[str, int]
) -> Iterator[tuple[float, Settings]]:
  """Yields least seconds and settings that fit the recipe's batch."""
  for settings in candidates(config, topology):
    part = config.data.batch // len(topology.devices) // settings.accumulate
    if part > best[settings.remat]:
      continue
    programs = list(reports.compile_recipe(settings.apply(config), topology))
    if all(x.fits for x in programs):
      yield sum(_seconds(x) for x in programs) / len(programs), settings


def _seconds(report: reports.Report) -> float:
  return max(report.least_seconds.values(), default=report.compile_seconds)


def candidates(config: ConfigDict, topology: Topology) -> list[Settings]:
  """Returns settings for the recipe's batch, with little work first.

  For each policy, the fewest parts of a batch come first; meshes without a
  tensor axis.
  """
  devices, hosts = len(topology.devices), len(set(topology.hosts))
  in_host = devices // hosts
  meshes = [(devices // n, n) for n in (in_host, 8, 1) if in_host % n == 0]
  found = []
  for accumulate, remat, (data, fsdp) in itertools.product(
    (1, 2, 4, 8, 16, 32), POLICIES, dict.fromkeys(meshes)
  ):
    settings = Settings(remat, accumulate, data, fsdp)
    try:
      builds.build(settings.apply(config), topology.devices, topology.hosts)
    except UserError:
      continue
    found.append(settings)
  return found


def over(report: reports.Report) -> str:
  """Says by how much a program does not fit."""
  missing = (report.memory_bytes - report.capacity_bytes) / _GIB
  return (
    f'{report.program} program does not fit: {missing:.2f} GiB too much a '
    'device'
  )


def remedies(config: ConfigDict, topology: Topology, most: int = 3) -> str:
  """Returns settings with which a recipe fits that does not, cheapest first.

  They are tried from little to much additional work: parameters split over more
  devices, more recomputation, a batch in more parts.

  Args:
    config: Recipe.
    topology: Topology.
    most: Number of settings to find.
  """
  build = builds.build(config, topology.devices, topology.hosts)
  fsdp, accumulate = build.mesh.shape['fsdp'], build.accumulate
  remat = POLICIES.index(config.model.remat)
  found = []
  for settings in candidates(config, topology):
    needs = (
      settings.fsdp / fsdp,
      settings.accumulate / accumulate,
      (POLICIES.index(settings.remat) + 1) / (remat + 1),
    )
    if min(needs) < 1 or max(needs) == 1:  # These need as much memory or more.
      continue
    programs = reports.compile_recipe(settings.apply(config), topology)
    if all(x.fits for x in programs):
      found.append(str(settings))
      if len(found) == most:
        break
  if not found:
    return 'nor does it with more recomputation or a batch in more parts'
  return 'what fits: ' + ', or '.join(found)
