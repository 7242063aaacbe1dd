"""Checkpoints: Orbax, asynchronous, restored onto whatever mesh is there.

The same command starts and resumes. Nothing is ever started from scratch
where a checkpoint was expected.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from xfactor.errors import UserError
from xfactor.training.state import TrainState


def warm_start(
  params: dict[str, jax.Array],
  abstract: Mapping[str, jax.ShapeDtypeStruct],
  workdir: epath.PathLike,
  networks: str,
) -> tuple[dict[str, jax.Array], str]:
  """New parameters with those of another run in their place.

  Args:
    params: Newly initialised.
    abstract: Their shapes, dtypes and shardings.
    workdir: Of the other run, whose newest checkpoint is taken.
    networks: 'both', or the name of one.

  Returns:
    The parameters, and what was loaded in words.

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
  """The checkpoints of one run, under `WORKDIR/checkpoints/STEP`."""

  def __init__(
    self, workdir: epath.PathLike, *, keep: int = 3, create: bool = True
  ):
    self.folder = epath.Path(workdir).resolve() / 'checkpoints'
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True, create=create
      ),
    )

  def steps(self) -> list[int]:
    """Steps with a committed checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
    """Starts to save; returns once the state is copied off the device."""
    try:
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          meta=ocp.args.JsonSave(dict(meta)),
        ),
        force=True,
      )
    except (OSError, ValueError) as e:
      raise _cannot_write(self.folder, e) from e

  def restore(
    self, abstract: TrainState, step: int | None = None
  ) -> tuple[TrainState, dict[str, Any]]:
    """The state at `step` (default: the newest), and its metadata.

    Args:
      abstract: Shapes, dtypes and shardings to restore to.
      step: Which checkpoint.

    Raises:
      UserError: If there is no such checkpoint, or it is of another model.
    """
    step = self.find(step)
    _check_same_model(self.folder / str(step), abstract, self._shapes(step))
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          meta=ocp.args.JsonRestore(),
        ),
      )
    except (ValueError, KeyError, OSError) as e:
      raise _unreadable(self.folder / str(step), e) from e
    return restored.state, restored.meta

  def restore_params(
    self,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    step: int | None = None,
    prefix: str = '',
  ) -> tuple[int, dict[str, jax.Array]]:
    """The step and the parameters alone: all that evaluation needs.

    Args:
      abstract: Shapes, dtypes and shardings to restore to.
      step: Which checkpoint; the newest by default.
      prefix: Of the names of the parameters wanted; all by default.

    Raises:
      UserError: If there is no such checkpoint, or it is of another model.
    """
    step = self.find(step)
    ours, theirs = (
      {name: x for name, x in params.items() if name.startswith(prefix)}
      for params in (abstract, self._shapes(step)['params'])
    )
    _check_same_model(self.folder / str(step), ours, theirs)
    return step, self._read(step, {'params': ours})['params']

  def _read(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint's state that `target` describes."""
    folder = self.folder / str(step)
    try:
      with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(
          folder / 'state',
          args=ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
          ),
        )
    except (ValueError, KeyError, OSError) as e:
      raise _unreadable(folder, e) from e

  def wait(self) -> None:
    """Returns when all is on disk; raises what went wrong there."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as e:  # TensorStore's are ValueErrors.
      raise _cannot_write(self.folder, e) from e

  def close(self) -> None:
    self._manager.close()

  def find(self, step: int | None) -> int:
    """The step of a checkpoint, the newest for None.

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

  def _shapes(self, step: int) -> dict[str, Any]:
    folder = self.folder / str(step)
    try:
      with ocp.PyTreeCheckpointer() as reader, _errors_only():
        return reader.metadata(folder / 'state').item_metadata.tree
    except AttributeError as e:  # Orbax finds no metadata and returns None.
      raise _unreadable(folder, ValueError('no metadata')) from e
    except (ValueError, KeyError, OSError) as e:
      raise _unreadable(folder, e) from e

  def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest checkpoint as NumPy arrays, whatever its model, and its meta.

    Returns:
      Nested dicts and lists with the names of `TrainState`, and the metadata.

    Raises:
      UserError: If there is no checkpoint, or it is damaged.
    """
    step = self.find(None)
    target = jax.tree.map(
      lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
      self._shapes(step),
    )
    state = self._read(step, target)
    try:
      meta = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      ).meta
    except (ValueError, KeyError, OSError) as e:
      raise _unreadable(self.folder / str(step), e) from e
    return state, meta


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
  """Mutes a warning of Orbax's that is about nothing."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _check_same_model(folder: epath.Path, ours: Any, theirs: Any) -> None:
  """Names the first leaves that differ between a model and a checkpoint."""
  ours, theirs = _flat_shapes(ours), _flat_shapes(theirs)
  differences = [
    f'{name} is {theirs.get(name, "absent")} there and '
    f'{ours.get(name, "absent")} here'
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]
  if differences:
    more = len(differences) - 1
    raise UserError(
      f'{folder} holds another model than config.model describes: '
      f'{differences[0]}'
      + (f' (and {more} more)' if more else '')
      + '; give the --config it was trained with, or another --workdir'
    )


def _flat_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  def is_leaf(x):
    return hasattr(x, 'shape')

  flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(x.shape)
    for path, x in flat
    if is_leaf(x)
  }


def _unreadable(folder: epath.Path, cause: Exception) -> UserError:
  first_line = str(cause).strip().split('\n')[0][:200]
  return UserError(
    f'the checkpoint {folder} cannot be read ({first_line}); move it away to '
    'go on from the one before'
  )


def _cannot_write(folder: epath.Path, cause: Exception) -> UserError:
  return UserError(
    f'cannot write checkpoints to {folder} ({cause}); free some space or '
    'make it writable, then run the same command again'
  )
