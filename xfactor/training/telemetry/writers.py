"""Writes metrics as JSON lines and to TensorBoard, and pictures."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX import summary
from tensorboardX.proto import event_pb2

from xfactor.data import files, images
from xfactor.data.formats import tfrecord
from xfactor.errors import UserError
from xfactor.training.telemetry import appending, trackers


def check(workdir: epath.PathLike) -> None:
  """Raises UserError if a folder for a run cannot be made or written."""
  folder = files.run_folder(workdir)
  if files.is_remote(folder):
    return  # The lock is written first.
  while not folder.exists() and folder != folder.parent:
    folder = folder.parent
  if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
    raise UserError(
      f'cannot write to --workdir={workdir} ({folder} is not a folder that can '
      'be written); choose another'
    )


class Writer:
  """Writes metrics and pictures into a run's folder, if `active`.

  Only one process of a run should be active. What cannot be written, on a full
  disk for instance, is reported once and does not stop the run.

  Args:
    workdir: Folder of the run.
    active: Whether to write.
    log: Names of trackers that get the same; see `trackers.open_trackers`.
    config: Recipe for the trackers, as JSON values.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    active: bool = True,
    log: str = '',
    config: Mapping[str, Any] | None = None,
  ):
    self._active = active
    self._failed: set[str] = set()
    if not active:
      return
    self._folder = epath.Path(workdir)
    name = f'{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    events = self._folder / 'tensorboard' / f'events.out.tfevents.{name}'
    metrics = self._folder / 'metrics.jsonl'
    try:
      events.parent.mkdir(parents=True, exist_ok=True)
      # A resumed run appends to the same file.
      self._lines = appending.appender(metrics)
      if not files.is_remote(metrics):
        open(metrics, 'ab').close()
      self._lines.end_line()
      # Not tensorboardX's writer, whose thread ends on a full disk, after which
      # it blocks for ever.
      self._events = appending.appender(events)
    except OSError as e:
      raise UserError(
        f'cannot write to --workdir={workdir} ({e.strerror}); choose a '
        'folder that can be written'
      ) from e
    self._add_events(event_pb2.Event(file_version='brain.Event:2'))
    self._trackers = trackers.open_trackers(log, workdir, config or {})

  def resume(self, step: int) -> None:
    """Tells TensorBoard to forget what a killed run wrote after a step."""
    if self._active:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add_events(event_pb2.Event(step=step + 1, session_log=start))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line of metrics.jsonl and its TensorBoard curves."""
    if not self._active:
      return
    values = {key: float(value) for key, value in values.items()}
    line = json.dumps({'step': step, **values}) + '\n'
    self._lines.append(line.encode())
    self._add_events(
      *(
        event_pb2.Event(step=step, summary=summary.scalar(key, value))
        for key, value in values.items()
      )
    )
    for tracker in self._trackers:
      tracker.scalars(step, values)

  def image(
    self, step: int, name: str, image: UInt8[np.ndarray, 'h w 3']
  ) -> None:
    """Writes panels/STEP_NAME.png and the same picture for TensorBoard."""
    if not self._active:
      return
    path = self._folder / 'panels' / f'{step:08d}_{name}.png'
    self._try('panels', lambda: images.write_png(path, image))
    shown = summary.image(name, image, dataformats='HWC')
    self._add_events(event_pb2.Event(step=step, summary=shown))
    for tracker in self._trackers:
      tracker.image(step, name, image)

  def curves(self) -> None:
    """Plots metrics.jsonl into curves.png."""
    if not self._active:
      return

    def plot():
      lines = _parse_lines(self._lines.read().decode())
      if lines:
        images.write_png(self._folder / 'curves.png', plot_curves(lines))

    self._try('curves.png', plot)

  def header(self, facts: Mapping[str, Any]) -> None:
    """Writes facts about the run into run.json, and to TensorBoard as text."""
    if not self._active:
      return
    text = json.dumps(dict(facts), indent=2)
    path = self._folder / 'run.json'
    self._try('run.json', lambda: path.write_text(text))
    shown = summary.text('run', f'```\n{text}\n```')
    self._add_events(event_pb2.Event(summary=shown))

  def flush(self) -> None:
    """Writes what could not be written before; starts uploads to a bucket."""
    if self._active:
      self._lines.flush()
      self._events.flush()

  def close(self) -> None:
    """Writes or uploads the rest, if that is possible now."""
    if self._active:
      self._lines.close()
      self._events.close()
      for tracker in self._trackers:
        tracker.close()

  def _add_events(self, *events: event_pb2.Event) -> None:
    records = []
    for event in events:
      event.wall_time = time.time()
      records.append(tfrecord.encode(event.SerializeToString()))
    self._events.append(b''.join(records))

  def _try(self, name: str, write: Callable[[], Any]) -> None:
    try:
      with files.as_os_errors(self._folder / name):
        write()
    except OSError as e:
      if name not in self._failed:
        print(
          f'cannot write {self._folder / name} ({e.strerror or e})',
          file=sys.stderr,
          flush=True,
        )
      self._failed.add(name)


def has_evaluation(workdir: epath.PathLike, step: int) -> bool:
  """Returns whether metrics.jsonl has held-out scores of a step."""
  path = epath.Path(workdir) / 'metrics.jsonl'
  return path.exists() and any(
    line['step'] == step and any(key.startswith('eval/') for key in line)
    for line in read_lines(path)
  )


def read_lines(path: epath.PathLike) -> list[dict[str, float]]:
  """Reads the lines of a metrics.jsonl, in the order of their steps.

  Skips unfinished lines of killed runs. Values that a resumed run wrote again
  replace earlier ones.
  """
  return _parse_lines(epath.Path(path).read_text())


def _parse_lines(content: str) -> list[dict[str, float]]:
  by_step = {}
  for text in content.splitlines():
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
