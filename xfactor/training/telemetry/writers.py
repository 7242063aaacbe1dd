"""Writes metrics as JSON lines and to TensorBoard, and pictures."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
from etils import epath
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xfactor.data import images
from xfactor.errors import UserError


def check(workdir: epath.PathLike) -> None:
  """Raises UserError if a folder for a run cannot be made or written."""
  folder = epath.Path(workdir)
  while not folder.exists() and folder != folder.parent:
    folder = folder.parent
  if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
    raise UserError(
      f'cannot write to --workdir={workdir} ({folder} is not a folder that can '
      'be written); choose another'
    )


class Writer:
  """Writes metrics and pictures into a run's folder, if `active`.

  Only one process of a run should be active.
  """

  def __init__(self, workdir: epath.PathLike, *, active: bool = True):
    self._active = active
    if not active:
      return
    if '://' in os.fspath(workdir):
      raise UserError(
        f'--workdir={workdir} must be a folder: mount the bucket (gcsfuse) or '
        'use a shared disk'
      )
    self._folder = epath.Path(workdir)
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      # A resumed run appends to the same file.
      self._lines = open(  # noqa: SIM115
        os.fspath(self._folder / 'metrics.jsonl'), 'a', buffering=1
      )
    except OSError as e:
      raise UserError(
        f'cannot write to --workdir={workdir} ({e.strerror}); choose a '
        'folder that can be written'
      ) from e
    self._tensorboard = tensorboardX.SummaryWriter(
      os.fspath(self._folder / 'tensorboard')
    )

    # A killed run may have left its last line unfinished.
    self._lines.write('\n' if self._is_unfinished() else '')

  def _is_unfinished(self) -> bool:
    last = (self._folder / 'metrics.jsonl').read_bytes()[-1:]
    return last not in (b'', b'\n')

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line of metrics.jsonl and its TensorBoard curves."""
    if not self._active:
      return
    values = {key: float(value) for key, value in values.items()}
    self._lines.write(json.dumps({'step': step, **values}) + '\n')
    for key, value in values.items():
      self._tensorboard.add_scalar(key, value, step)

  def image(
    self, step: int, name: str, image: UInt8[np.ndarray, 'h w 3']
  ) -> None:
    """Writes panels/STEP_NAME.png and the same picture for TensorBoard."""
    if not self._active:
      return
    images.write_png(self._folder / 'panels' / f'{step:08d}_{name}.png', image)
    self._tensorboard.add_image(name, image, step, dataformats='HWC')

  def curves(self) -> None:
    """Plots metrics.jsonl into curves.png."""
    if not self._active:
      return
    lines = read_lines(self._folder / 'metrics.jsonl')
    images.write_png(self._folder / 'curves.png', plot_curves(lines))

  def header(self, facts: Mapping[str, Any]) -> None:
    """Writes facts about the run into run.json, and to TensorBoard as text."""
    if not self._active:
      return
    text = json.dumps(dict(facts), indent=2)
    (self._folder / 'run.json').write_text(text)
    self._tensorboard.add_text('run', f'```\n{text}\n```')

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._active:
      self._lines.close()
      self._tensorboard.close()


def read_lines(path: epath.PathLike) -> list[dict[str, float]]:
  """Reads the lines of a metrics.jsonl, in the order of their steps.

  Skips unfinished lines of killed runs. Values that a resumed run wrote again
  replace earlier ones.
  """
  by_step = {}
  for text in epath.Path(path).read_text().splitlines():
    try:
      line = json.loads(text)
      by_step.setdefault(line['step'], {}).update(line)
    except (ValueError, KeyError, TypeError):
      continue
  return [by_step[step] for step in sorted(by_step)]


def plot_curves(
  lines: Sequence[Mapping[str, float]],
) -> UInt8[np.ndarray, 'h w 3']:
  """Plots the training loss and each data set's held-out PSNR.

  Args:
    lines: Lines of metrics.jsonl.
  """
  figure = Figure(figsize=(9, 3.2), dpi=100, layout='constrained')
  loss, psnr = figure.subplots(1, 2)
  _plot(loss, lines, 'loss', 'training loss')
  names = {key for line in lines for key in line if key.endswith('psnr')}
  for name in sorted(names):
    _plot(psnr, lines, name, name.removeprefix('eval/').replace('_', ' '))
  for axes, title in ((loss, 'loss'), (psnr, 'held-out PSNR, dB')):
    axes.set(xlabel='step', title=title)
    axes.grid(alpha=0.3)
  if names:
    psnr.legend(fontsize='small')
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plot(axes: Axes, lines: Sequence, key: str, label: str) -> None:
  points = [(line['step'], line[key]) for line in lines if key in line]
  style = '--' if '_psnr' in key else '.-'
  axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
