"""Sends metrics and pictures to experiment trackers: Trackio, W&B.

Their packages are imported only if a recipe names them in `log`. Where they
send or store runs is set with their own variables (TRACKIO_DIR, WANDB_MODE).
"""

import importlib
import sys
import uuid
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import UInt8

from xfactor.data import files
from xfactor.errors import UserError

_PROJECT = 'xfactor'


class Tracker(Protocol):
  """One run in an experiment tracker."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs numbers by name."""

  def image(
    self, step: int, name: str, image: UInt8[np.ndarray, 'h w 3']
  ) -> None:
    """Logs a picture."""

  def close(self) -> None:
    """Sends what is left."""


class _Trackio:
  def __init__(
    self, trackio: ModuleType, name: str, run_id: str, folder, config
  ):
    del folder  # Trackio stores all runs in TRACKIO_DIR.
    self._trackio = trackio
    self._run = trackio.init(
      project=_PROJECT, name=f'{name}-{run_id}', config=config, resume='allow'
    )

  def scalars(self, step, values):
    self._run.log(dict(values), step=step)

  def image(self, step, name, image):
    self._run.log({name: self._trackio.Image(image)}, step=step)

  def close(self):
    self._run.finish()


class _Wandb:
  def __init__(self, wandb: ModuleType, name: str, run_id: str, folder, config):
    self._wandb = wandb
    self._run = wandb.init(
      project=_PROJECT,
      name=name,
      id=run_id,
      dir=None if files.is_remote(folder) else str(folder),
      config=config,
      resume='allow',
    )
    # W&B drops values of earlier steps, which a resumed run repeats.
    self._run.define_metric('*', step_metric='step')

  def scalars(self, step, values):
    self._run.log({**values, 'step': step})

  def image(self, step, name, image):
    self._run.log({name: self._wandb.Image(image), 'step': step})

  def close(self):
    self._run.finish()


_TRACKERS = {'trackio': _Trackio, 'wandb': _Wandb}


def check(names: str) -> None:
  """Raises UserError if a tracker is unknown or its package is missing."""
  for name in _split(names):
    if name not in _TRACKERS:
      raise UserError(
        f'config.log={names!r}: choose from {", ".join(_TRACKERS)}, separated '
        'by commas; TensorBoard is always written'
      )
    _import(name)


def open_trackers(
  names: str, workdir: epath.PathLike, config: Mapping[str, Any]
) -> list[Tracker]:
  """Starts or resumes a run in each tracker.

  The run is identified by WORKDIR/tracker_id.

  Args:
    names: Names of trackers, separated by commas; may be empty.
    workdir: Folder of the run; its name is that of the tracked run.
    config: Recipe, as JSON values.

  Raises:
    UserError: If a tracker is unknown, is not installed or does not start.
  """
  check(names)
  folder = files.run_folder(workdir)
  trackers = []
  for name in _split(names):
    file = folder / 'tracker_id'
    module = _import(name)
    try:
      if not file.exists():
        file.write_text(uuid.uuid4().hex[:8])
      tracker = _TRACKERS[name](
        module, folder.name, file.read_text(), folder, dict(config)
      )
    except Exception as e:  # Each has its own kinds.
      cause = str(e).strip().split('\n')[0]
      raise UserError(
        f'config.log={names!r}: {name} does not start ({cause}); log in to it, '
        'set WANDB_MODE=offline, or train without config.log'
      ) from e
    trackers.append(_Forgiving(tracker, name))
  return trackers


class _Forgiving:
  """A tracker whose failures are reported once and stop no run."""

  def __init__(self, tracker: Tracker, name: str):
    self._tracker = tracker
    self._name = name
    self._failed = False

  def scalars(self, step, values):
    self._try(self._tracker.scalars, step, values)

  def image(self, step, name, image):
    self._try(self._tracker.image, step, name, image)

  def close(self):
    self._try(self._tracker.close)

  def _try(self, send: Callable, *args) -> None:
    try:
      send(*args)
    except Exception as e:  # Each has its own kinds.
      if not self._failed:
        print(f'{self._name} fails ({e})', file=sys.stderr, flush=True)
      self._failed = True


def _split(names: str) -> list[str]:
  return [name.strip() for name in names.split(',') if name.strip()]


def _import(name: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise UserError(
      f"config.log={name!r}: {e}; install it with pip install -e '.[log]'"
    ) from e
