"""Trains models of several sizes with equal FLOPs until poses transfer.

Each member of configs/scaling.py trains with the FLOPs of a number of updates
of the first member. A degree of freedom has *turned* at the first evaluation in
which a linear map explains half of it from the poses (R2 of 0.5).
"""

import dataclasses
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from transfer_suite import members, running

from benchmarks.measuring import align
from xfactor.data import files
from xfactor.errors import UserError
from xfactor.training import build as builds
from xfactor.training import held_out
from xfactor.training.telemetry import writers

ROOT = pathlib.Path(__file__).resolve().parents[2]
_RECIPES = ROOT / 'configs/scaling.py'
_FREEDOMS = ('pan', 'tilt')
_TURNED = 0.5  # R2.
_EVALUATIONS = 16


@dataclasses.dataclass(frozen=True)
class Member:
  """A trained member and its curve.

  Attributes:
    name: Name in configs/scaling.py.
    parameters: Number of parameters.
    flops: FLOPs per update.
    updates: Number of updates.
    curve: Per evaluation: update and R2 of each degree of freedom.
    final: Scores of the transfer test and of the held-out pictures.
  """

  name: str
  parameters: int
  flops: int
  updates: int
  curve: list[dict[str, float]]
  final: dict[str, float]

  def turn(self, freedom: str) -> int | None:
    """Returns the update at which a degree of freedom turned, if it did."""
    turned = (x['step'] for x in self.curve if x[freedom] >= _TURNED)
    return next(turned, None)


@dataclasses.dataclass(frozen=True)
class Report:
  """Members in the order of the recipes."""

  title: str
  members: list[Member]

  def summary(self) -> dict[str, Any]:
    """Returns the numbers, for JSON."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    cells = [['', 'parameters', 'GFLOP/update', 'updates']]
    cells[0] += [f'{freedom} turns' for freedom in _FREEDOMS]
    cells[0] += ['TFLOP', 'own, dB', "another's", 'rank', 'identified']
    for x in self.members:
      turns = [x.turn(freedom) for freedom in _FREEDOMS]
      last = max(turns) if None not in turns else None
      cells.append(
        [
          x.name,
          f'{x.parameters:,}',
          f'{x.flops / 1e9:.1f}',
          f'{x.updates:,}',
          *('-' if turn is None else f'{turn:,}' for turn in turns),
          '-' if last is None else f'{last * x.flops / 1e12:.1f}',
          f'{x.final["own"]:.2f}',
          f'{x.final["other"]:.2f}',
          f'{x.final["rank"]:.1f}',
          f'{x.final["identified"]:.1f}',
        ]
      )
    return align(self.title, cells)


def run(
  names: Sequence[str], *, updates: int, data_dir: str, out: str
) -> list[Report]:
  """Trains the members that are not finished and writes `OUT/scaling.png`.

  Args:
    names: Members of configs/scaling.py; all if empty.
    updates: Updates of the first member, whose FLOPs all get.
    data_dir: Folder of the data; made if missing.
    out: Folder of the runs and of the plot.

  Raises:
    UserError: If a member is unknown or its training failed.
  """
  recipes = members.load(str(_RECIPES))
  known = list(recipes['MEMBERS'])
  if unknown := set(names) - set(known):
    raise UserError(
      f'there is no member {min(unknown)!r}; choose from {", ".join(known)}'
    )
  budget = updates * _flops(recipes['get_config'](known[0]))
  found = []
  for name in names or known:
    config = recipes['get_config'](name)
    steps = max(1, round(budget / _flops(config)))
    workdir = pathlib.Path(out) / name
    if not held_out.file(workdir, steps).exists():
      _train(name, workdir, steps, data_dir)
    found.append(_read(name, config, workdir, steps))
    _plot(found, pathlib.Path(out) / 'scaling.png')
  return [Report(f'{budget / 1e12:.1f} TFLOP each', found)]


def _flops(config: ConfigDict) -> int:
  """Returns the FLOPs of an update."""
  return members.mean_flops(builds.build(config))


def _train(name: str, workdir: pathlib.Path, steps: int, data_dir: str) -> None:
  print(f'{name}: {steps} updates', flush=True)
  workdir.mkdir(parents=True, exist_ok=True)
  command = [
    *(sys.executable, '-m', 'xfactor.main'),
    f'--config={_RECIPES}:{name}',
    f'--workdir={workdir}',
    f'--config.data.dir={data_dir}',
    f'--config.train.steps={steps}',
    f'--config.train.eval_every={max(1, steps // _EVALUATIONS)}',
    f'--config.data.ramp_steps={max(1, steps // 3)}',
  ]
  log = workdir / 'log.txt'
  if code := running.execute(command, log, threading.Event()):
    raise UserError(f'{name} ended with exit code {code}; see {log}')


def _read(
  name: str, config: ConfigDict, workdir: pathlib.Path, steps: int
) -> Member:
  (data,) = config.data.mix
  curve = {}  # A resumed run may repeat an evaluation.
  for line in writers.read_lines(workdir / 'metrics.jsonl'):
    if f'eval/{data}/r2_{_FREEDOMS[0]}' in line:
      r2 = {x: line[f'eval/{data}/r2_{x}'] for x in _FREEDOMS}
      curve[line['step']] = {'step': line['step'], **r2}
  scores = files.read_json(held_out.file(workdir, steps))['data'][data]
  built = builds.build(config)
  return Member(
    name=name,
    parameters=members.parameters(built),
    flops=members.mean_flops(built),
    updates=steps,
    curve=[curve[step] for step in sorted(curve)],
    final={
      'own': scores['mean']['model']['psnr'],
      'other': scores['mean']['shuffled']['psnr'],
      'rank': scores['transfer']['rank'],
      'identified': scores['transfer']['identified'],
    },
  )


def _plot(found: Sequence[Member], path: pathlib.Path) -> None:
  """Plots R2 against FLOPs, and the final ranks."""
  figure = Figure((11, 3.6), layout='constrained')
  FigureCanvasAgg(figure)
  *axes, bars = figure.subplots(1, len(_FREEDOMS) + 1)
  for ax, freedom in zip(axes, _FREEDOMS, strict=True):
    for x in found:
      ax.plot(
        [point['step'] * x.flops / 1e12 for point in x.curve],
        [max(point[freedom], 0) for point in x.curve],
        '--' if x.name.startswith('published') else '-',
        label=x.name,
      )
    ax.set(xlabel='training TFLOP', ylabel=f'R2 of {freedom}', ylim=(0, 1))
    ax.grid(alpha=0.3)
  axes[0].legend(fontsize=7)
  names = [x.name for x in found]
  bars.barh(names, [x.final['rank'] for x in found])
  bars.axvline(50, color='black', linestyle=':')
  bars.set(xlabel='transfer rank, % (chance: 50)', xlim=(0, 100))
  bars.invert_yaxis()
  figure.savefig(path)
