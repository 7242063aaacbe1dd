"""Compiles a recipe's train step for accelerators that are not there.

  python tools/compile_ahead.py --config=configs/mv.py --topology=h200:8
    [--config.data.batch=512 ...] [--search] [--max_sent=1.3] [--json=FILE]

--topology takes several names, separated by commas: v5e:4x4 (TPUs by the shape
of a slice; --slices=2 for two), h200:8, h100:2x8 (two hosts of eight GPUs),
a100:4, b200:8, cpu:8 (virtual devices of this machine).

Compiles the full train step, with LPIPS and optimizer; one program for split
and one for whole examples. For each program it prints, for a device and a step:

* the memory that it needs,
* the bytes that it sends, by collective and by axis of the mesh, loop
  iterations included; and what it must send at least: each parameter that FSDP
  splits is gathered once forward and once backward, each gradient is reduced
  once (see xfactor/training/aot/bounds.py),
* its kernels, and FLOPs by operation and precision,
* lower bounds of the time: computing at the peak of each precision; HBM, for
  what kernels read and write; links within a host or slice; the network between
  them; on GPUs also kernels one after the other. The largest implies an upper
  bound of MFU, which a run may not reach.

--max_sent limits what a device may send, in multiples of what it must (1.3) or
in bytes (5GB). --search prints, for one chip or more, the largest batch of each
policy of config.model.remat, and the fastest of (remat, mesh, accumulate) for
the batch of the recipe.

JAX_OPTIMIZATION_LEVEL=O0 compiles several times faster for TPUs, but memory is
then a rough bound and nothing overlaps. Exit codes: 0 all fit, 1 something does
not fit or sends too much, 2 bad input (one line on stderr says what). TPUs need
`pip install -e .[tpu]`, GPUs `pip install -e .[cuda]`.
"""

import dataclasses
import json
import os
import pathlib

# No accelerator is used. Without this, CUDA's plug-in looks for a driver.
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from xfactor import cli, parsing  # noqa: E402
from xfactor.errors import UserError  # noqa: E402
from xfactor.evaluation import tables  # noqa: E402
from xfactor.training import build as builds  # noqa: E402
from xfactor.training.aot import report as reports  # noqa: E402
from xfactor.training.aot import search, topologies  # noqa: E402

_CONFIG = parsing.define_config('Recipe, for example configs/mv.py.')
_TOPOLOGY = flags.DEFINE_list(
  'topology',
  None,
  'Comma-separated topologies to compile for, for example v5e:16x16,h200:8.',
)
_SLICES = flags.DEFINE_integer(
  'slices', 1, 'TPU slices of that topology, connected by the network.', 1
)
_SEARCH = flags.DEFINE_bool(
  'search', False, 'Find the largest batch that fits, and the best settings.'
)
_MAX_SENT = flags.DEFINE_string(
  'max_sent',
  None,
  'Exit with code 1 if a device sends more: a multiple of what it must send '
  '(1.3), or bytes (5GB).',
)
_REMEDIES = flags.DEFINE_bool(
  'remedies', True, 'Look for settings that fit if something does not.'
)
_JSON = flags.DEFINE_string('json', None, 'JSON file to write the numbers to.')
flags.mark_flag_as_required('topology')


def heading(config: ConfigDict, build: builds.Build) -> str:
  """Returns one line that describes what is compiled."""
  mesh, device = build.mesh, build.mesh.devices.flat[0]
  axes = ' x '.join(f'{name}={n}' for name, n in mesh.shape.items())
  return (
    f'{mesh.size} x {device.device_kind}, mesh {axes}, batch {build.batch} in '
    f'{build.accumulate} parts, remat {config.model.remat}'
  )


def read_limit(text: str | None) -> tuple[float, float]:
  """Returns the limits of --max_sent: multiples of the bound, and bytes.

  Raises:
    UserError: If it is neither a number nor a number of GB.
  """
  if text is None:
    return float('inf'), float('inf')
  number = text.upper().removesuffix('GB')
  try:
    limit = float(number)
  except ValueError:
    limit = 0
  if limit <= 0:
    raise UserError(
      f'--max_sent={text} must be a multiple of what must be sent, for example '
      '1.3, or bytes, for example 5GB'
    )
  if number == text:
    return limit, float('inf')
  return float('inf'), limit * 1e9


def table(found: dict[str, list[reports.Report]]) -> str:
  """Returns a Markdown table with one row per report."""
  columns = ['topology', 'program', 'compile s', 'GiB a device', 'of']
  columns += ['sent GB', 'ratio', 'least ms', 'bound by', 'MFU below']
  rows = []
  for name, programs in found.items():
    for x in programs:
      cells = [name, x.program, f'{x.compile_seconds:.0f}']
      cells += [f'{n / 2**30:.2f}' for n in (x.memory_bytes, x.capacity_bytes)]
      cells += (
        [f'{x.sent_bytes / 1e9:.3g}', f'{x.ratio:.2f}']
        if x.kernels
        else ['-'] * 2
      )
      by = max(x.least_seconds, key=x.least_seconds.get, default='')
      cells += (
        [f'{1e3 * x.least_seconds[by]:.3g}', by, f'{x.mfu_bound:.0%}']
        if by
        else ['-'] * 3
      )
      rows.append(cells)
  return tables.markdown(columns, rows)


def summary(config: ConfigDict, topology: topologies.Topology) -> dict:
  """Returns what is compiled, for the JSON file."""
  build = builds.build(config, topology.devices, topology.hosts)
  return {
    'jax': jax.__version__,
    'devices': build.mesh.devices.flat[0].device_kind,
    'mesh': dict(build.mesh.shape),
    'batch': build.batch,
    'accumulate': build.accumulate,
    'remat': config.model.remat,
  }


def compile_for(
  config: ConfigDict, topology: topologies.Topology, title: str
) -> list[reports.Report]:
  """Compiles all programs for a topology, and prints their reports."""
  build = builds.build(config, topology.devices, topology.hosts)
  print(f'{title}: {heading(config, build)}')
  programs = []
  for report in reports.compile_recipe(config, topology):
    print(f'  {report}', flush=True)
    programs.append(report)
  if topology.platform == 'gpu':
    print(f'  {reports.UNKNOWN}')
  return programs


def main(_) -> int:
  with cli.reporting_user_errors():
    config = _CONFIG.value
    ratio, sent = read_limit(_MAX_SENT.value)
    found, good = {}, True
    for name in _TOPOLOGY.value:
      topology = topologies.describe(name, _SLICES.value)
      if _SEARCH.value:
        good &= search.print_best(config, topology)
        continue
      title = name if _SLICES.value == 1 else f'{_SLICES.value} x {name}'
      programs = found[name] = compile_for(config, topology, title)
      for x in programs:
        if not x.fits:
          good = False
          print(f'  {search.over(x)}')
          if _REMEDIES.value:
            print(f'  {search.remedies(config, topology)}', flush=True)
        elif x.sent_bytes > sent or x.ratio > ratio:
          good = False
          print(
            f'  {x.program} program: a device sends {x.sent_bytes / 1e9:.3g} '
            f'GB, {x.ratio:.2f} times what it must, more than --max_sent='
            f'{_MAX_SENT.value}'
          )
    if len(found) > 1:
      print(table(found))
    if _JSON.value:
      numbers = {
        name: {
          **summary(config, topologies.describe(name, _SLICES.value)),
          'programs': [dataclasses.asdict(x) for x in programs],
        }
        for name, programs in found.items()
      }
      pathlib.Path(_JSON.value).write_text(json.dumps(numbers, indent=1))
    return 0 if good else 1


if __name__ == '__main__':
  cli.run(main)
