"""Compiles a recipe's train step for TPUs on any machine, without a TPU.

  python tools/compile_tpu.py --config=configs/mv.py --topology=v5e:16x16
    [--slices=2] [--config.data.batch=512 ...] [--search]

Compiles the full train step (with LPIPS and optimizer; one program for split
and one for whole examples) with libtpu. For each program it prints the memory
per chip, the collectives (count in the program; GB of their arrays per chip and
step, loop iterations included), the FLOPs and a lower bound on the step time.
The bound is the maximum of compute (with recomputation and LPIPS, at the bf16
peak; a float32 convolution is six passes), one transfer of arguments, results
and temporaries through HBM, and communication over the links (ICI). It implies
an upper bound on MFU, which a run may not reach. --topology takes several
names; a table of all follows at the end.

--search finds, by doubling and bisection, the largest batch that fits with each
policy of config.model.remat, and the cheapest policy for the recipe's batch.

JAX_OPTIMIZATION_LEVEL=O0 compiles several times faster, but memory is then a
rough bound and nothing overlaps. Exit codes: 0 all fit, 1 something does not, 2
bad input (one line on stderr says what). Needs `pip install -e .[tpu]`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import ConfigDict

from xfactor import cli, parsing
from xfactor.nn import sharding
from xfactor.training import aot
from xfactor.training import build as builds

_CONFIG = parsing.define_config('Recipe, for example configs/mv.py.')
_TOPOLOGY = flags.DEFINE_list(
  'topology',
  None,
  'Comma-separated topologies to compile for, for example v5e:16x16.',
)
_SLICES = flags.DEFINE_integer(
  'slices', 1, 'Slices of that topology, connected by the network.', 1
)
_SEARCH = flags.DEFINE_bool(
  'search', False, 'Find the largest batch that fits.'
)
_JSON = flags.DEFINE_string('json', None, 'JSON file to write the numbers to.')
flags.mark_flag_as_required('topology')

# Policies of config.model.remat by increasing recomputation, for --search, and
# the largest number of examples per chip that it tries.
_POLICIES = ('none', 'dots', 'full')
_LARGEST = 1024


def heading(config: ConfigDict, build: builds.Build) -> str:
  """Returns one line that describes what is compiled."""
  mesh, device = build.mesh, build.mesh.devices.flat[0]
  axes = ' x '.join(f'{name}={n}' for name, n in mesh.shape.items())
  return (
    f'{mesh.size} x {device.device_kind}, mesh {axes}, batch {build.batch} in '
    f'{build.accumulate} parts, remat {config.model.remat}'
  )


def search(config: ConfigDict, devices: Sequence[jax.Device]) -> bool:
  """Prints the largest batch per policy; returns if the recipe's batch fits."""
  build = builds.build(config, devices)
  ways = sharding.batch_ways(build.mesh) * build.accumulate
  best, known = {}, 0
  for remat in _POLICIES:

    def fits(examples, remat=remat):
      trial = ConfigDict(config)
      trial.model.remat, trial.data.batch = remat, examples * ways
      for report in aot.compile_recipe(trial, devices):
        print(f'remat {remat}, {examples} a chip: {report}', flush=True)
        if not report.fits:
          return False
      return True

    # A batch that fits also fits with more recomputation.
    best[remat] = known = aot.largest(fits, _LARGEST, known)
  for remat, examples in best.items():
    print(
      f'remat {remat}: at most {examples} examples a chip at a time, '
      f'config.data.batch={examples * ways}'
    )
  own = build.batch // ways
  enough = [remat for remat in _POLICIES if best[remat] >= own]
  cheapest = f'remat {enough[0]} is the cheapest' if enough else 'nothing'
  print(f'for config.data.batch={build.batch}, {cheapest} that fits')
  return bool(enough)


def table(reports: dict[str, list[aot.Report]]) -> str:
  """Returns a Markdown table with one row per report."""
  columns = ['topology', 'program', 'compile s', 'GiB a chip', 'of']
  columns += ['AG GB', 'RS GB', 'AR GB', 'least ms', 'bound by', 'MFU below']
  rows = [columns, ['---'] * len(columns)]
  for name, programs in reports.items():
    for x in programs:
      moved = [
        f'{x.collectives[kind].bytes / 1e9:.3g}' if x.collectives else '-'
        for kind in aot.KINDS[:3]
      ]
      by = max(x.bounds, key=x.bounds.get, default='')
      cells = [name, x.program, f'{x.seconds:.0f}', f'{x.needed:.2f}']
      cells += [f'{x.capacity:.2f}', *moved]
      if by:
        cells += [f'{1e3 * x.bounds[by]:.3g}', by, f'{x.mfu:.0%}']
      else:
        cells += ['-'] * 3
      rows.append(cells)
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def main(_) -> int:
  with cli.reporting_user_errors():
    jax.config.update('jax_platforms', 'cpu')  # No TPU is used.
    config = _CONFIG.value
    if _SEARCH.value:
      fit = [
        search(config, aot.describe(name, _SLICES.value))
        for name in _TOPOLOGY.value
      ]
      return 0 if all(fit) else 1
    reports = {}
    for name in _TOPOLOGY.value:
      devices = aot.describe(name, _SLICES.value)
      title = name if _SLICES.value == 1 else f'{_SLICES.value} x {name}'
      print(f'{title}: {heading(config, builds.build(config, devices))}')
      reports[title] = []
      for report in aot.compile_recipe(config, devices):
        print(f'  {report}', flush=True)
        reports[title].append(report)
    if len(reports) > 1:
      print(table(reports))
    if _JSON.value:
      numbers = {
        name: [dataclasses.asdict(report) for report in programs]
        for name, programs in reports.items()
      }
      pathlib.Path(_JSON.value).write_text(json.dumps(numbers))
    fit = all(x.fits for programs in reports.values() for x in programs)
    return 0 if fit else 1


if __name__ == '__main__':
  cli.run(main)
