"""Limits gradient spikes, and stops a run with too many non-finite steps.

`step.train_step` skips the updates. This module sets the gradient limit and
decides when there were too many.
"""

import collections
import json
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from xfactor.data.pipeline import parts as pipeline_parts
from xfactor.data.records import store

# Metrics that count skipped updates: not finite, and gradient spikes.
COUNTED = ('skipped', 'spikes')
# Steps of the running median, and the minimum number of finite ones.
_WINDOW = 128
_MIN_JUDGED = 32


class Spikes:
  """Limit of the gradient norm: a multiple of the running median.

  The median includes large norms, so that it follows a lasting change, but not
  non-finite ones. The limit of step n uses the norms up to step n - 2, even if
  that of step n - 1 has already arrived. An interrupted run therefore has the
  same limits as an uninterrupted one.
  """

  def __init__(
    self, factor: float, step: int = 0, norms: Sequence[float | None] = ()
  ):
    """Starts, or resumes with the norms of a checkpoint.

    Args:
      factor: Multiple of the median that is allowed; 0 allows everything.
      step: Next step.
      norms: Norms of the steps before it, as returned by `norms`.
    """
    self._factor = factor
    self._step = step
    self._norms = collections.deque(norms, maxlen=_WINDOW + 1)

  def add(self, norm: float) -> None:
    """Adds the gradient norm of the next step."""
    self._step += 1
    if self._factor:
      self._norms.append(norm if math.isfinite(norm) else None)

  def norms(self) -> list[float | None]:
    """Returns the newest norms, oldest first; None if not finite."""
    return list(self._norms)

  def limit(self, step: int) -> float:
    """Returns the limit of a step; infinity with too few finite norms.

    Args:
      step: Next step, or the one after it.
    """
    late = self._step - (step - 1)  # Norms that the limit must not use.
    known = list(self._norms)[: len(self._norms) - late][-_WINDOW:]
    finite = [norm for norm in known if norm is not None]
    if len(finite) < _MIN_JUDGED:
      return math.inf
    return self._factor * float(np.median(finite))


class Diagnosis:
  """Stops a run after too many steps in a row that are not finite.

  WORKDIR/diagnosis-STEP.json then contains, for each of these steps, the loss,
  the gradient norms by module, and the clips of the examples.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    limit: int,
    stream: pipeline_parts.DataConfig,
    modules: Iterable[str],
  ):
    """Starts counting.

    Args:
      workdir: Folder of the run.
      limit: Number of non-finite steps in a row that stops the run.
      stream: Data of the run, which names the clips.
      modules: Names of the modules in `module_norms`.
    """
    self._workdir = epath.Path(workdir)
    self._limit = limit
    self._stream = stream
    self._modules = list(modules)
    self._skipped = []

  def take(
    self,
    step: int,
    values: Mapping[str, float],
    module_norms: jax.Array,
    examples: Mapping[str, np.ndarray],
  ) -> None:
    """Adds the results of a step.

    Args:
      step: Number of the step.
      values: Metrics of the step.
      module_norms: float32 [modules], gradient norms.
      examples: `part` and `clip` of this process's examples.

    Raises:
      FloatingPointError: If there were too many non-finite steps in a row.
    """
    if not values['skipped']:
      self._skipped.clear()
      return
    self._skipped.append((step, values, jax.device_get(module_norms), examples))
    if len(self._skipped) < self._limit:
      return
    file = self._write(step)
    raise FloatingPointError(
      f'the loss or gradient was not finite in {self._limit} steps in a row, '
      f'the last was {step} (loss {values["loss"]}, gradient norm '
      f'{values["grad_norm"]}); their updates were skipped; see the examples '
      f'in {file}, or lower config.optimizer.learning_rate'
    )

  def _write(self, step: int) -> epath.Path:
    file = self._workdir / f'diagnosis-{step}.json'
    examples = {
      key: np.stack([x[key] for *_, x in self._skipped]).astype(np.int32)
      for key in ('part', 'clip')
    }
    if jax.process_count() > 1:
      with jax.transfer_guard('allow'):
        gathered = multihost_utils.process_allgather(examples)
      # [processes, steps, examples of one] to [steps, examples].
      examples = {k: np.concatenate(x, axis=1) for k, x in gathered.items()}
    if jax.process_index() == 0:
      config = self._stream
      names = [f'{part.name}/{part.split}' for part in config.parts]
      stores = [
        store.open_split(config.data_dir, part.name, part.split, part.version)
        for part in config.parts
      ]
      skipped = [
        {
          'step': number,
          'loss': _number(values['loss']),
          'grad_norm': _number(values['grad_norm']),
          'module_norms': dict(
            zip(self._modules, map(_number, norms.tolist()), strict=True)
          ),
          'examples': [
            {'data': names[part], 'clip': stores[part].clip_id(clip)}
            for part, clip in zip(parts.tolist(), clips.tolist(), strict=True)
          ],
        }
        for (number, values, norms, _), parts, clips in zip(
          self._skipped, examples['part'], examples['clip'], strict=True
        )
      ]
      file.write_text(json.dumps({'step': step, 'skipped': skipped}, indent=1))
    return file


def _number(value: float) -> float | str:
  """Converts non-finite numbers to text, which JSON can store."""
  return float(value) if math.isfinite(value) else str(float(value))
