"""Profiles of a few steps, for xprof or TensorBoard."""

import os
import sys
import tempfile

import jax
from etils import epath

from xfactor.data import files


class Profile:
  """Profiles devices and host in steps [at, at + steps).

  View it with `xprof --logdir=WORKDIR/profile` (pip install xprof).
  """

  def __init__(self, workdir: epath.PathLike, at: int | None, steps: int):
    """Prepares to profile.

    Args:
      workdir: Folder of the run; all processes write into its `profile`.
      at: First step; None disables.
      steps: Number of steps.
    """
    self._folder = epath.Path(workdir) / 'profile'
    self._local = self._folder
    if files.is_remote(workdir):  # Where JAX cannot write it.
      self._local = epath.Path(tempfile.gettempdir()) / f'profile-{os.getpid()}'
    self._at = at
    self._steps = steps
    self._running = False

  def before(self, step: int) -> None:
    """Starts the profile before its first step."""
    if step == self._at:
      jax.profiler.start_trace(self._local)
      self._running = True

  def after(self, step: int, results: jax.Array) -> None:
    """Stops the profile once the `results` of its last step are computed."""
    if self._running and step + 1 == self._at + self._steps:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Stops and writes a running profile."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      if self._local != self._folder:
        self._upload()

  def _upload(self) -> None:
    try:
      with files.as_os_errors(self._folder):
        for folder, _, names in self._local.walk():
          for name in names:
            to = self._folder / folder.relative_to(self._local) / name
            to.write_bytes((folder / name).read_bytes())
    except OSError as e:
      print(
        f'cannot upload the profile ({e.strerror or e}); it is in '
        f'{self._local}',
        file=sys.stderr,
        flush=True,
      )
      return
    self._local.rmtree()
