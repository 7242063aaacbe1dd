"""Asynchronous Orbax checkpoints that can be restored onto any mesh.

The same command starts and resumes a run. A checkpoint is valid once Orbax has
renamed its folder to the number of its step (in a bucket, mounted or not: has
written commit_success.txt). A restored state is compared with the fingerprints
that it had on the devices when it was saved. A run that has only damaged
checkpoints stops and never starts from scratch.
"""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
  preservation_policy as policies,
)

from xfactor.data import files
from xfactor.errors import UserError
from xfactor.training.resilience import checkpoint_files, checksums
from xfactor.training.state import TrainState, restart_average


def warm_start(
  params: dict[str, jax.Array],
  abstract: Mapping[str, jax.ShapeDtypeStruct],
  workdir: epath.PathLike,
  networks: str,
) -> tuple[dict[str, jax.Array], str]:
  """Replaces new parameters with those of another run.

  Args:
    params: Newly initialized parameters.
    abstract: Shapes, dtypes and shardings of the parameters.
    workdir: Folder of the other run, whose newest checkpoint is loaded.
    networks: 'both', or the name of one network.

  Returns:
    The parameters, and a description of what was loaded: the average of the
    parameters, if the other run has one.

  Raises:
    UserError: If there is no checkpoint, or it is of another model.
  """
  prefix = '' if networks == 'both' else f'{networks}/'
  with contextlib.closing(Checkpoints(workdir, create=False)) as checkpoints:
    step, loaded = checkpoints.restore_params(abstract, prefix=prefix)
    folder = checkpoints.folder / str(step)
  count = sum(x.size for x in loaded.values())
  total = sum(x.size for x in params.values())
  names = ' and '.join(sorted({name.split('/')[0] for name in loaded}))
  return params | loaded, f'{names} of {folder}: {count:,} of {total:,} weights'


class Checkpoints:
  """The checkpoints of one run, under `WORKDIR/checkpoints/STEP`.

  All processes of a run must call the same methods and get the same results.

  Args:
    workdir: Folder of the run.
    keep: Number of newest checkpoints to keep.
    keep_step: Step of a checkpoint that is kept as well.
    create: Whether this is the run itself, which writes; readers change
      nothing.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    keep: int = 3,
    keep_step: int | None = None,
    create: bool = True,
  ):
    folder = files.run_folder(workdir) / 'checkpoints'
    self.folder = folder if files.is_remote(folder) else folder.resolve()
    self._keep = keep
    self._writes = create
    self._pending: int | None = None
    # Buckets copy every file to rename a folder.
    commit = ocp.options.AtomicityMode.AUTO
    if files.is_mounted_bucket(self.folder):
      commit = ocp.options.AtomicityMode.COMMIT_FILE
    try:
      with files.as_os_errors(self.folder):
        self._manager = ocp.CheckpointManager(
          self.folder,
          options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
              [policies.LatestN(keep), policies.CustomSteps([keep_step])]
            ),
            enable_async_checkpointing=True,
            create=create,
            cleanup_tmp_directories=create,  # From killed saves.
            atomicity_options=ocp.options.AtomicityOptions(mode=commit),
          ),
        )
    except OSError as e:
      raise checkpoint_files.cannot_write(self.folder, e) from e

  def steps(self) -> list[int]:
    """Returns the steps of committed checkpoints, oldest first."""
    found = [x for x in self._manager.all_steps() if x != self._pending]
    if jax.process_count() > 1:
      shared = np.full(1024, -1)
      shared[: len(found)] = sorted(found)[-1024:]
      found = multihost_utils.broadcast_one_to_all(shared)
    return sorted(int(step) for step in found if step >= 0)

  def resumable(self) -> bool:
    """Returns whether there is a checkpoint to resume from.

    Raises:
      UserError: If all checkpoints are damaged; the user has to decide whether
        to start from scratch.
    """
    if self.steps():
      return True
    aside = sorted(x.name for x in self.folder.glob('*.damaged*'))
    if aside:
      raise UserError(
        f'{self.folder} holds only damaged checkpoints ({", ".join(aside)}): '
        'give another --workdir to start from scratch'
      )
    return False

  def check_room(self, abstract: TrainState) -> None:
    """Fails early if checkpoints cannot be saved.

    Warns if the disk has no room for all checkpoints that are kept.

    Raises:
      UserError: If the folder is not writable, or has no room for a checkpoint.
    """
    size = _size(abstract)
    free = self._find_room(size)
    # Old checkpoints are deleted only after the next one is complete.
    more = self._keep + 1 - min(len(self.steps()), self._keep)
    if free < more * size and jax.process_index() == 0:
      logging.warning(
        '%s has %.1f GiB left; %d more checkpoints take %.1f GiB each.',
        self.folder,
        free / 2**30,
        more,
        size / 2**30,
      )

  def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
    """Starts to save; returns once the state is copied off the device.

    Args:
      state: Finite train state.
      meta: Metadata; must be JSON serializable.

    Raises:
      FloatingPointError: If the state is not finite; nothing is written.
      UserError: If this or the previous checkpoint cannot be written.
    """
    self.wait()
    step = int(jax.device_get(state.step))
    if step in self.steps():
      return
    prints, not_finite = checksums.compute(state)
    if not_finite:
      raise FloatingPointError(
        f'{not_finite[0]} is not finite'
        + checkpoint_files.and_more(not_finite)
        + f' at step {step}, which is not saved; the newest checkpoint in '
        f'{self.folder} is from before it'
      )
    # Checked first: Orbax retries for minutes if it cannot make a folder.
    self._find_room(_size(state))
    types = checksums.describe(state)
    prints = {name: f'{types[name]} {x}' for name, x in prints.items()}
    meta = {**meta, 'fingerprints': prints}
    meta['sha256'] = files.digest(meta)
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        ),
        force=True,
      )
    except (OSError, ValueError) as e:
      raise checkpoint_files.cannot_write(self.folder, e) from e
    self._pending = step

  def _find_room(self, size: int) -> int:
    """Returns the bytes left; checks that a checkpoint can be written."""

    def look():
      probe = self.folder / '.writable'
      try:
        with files.as_os_errors(self.folder):
          probe.write_text('')
          probe.unlink()
        if files.is_remote(self.folder):
          return 2**63
        free = shutil.disk_usage(self.folder).free
      except OSError as e:
        raise checkpoint_files.cannot_write(self.folder, e) from e
      if free < size:
        raise checkpoint_files.cannot_write(
          self.folder,
          f'{free / 2**30:.2f} GiB are left, a checkpoint takes '
          f'{size / 2**30:.2f} GiB',
        )
      return free

    return checkpoint_files.together(
      look if jax.process_index() == 0 else lambda: size
    )

  def poll(self) -> int | None:
    """Returns the step saved since the last call, if any; never waits.

    Orbax reports errors only when it is waited for, at the latest at the next
    save. Call this after every step to see them early.

    Raises:
      UserError: If it could not be written.
    """
    if self._pending is None or self._manager.is_saving_in_progress():
      return None
    return self.wait()

  def wait(self) -> int | None:
    """Waits until all is on disk; returns the same as `poll`.

    Raises:
      UserError: If it could not be written.
    """
    step, self._pending = self._pending, None
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as e:  # TensorStore raises ValueError.
      self._manager.reload()
      raise checkpoint_files.cannot_write(self.folder, e) from e
    return step

  def close(self) -> None:
    """Waits for a pending save and releases resources.

    Raises:
      UserError: If the pending checkpoint could not be written.
    """
    try:
      self.wait()
    finally:
      self._manager.close()

  def restore(
    self, abstract: TrainState, step: int | None = None
  ) -> tuple[TrainState, dict[str, Any]]:
    """Restores the state and metadata of a checkpoint.

    A resumed run renames damaged checkpoints that it skips to STEP.damaged.
    An average that the checkpoint lacks starts with its parameters; one that
    `abstract` lacks is dropped.

    Args:
      abstract: Shapes, dtypes and shardings to restore to.
      step: Step of the checkpoint; the newest good one by default.

    Raises:
      UserError: If there is no good checkpoint, or it is of another model.
    """

    def wanted(names):
      found = _has_average(names)
      ema = abstract.params if found else {}
      return dataclasses.replace(abstract, ema=ema), ''

    _, state, meta = self._restore(step, wanted)
    if not abstract.ema:
      state = dataclasses.replace(state, ema={})
    elif not state.ema:
      state = restart_average(state)
    return state, meta

  def restore_params(
    self,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    step: int | None = None,
    prefix: str = '',
  ) -> tuple[int, dict[str, jax.Array]]:
    """Restores only the step and the parameters, for evaluation.

    The parameters are their average, if the checkpoint has one.

    Args:
      abstract: Shapes, dtypes and shardings to restore to.
      step: Step of the checkpoint; the newest good one by default.
      prefix: Prefix of the parameters to restore; all by default.

    Raises:
      UserError: If there is no good checkpoint, or it is of another model.
    """

    def wanted(names):
      key = 'ema' if _has_average(names) else 'params'
      part = {
        name: x for name, x in abstract.items() if name.startswith(prefix)
      }
      return {key: part}, f'{key}/{prefix}'

    step, state, _ = self._restore(step, wanted)
    (params,) = state.values()
    return step, params

  def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the newest checkpoint of any model as NumPy arrays.

    Returns:
      Nested dicts and lists with the names of `TrainState`, and the metadata.

    Raises:
      UserError: If there is no good checkpoint.
    """
    _, state, meta = self._restore(None)
    return state, meta

  def find(self, step: int | None) -> int:
    """Returns `step` if it has a checkpoint; for None, the newest step.

    Raises:
      UserError: If there is no such checkpoint.
    """
    steps = self.steps()
    if not steps:
      raise UserError(
        f'there is no checkpoint in {self.folder}; it holds none: train first, '
        'or give the right --workdir'
      )
    if step is None:
      return steps[-1]
    if step not in steps:
      raise UserError(
        f'there is no checkpoint of step {step} in {self.folder}; it holds '
        f'{", ".join(map(str, steps))}'
      )
    return step

  def _restore(
    self, step: int | None, target: checkpoint_files.Target | None = None
  ) -> tuple[int, Any, dict[str, Any]]:
    """Returns step, state and metadata; for None, of the newest good one."""
    asked, newest = step, self.find(step)
    damaged = {}
    for step in reversed(self.steps()):
      if step > newest:
        continue
      folder = self.folder / str(step)
      try:
        state, meta = checkpoint_files.load(folder, target)
      except checkpoint_files.Damaged as e:
        if asked is not None:
          raise UserError(
            f'the checkpoint {folder} is damaged ({e}): give another step, or '
            'none for the newest good one'
          ) from e
        damaged[step] = str(e)  # The exception would keep the arrays alive.
        continue
      self._pass_over(damaged, step)
      return step, state, meta
    # Keep the names: the next start must not find an empty folder.
    causes = '; '.join(f'{step}: {x}' for step, x in damaged.items())
    raise UserError(
      f'none of the checkpoints in {self.folder} can be read ({causes}): '
      'restore one from a copy, or give another --workdir'
    )

  def _pass_over(self, damaged: Mapping[int, str], good: int) -> None:
    """Logs damaged checkpoints; the run itself also renames them."""
    if not damaged:
      return

    def rename():
      for step, cause in damaged.items():
        folder = self.folder / str(step)
        action = 'passed over'
        if self._writes:
          name = f'{step}.damaged'
          while (self.folder / name).exists():
            name += '+'
          try:
            with files.as_os_errors(folder):
              folder.rename(self.folder / name)
          except OSError as e:
            raise checkpoint_files.cannot_write(self.folder, e) from e
          action = f'now {name}'
        logging.warning(
          'The checkpoint %s is damaged (%s): it is %s, step %d is taken.',
          folder,
          cause,
          action,
          good,
        )

    checkpoint_files.together(
      rename if jax.process_index() == 0 else lambda: None
    )
    self._manager.reload()


def _has_average(names: Collection[str]) -> bool:
  return any(name.startswith('ema/') for name in names)


def _size(state: TrainState) -> int:
  """Returns the approximate bytes of a checkpoint, without compression."""
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)
  )
