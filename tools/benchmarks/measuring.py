"""Tables of measurements, timers, memory use, and processes to measure in."""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

import jax
import numpy as np

MIB = 2**20


class Unequal(Exception):
  """Raised if the sides of a comparison do not compute the same."""


# ==============================================================================
# Measurements and tables
# ==============================================================================


@dataclasses.dataclass
class Table:
  """Samples of several quantities for several things; the first is ours.

  Attributes:
    title: Title of the comparison.
    things: Names of the columns, in order.
    rows: Samples by quantity and thing.
  """

  title: str
  things: list[str]
  rows: dict[str, dict[str, list[float]]] = dataclasses.field(
    default_factory=dict
  )

  def add(self, row: str, thing: str, value: float) -> None:
    """Appends a sample; the n-th samples of all things are adjacent in time."""
    self.rows.setdefault(row, {}).setdefault(thing, []).append(float(value))

  def ratios(self, row: str, thing: str) -> list[float]:
    """Returns the ratios of this thing's samples to our adjacent samples."""
    samples = self.rows[row]
    if thing == self.things[0] or not {thing, self.things[0]} <= set(samples):
      return []
    pairs = zip(samples[thing], samples[self.things[0]], strict=True)
    return [value / ours for value, ours in pairs]

  def summary(self) -> dict[str, Any]:
    """Returns the numbers of the table, for JSON."""
    rows = {
      row: {
        thing: {'median': float(np.median(values)), 'samples': values}
        | _spread(self.ratios(row, thing))
        for thing, values in samples.items()
      }
      for row, samples in self.rows.items()
    }
    return {'title': self.title, 'things': self.things, 'rows': rows}

  def __str__(self) -> str:
    ours, *others = self.things
    cells = [['', ours]]
    cells[0] += [x for thing in others for x in (thing, f'/ {ours}')]
    for row, samples in self.rows.items():
      cells.append([row, number(samples.get(ours))])
      for thing in others:
        cells[-1].append(number(samples.get(thing)))
        cells[-1].append(ratio(self.ratios(row, thing)))
    return align(self.title, cells)


def align(title: str, cells: list[list[str]]) -> str:
  """Formats cells as aligned columns below a title."""
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '  '.join(
      [line[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    )
    for line in cells
  ]
  return '\n'.join([title, *lines])


def _spread(ratios: list[float]) -> dict[str, float]:
  if not ratios:
    return {}
  return {
    'ratio': float(np.median(ratios)),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
  }


def number(values: list[float] | None) -> str:
  """Formats a median."""
  if values is None:
    return '-'
  median = float(np.median(values))
  return f'{median:,.0f}' if abs(median) >= 1000 else f'{median:.3g}'


def ratio(ratios: list[float]) -> str:
  """Formats a median ratio with its minimum and maximum."""
  if not ratios:
    return ''
  median, low, high = _spread(ratios).values()
  if len(ratios) == 1:
    return f'{median:.2f}'
  return f'{median:.2f} ({low:.2f}..{high:.2f})'


def alternate(things: Iterable[Any], repeats: int) -> Iterable[Any]:
  """Yields all things `repeats` times, in alternating order.

  Drift over time then favours none of them.
  """
  things = list(things)
  for turn in range(repeats):
    yield from things if turn % 2 == 0 else reversed(things)


@dataclasses.dataclass
class Time:
  """Result of `timed`: wall seconds and CPU seconds of all threads."""

  wall: float = 0.0
  cpu: float = 0.0


@contextlib.contextmanager
def timed():
  """Times the block; the result is filled in when the block ends."""
  result = Time()
  wall, cpu = time.perf_counter(), time.process_time()
  yield result
  result.wall = time.perf_counter() - wall
  result.cpu = time.process_time() - cpu


def peak_mib() -> float:
  """Returns the peak resident size of this process in MiB.

  Reads /proc on Linux, since `ru_maxrss` would include the size of the parent
  at the time of the fork.
  """
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def temporaries(program: jax.stages.Compiled) -> float | None:
  """Returns XLA's temporaries of a program in MiB; None if not reported."""
  stats = program.memory_analysis()
  return None if stats is None else stats.temp_size_in_bytes / MIB


def is_exact(dtype: str = 'float32') -> bool:
  """Whether products of this dtype have float32 precision on this machine.

  Accelerators round float32 products, too.
  """
  return dtype == 'float32' and jax.default_backend() == 'cpu'


def machine() -> dict[str, Any]:
  """Describes the machine and software of the measurements."""
  cpuinfo = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  models = [x.split(':')[1].strip() for x in cpuinfo if 'model name' in x]
  device = jax.devices()[0]
  return {
    'cpu': models[0] if models else platform.machine(),
    'cores': len(os.sched_getaffinity(0)),
    'device': device.device_kind,
    'platform': device.platform,
    'jax': jax.__version__,
    'python': platform.python_version(),
    'load': os.getloadavg()[0],
  }


# ==============================================================================
# Processes
# ==============================================================================

_subject: Any = None


def _install(make: Callable, *args: Any) -> None:
  global _subject
  _subject = make(*args)


def _call(method: str, *args: Any) -> Any:
  return getattr(_subject, method)(*args)


class Remote:
  """An object in its own process, called by method name."""

  def __init__(self, stack: contextlib.ExitStack, make: Callable, *args: Any):
    self._pool = stack.enter_context(
      futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context('spawn')
      )
    )
    self._pool.submit(_install, make, *args).result()

  def __call__(self, method: str, *args: Any) -> Any:
    return self._pool.submit(_call, method, *args).result()


class Local:
  """Same interface as `Remote`, in this process."""

  def __init__(self, _: contextlib.ExitStack, make: Callable, *args: Any):
    self._subject = make(*args)

  def __call__(self, method: str, *args: Any) -> Any:
    return getattr(self._subject, method)(*args)


def place(isolate: bool) -> type[Remote] | type[Local]:
  """Returns the class that runs a measured object."""
  return Remote if isolate and jax.default_backend() != 'tpu' else Local
