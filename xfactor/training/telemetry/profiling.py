"""Profiles of a few steps, for xprof or TensorBoard."""

import jax
from etils import epath


class Profile:
  """Writes what the devices and the host do in steps [at, at + steps).

  To be looked at by `xprof --logdir=WORKDIR/profile` (pip install xprof).
  """

  def __init__(self, workdir: epath.PathLike, at: int | None, steps: int):
    """Begins to wait for its steps.

    Args:
      workdir: Folder of the run; all processes write into its `profile`.
      at: First step; None never comes.
      steps: How many.
    """
    self._folder = epath.Path(workdir) / 'profile'
    self._at = at
    self._steps = steps
    self._running = False

  def before(self, step: int) -> None:
    """Starts with its first step."""
    if step == self._at:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, results: jax.Array) -> None:
    """Stops after its last, when the `results` of the step are there."""
    if self._running and step + 1 == self._at + self._steps:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Writes what there is so far."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
