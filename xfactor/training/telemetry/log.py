"""Collects the metrics of steps, one step late."""

import contextlib
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from xfactor.training import build as builds
from xfactor.training import chips
from xfactor.training.resilience import divergence
from xfactor.training.resilience import requests as requests_lib

_MOST_KEPT = 2000  # Steps.


class Log:
  """Averages metrics and measures speed; fetches metrics one step late."""

  def __init__(
    self,
    build: builds.Build,
    requests: requests_lib.Requests,
    spikes: divergence.Spikes,
    diagnosis: divergence.Diagnosis,
  ):
    """Starts; passes fetched metrics to requests, spikes and diagnosis."""
    self._requests = requests
    self._spikes = spikes
    self._diagnosis = diagnosis
    self._frames_per_step = build.batch * build.views
    self._flops = build.method.flops(build)
    kinds = [device.device_kind for device in build.mesh.devices.flat]
    peak = chips.peak_flops(kinds[0])
    # MFU is relative to the bfloat16 peak, so not defined for float32 models.
    half = build.model.dtype == 'bfloat16'
    self._peak = peak * len(kinds) if peak and half else None
    self._pending = None
    self.restart()

  def restart(self) -> None:
    """Starts a new interval; ignores what happened since the last `read`."""
    self._metrics = []
    self._steps = 0
    self._wait = 0.0
    self._started = time.monotonic()

  def kept(self) -> list[dict[str, float]]:
    """Returns the metrics since the last `read`, to be saved with the state.

    Long intervals are not kept: checkpoints would grow.
    """
    return list(self._metrics) if len(self._metrics) <= _MOST_KEPT else []

  def restore(self, metrics: Sequence[dict[str, float]]) -> None:
    """Continues an interval with the metrics that `kept` returned."""
    self._metrics = list(metrics)

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside as waiting for data."""
    began = time.monotonic()
    yield
    self._wait += time.monotonic() - began

  def add(
    self,
    step: int,
    metrics: dict[str, jax.Array],
    examples: dict[str, np.ndarray],
  ) -> None:
    """Adds a step's metrics, still being computed; fetches the last step's."""
    self.flush()
    self._pending = step, metrics, examples
    self._steps += 1

  def flush(self) -> None:
    """Fetches pending metrics.

    Raises:
      FloatingPointError: If too many steps in a row were not finite.
    """
    if self._pending is None:
      return
    step, metrics, examples = self._pending
    self._pending = None
    module_norms = metrics.pop('module_norms')
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self._requests.hear(int(values.pop('request')))
    self._spikes.add(values['grad_norm'])
    self._diagnosis.take(step, values, module_norms, examples)
    self._metrics.append(values)

  def read(self) -> dict[str, float]:
    """Returns means and speed of the interval, and starts a new one.

    The means exclude steps that were not finite.
    """
    if not self._metrics:  # Only one step so far, still pending.
      self.flush()
    seconds = time.monotonic() - self._started
    finite = [x for x in self._metrics if not x['skipped']] or self._metrics
    values = {
      key: float(np.mean([metrics[key] for metrics in finite]))
      for key in self._metrics[0]
    }
    values |= {
      key: int(sum(metrics[key] for metrics in self._metrics))
      for key in divergence.COUNTED
    }
    values |= {
      'learning_rate': self._metrics[-1]['learning_rate'],
      'steps_per_s': self._steps / seconds,
      'frames_per_s': self._steps * self._frames_per_step / seconds,
      'data_wait': self._wait / seconds,
    }
    if self._peak:
      values['mfu'] = self._steps * self._flops / seconds / self._peak
    self.restart()
    return values
