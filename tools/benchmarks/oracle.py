"""Measures a pose oracle on frames with known cameras, also degraded ones."""

import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xfactor.data import preview
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles import degradation
from xfactor.evaluation.reports import evaluation as reports_evaluation
from xfactor.metrics import poses

# `file` reads the true cameras.
NAMES = tuple(name for name in oracles.NAMES if name != 'file')
_SHOWN = 12
_COLUMNS = 4


def run(
  store: store_lib.FrameStore,
  *,
  name: str,
  options: str,
  clips: int | None,
  frames: int,
  window: int | None,
  size: int | None,
  out: str | os.PathLike[str] | None,
) -> list[degradation.Result]:
  """Measures an oracle.

  Args:
    store: Split with cameras.
    name: Name of the oracle.
    options: Options of the oracle, as on the command line. `known_scene` does
      not see the frames themselves unless the options say so.
    clips: Number of clips, spread evenly over the split; None for all.
    frames: Number of frames per clip.
    window: See `degradation.measure`.
    size: See `degradation.measure`.
    out: Path of a plot of paths, see `draw`; None for no plot.

  Raises:
    UserError: As `degradation.measure`, or if `out` cannot be written.
  """
  own = {'hold_out': True} if name == 'known_scene' else {}
  oracle = oracles.make(name, **(own | oracles.parse_options(options)))
  count = min(clips or len(store), len(store))
  rows = np.linspace(0, len(store) - 1, count).round().astype(int)
  result = degradation.measure(
    oracle, store, rows.tolist(), frames, window=window, size=size
  )
  if out is not None:
    try:
      draw(result).savefig(out)
    except (OSError, ValueError) as error:
      raise UserError(
        f'cannot draw {out} ({error}); give --out a file that ends in .png'
      ) from error
  return [result]


def draw(result: degradation.Result) -> Figure:
  """Plots the paths of 12 clips, found in unchanged frames, from above.

  The oracle's paths are aligned with the true ones by a similarity; a line
  shows where each camera looks.
  """
  row = result.rows[0]
  count = min(_SHOWN, len(result.clips))
  chosen = np.linspace(0, len(result.clips) - 1, count).round().astype(int)
  lines = -(-count // _COLUMNS)
  figure = Figure((3.2 * _COLUMNS, 3.5 * lines + 0.9), layout='constrained')
  FigureCanvasAgg(figure)
  grid = figure.subplots(lines, _COLUMNS, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for axes, clip in zip(grid.flat, chosen.tolist(), strict=False):
    axes.set_axis_on()
    axes.set_aspect('equal', adjustable='datalim')
    axes.set(xticks=[], yticks=[])
    axes.set_title(_title(result, clip), fontsize=8)
    plane = preview.from_above(result.truth[clip, :, :3])
    truth = np.linalg.inv(result.truth[clip])
    reach = 0.15 * np.ptp(truth[:, :3, 3], axis=0).max() or 1.0
    known = np.isfinite(row.paths[clip]).all((1, 2))
    paths = [(truth, 'black', 4, 'true')]
    if known.sum() > 1:
      found = reports_evaluation.align(
        truth[known], np.linalg.inv(row.paths[clip, known])
      )
      paths.append((found, 'tab:orange', 2, result.title.split()[0]))
    for path, colour, width, label in paths:
      centres = path[:, :3, 3] @ plane.T
      ahead = centres + reach * path[:, :3, 2] @ plane.T
      style = {'color': colour, 'linewidth': width}
      axes.plot(*centres.T, 'o-', markersize=width + 1, label=label, **style)
      axes.plot(*np.stack([centres, ahead], 1).T, **style)
  by_label = {}
  for axes in grid.flat:
    handles, labels = axes.get_legend_handles_labels()
    by_label |= dict(zip(labels, handles, strict=True))
  figure.legend(
    by_label.values(), by_label.keys(), loc='outside lower center', ncols=2
  )
  figure.suptitle(f'{result.title}\ntrue frames, seen from above', fontsize=9)
  return figure


def _title(result: degradation.Result, clip: int) -> str:
  row = result.rows[0]
  verdict = 'accepted' if row.ok[clip] else 'NOT accepted'
  scores = poses.score(result.truth[clip], row.paths[clip])
  degrees = np.stack([scores.rotation_degrees, scores.translation_degrees])
  degrees = degrees[:, np.isfinite(degrees).all(0)]
  if degrees.size:
    verdict += ', median {:.2f} and {:.2f} degrees'.format(
      *np.median(degrees, 1)
    )
  return f'{result.clips[clip]}\n{verdict}'
