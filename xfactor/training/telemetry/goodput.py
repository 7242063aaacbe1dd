"""Measures how a run spent its wall time, over all its interruptions.

Every incarnation of a run (a process that trains in its workdir, until it ends
or is killed) appends lines to WORKDIR/goodput.jsonl. Each second belongs to one
bucket:

init        before the first step, without compiling: opening data sets, making
            or restoring the state
compile     compiling the programs
data_wait   waiting for the next batch
step        training steps that count: those that were not repeated
checkpoint  time that a save blocks the loop
evaluation  held-out scores and pictures
lost        steps that a later incarnation repeated, because it resumed from an
            older checkpoint
other       the rest between the first and the last line of an incarnation
downtime    from an incarnation's last line to the first line of the next,
            including the work of a killed one after its last line

Goodput is the share of `step` in the wall time, from the first line to the
last. The buckets follow Google's ml-goodput-measurement; no cloud is needed.

Usage, on the process that writes metrics:

  goodput = Goodput(workdir, active=jax.process_index() == 0)
  with goodput.measure('compile'): ...            # A line, at once.
  goodput.add('data_wait', seconds)               # Summed up.
  goodput.add('step', seconds, step=done)         # Summed up; updates so far.
  goodput.flush()                                 # Lines for the sums.
  goodput.close()

Call `flush` when metrics are logged. Spans must not overlap.
"""

import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from xfactor.data import files
from xfactor.errors import UserError
from xfactor.training.telemetry import appending

FILE = 'goodput.jsonl'
_SUMMED = ('data_wait', 'step')
_MEASURED = ('init', 'compile', *_SUMMED, 'checkpoint', 'evaluation')
BUCKETS = (*_MEASURED, 'lost', 'other', 'downtime')


class Goodput:
  """Appends time spans to a run's goodput.jsonl, if `active`.

  Only one process of a run should be active.
  """

  def __init__(self, workdir: epath.PathLike, *, active: bool = True):
    self._active = active
    self._incarnation = uuid.uuid4().hex[:8]
    self._sums = dict.fromkeys(_SUMMED, 0.0)
    self._step = None  # The last update, and how many since the last flush.
    self._steps = 0
    if not active:
      return
    path = epath.Path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = appending.appender(path)
    self._file.end_line()
    self._write([{'kind': 'start'}])

  def add(
    self, kind: str, seconds: float, step: int | None = None, steps: int = 1
  ) -> None:
    """Adds seconds to a bucket.

    Args:
      kind: init, compile, data_wait, step, checkpoint or evaluation. Data waits
        and steps are summed up until `flush`, others are written at once.
      seconds: Seconds to add.
      step: Completed updates; required for steps only.
      steps: Number of updates, up to `step`, that took these seconds.

    Raises:
      ValueError: If there is no such bucket, or a step has no number.
    """
    if kind not in _MEASURED or (kind == 'step') != (step is not None):
      raise ValueError(f'{kind!r} with step={step} is no bucket')
    if kind not in _SUMMED:
      self.flush()
      self._write([{'kind': kind, 'seconds': seconds}])
      return
    self._sums[kind] += seconds
    if kind == 'step':
      self._step = step
      self._steps += steps

  @contextlib.contextmanager
  def measure(self, kind: str) -> Iterator[None]:
    """Adds the time inside to a bucket other than `step`."""
    began = time.monotonic()
    try:
      yield
    finally:
      self.add(kind, time.monotonic() - began)

  def flush(self, *, upload: bool = False) -> None:
    """Writes the sums since the last flush; starts an upload to a bucket."""
    lines = []
    if self._sums['data_wait']:
      lines.append({'kind': 'data_wait', 'seconds': self._sums['data_wait']})
    if self._steps:
      lines.append(
        {
          'kind': 'step',
          'seconds': self._sums['step'],
          'step': self._step,
          'steps': self._steps,
        }
      )
    self._sums = dict.fromkeys(_SUMMED, 0.0)
    self._steps = 0
    self._write(lines)
    if self._active and upload:
      self._file.flush()

  def close(self) -> None:
    """Writes the remaining sums and the end of the incarnation."""
    self.flush()
    self._write([{'kind': 'end'}])
    if self._active:
      self._file.close()

  def _write(self, lines: list[dict[str, Any]]) -> None:
    if not self._active or not lines:
      return
    head = {'incarnation': self._incarnation, 'time': time.time()}
    text = ''.join(f'{json.dumps(head | line)}\n' for line in lines)
    self._file.append(text.encode())


@dataclasses.dataclass(frozen=True)
class Summary:
  """Time of a run by bucket.

  Attributes:
    seconds: Seconds by name in `BUCKETS`; they add up to the wall time.
    incarnations: Number of incarnations.
    steps: Updates that count.
    lost_steps: Updates that were repeated.
  """

  seconds: dict[str, float]
  incarnations: int
  steps: int
  lost_steps: int

  @property
  def wall(self) -> float:
    """Wall time from the first line to the last, in seconds."""
    return sum(self.seconds.values())

  @property
  def goodput(self) -> float:
    """Share of the wall time spent on steps that count, in [0, 1]."""
    return self.seconds['step'] / self.wall if self.wall else 0.0


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the lines of a run's goodput.jsonl; skips unfinished ones.

  Raises:
    UserError: If the run has no such file.
  """
  path = files.run_folder(workdir) / FILE
  try:
    texts = path.read_text().splitlines()
  except (FileNotFoundError, NotADirectoryError) as e:
    raise UserError(
      f'{path} does not exist; give the --workdir of a run'
    ) from e
  lines = []
  for text in texts:
    try:
      line = json.loads(text)
      lines.append({**line, 'time': float(line['time'])})
    except (ValueError, KeyError, TypeError):
      continue
  return lines


def summarize(lines: Iterable[dict[str, Any]]) -> Summary:
  """Adds up the lines of all incarnations of a run."""
  incarnations = {}
  for line in lines:
    incarnations.setdefault(line['incarnation'], []).append(line)
  seconds = dict.fromkeys(BUCKETS, 0.0)
  kept = []  # Step lines, and how many of their updates still count.
  lost_steps = 0
  last = None
  for events in incarnations.values():
    begin, end = events[0]['time'], events[-1]['time']
    if last is not None:
      seconds['downtime'] += max(0.0, begin - last)
    last = end
    steps = [event for event in events if event['kind'] == 'step']
    if steps:  # Updates beyond its start were repeated.
      first = steps[0]['step'] - steps[0]['steps']
      for old in kept:
        counts = min(max(0, first - old['from']), old['counts'])
        lost_steps += old['counts'] - counts
        old['counts'] = counts
    for event in steps:
      begun = event['step'] - event['steps']
      kept.append({**event, 'from': begun, 'counts': event['steps']})
    measured = [event for event in events if 'seconds' in event]
    for event in measured:
      if event['kind'] != 'step':
        seconds[event['kind']] += event['seconds']
    spent = sum(event['seconds'] for event in measured)
    seconds['other'] += max(0.0, end - begin - spent)
  for event in kept:
    share = event['counts'] / event['steps']
    seconds['step'] += share * event['seconds']
    seconds['lost'] += (1 - share) * event['seconds']
  return Summary(
    seconds,
    incarnations=len(incarnations),
    steps=sum(event['counts'] for event in kept),
    lost_steps=lost_steps,
  )
