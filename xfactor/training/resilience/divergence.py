"""What becomes of steps that are not finite, or whose gradients jump.

The step itself leaves them out (`step.train_step`). Here is decided what a jump
is, and when there were too many.
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

# Metrics that count the steps left out: not finite ones and jumps.
COUNTED = ('skipped', 'spikes')
# Steps that a jump is judged by, and how many of them must be there.
_WINDOW = 128
_MIN_JUDGED = 32


class Spikes:
  """The largest gradient norm allowed: a multiple of the running median.

  Large norms count for the median, too, so that a lasting change is followed;
  ones that are not finite do not. The limit of a step knows of the steps up to
  the last but one before it, no matter what has arrived: so a run that was
  interrupted has the limits of one that was not.
  """

  def __init__(
    self, factor: float, step: int = 0, norms: Sequence[float | None] = ()
  ):
    """Begins, or goes on.

    Args:
      factor: Of the median; 0 allows everything.
      step: That comes next.
      norms: Of those before it, as `norms` gave them.
    """
    self._factor = factor
    self._step = step
    self._norms = collections.deque(norms, maxlen=_WINDOW + 1)

  def add(self, norm: float) -> None:
    """Takes the gradient norm of the next step."""
    self._step += 1
    if self._factor:
      self._norms.append(norm if math.isfinite(norm) else None)

  def norms(self) -> list[float | None]:
    """The norms of the newest steps, oldest first; None if not finite."""
    return list(self._norms)

  def limit(self, step: int) -> float:
    """The largest norm allowed in a step, infinity where too little is known.

    Args:
      step: The one that comes next, or the one after it.
    """
    late = self._step - (step - 1)  # Arrived before it was to be known.
    known = list(self._norms)[: len(self._norms) - late][-_WINDOW:]
    finite = [norm for norm in known if norm is not None]
    if len(finite) < _MIN_JUDGED:
      return math.inf
    return self._factor * float(np.median(finite))


class Diagnosis:
  """Stops a run after too many steps in a row that are not finite.

  WORKDIR/diagnosis-STEP.json then has, for each of them, its loss, the norm of
  the gradient by module, and the clips that its examples were cut from.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    limit: int,
    stream: pipeline_parts.DataConfig,
    modules: Iterable[str],
  ):
    """Begins to count.

    Args:
      workdir: Folder of the run.
      limit: Steps in a row that are too many.
      stream: Where the examples are from.
      modules: Names of the norms by module.
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
    """Takes what is known of a step.

    Args:
      step: Its number.
      values: Its metrics.
      module_norms: float32 [modules].
      examples: `part` and `clip` of this process's examples.

    Raises:
      FloatingPointError: If there were too many.
    """
    if not values['skipped']:
      self._skipped.clear()
      return
    self._skipped.append((step, values, jax.device_get(module_norms), examples))
    if len(self._skipped) < self._limit:
      return
    file = self._write(step)
    raise FloatingPointError(
      f'loss or gradient were not finite in {self._limit} steps in a row, '
      f'the last was {step} (loss {values["loss"]}, gradient norm '
      f'{values["grad_norm"]}); all states are from before them; see {file}, '
      'and lower config.optimizer.learning_rate or look at the examples there'
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
  """JSON has no name for what is not finite."""
  return float(value) if math.isfinite(value) else str(float(value))
