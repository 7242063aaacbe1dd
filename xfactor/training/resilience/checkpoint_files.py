"""Reads and verifies the files of a checkpoint."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from xfactor.data import files
from xfactor.errors import UserError
from xfactor.training.resilience import checksums

T = TypeVar('T')

# From the names of the saved leaves to the tree to read: shapes, dtypes and
# shardings, and the prefix that names of the saved leaves in it have.
Target = Callable[[Collection[str]], tuple[Any, str]]

# Transient storage errors: do not treat the checkpoint as damaged.
_PASSING = (
  'UNAVAILABLE',
  'RESOURCE_EXHAUSTED',
  'DEADLINE_EXCEEDED',
  'UNAUTHENTICATED',
)


class Damaged(Exception):
  """A checkpoint that differs from what was saved, with the reason."""


def load(
  folder: epath.Path, target: Target | None
) -> tuple[Any, dict[str, Any]]:
  """Reads and verifies a checkpoint; without a target, reads all of it.

  Raises:
    Damaged: On all processes, if the checkpoint differs from what was saved.
    UserError: If it is of another model, or is not readable.
  """

  def read():
    with _judging_errors(folder):
      meta, saved = _read_meta(folder)
      return _read_state(folder, target, saved), meta, saved

  state, meta, saved = together(read)
  if saved is None:
    if jax.process_index() == 0:
      logging.warning(
        'The checkpoint %s is not verified: an older version saved it '
        'without fingerprints.',
        folder,
      )
    return state, meta
  found, _ = checksums.compute(state)
  changed = [name for name, x in found.items() if x != saved[name].split()[1]]
  if changed:
    raise Damaged(f'{changed[0]} is not what was saved{and_more(changed)}')
  return state, meta


def _read_meta(
  folder: epath.Path,
) -> tuple[dict[str, Any], dict[str, str] | None]:
  """Returns the metadata, and each leaf's type and fingerprint if stored."""
  meta = ocp.JsonCheckpointHandler().restore(folder / 'meta')
  digest = meta.pop('sha256', None)
  if digest != (files.digest(meta) if 'fingerprints' in meta else None):
    raise Damaged('its metadata are not what was saved')
  return meta, meta.pop('fingerprints', None)


def _read_state(
  folder: epath.Path,
  target: Target | None,
  saved: Mapping[str, str] | None,
) -> Any:
  """Returns the part of the state that `target` describes; None: all."""
  if target is None or saved is None:
    tree = _read_tree(folder)
  theirs = (
    checksums.describe(tree)
    if saved is None
    else {name: text.split()[0] for name, text in saved.items()}
  )
  if target is None:
    prefix = ''
    ours = jax.tree.map(
      lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree
    )
  else:
    ours, prefix = target(theirs)
  differences = _differences(
    checksums.describe(ours),
    {name: x for name, x in theirs.items() if name.startswith(prefix)},
  )
  if differences and target is None:
    raise Damaged(differences[0])
  if differences:
    raise UserError(
      f'{folder} holds another model than config.model describes: '
      f'{differences[0]}{and_more(differences)}; give the --config it was '
      'trained with, or another --workdir'
    )
  return ocp.PyTreeCheckpointHandler().restore(
    folder / 'state',
    args=ocp.args.PyTreeRestore(
      ours,
      restore_args=ocp.checkpoint_utils.construct_restore_args(ours),
      partial_restore=True,
    ),
  )


def _read_tree(folder: epath.Path) -> Any:
  """Returns shapes and dtypes as Orbax stores them: nested dicts and lists."""
  return ocp.PyTreeCheckpointHandler().metadata(folder / 'state').tree


def _differences(
  ours: Mapping[str, str], theirs: Mapping[str, str]
) -> list[str]:
  return [
    f'{name} is {theirs.get(name, "absent")} there and '
    f'{ours.get(name, "absent")} here'
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]


@contextlib.contextmanager
def _judging_errors(folder: epath.Path) -> Iterator[None]:
  """Converts errors of Orbax: damage, missing permission, or transient."""
  try:
    yield
  except (UserError, Damaged):
    raise
  except Exception as e:
    root = e
    while root.__cause__ is not None:  # Orbax wraps TensorStore errors.
      root = root.__cause__
    cause = str(root).strip().split('\n')[0][:200]
    if isinstance(root, PermissionError) or 'PERMISSION_DENIED' in cause:
      raise UserError(
        f'the checkpoint {folder} may not be read ({cause}): make it readable'
      ) from e
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    if isinstance(root, OSError):
      passing = not isinstance(root, missing)
    else:
      passing = isinstance(root, (MemoryError, jax.errors.JaxRuntimeError))
    if passing or any(code in cause for code in _PASSING):
      raise
    raise Damaged(f'{type(root).__name__}: {cause}') from e


def together(work: Callable[[], T]) -> T:
  """Runs `work` on all processes; if it fails on one, it fails on all."""
  result = error = None
  try:
    result = work()
  except Exception as e:
    error = e
  if jax.process_count() > 1:
    kinds = type(None), Damaged, Exception
    kind = next(i for i, x in enumerate(kinds) if isinstance(error, x))
    worst = int(multihost_utils.process_allgather(np.asarray(kind)).max())
    if worst > kind:
      message = 'another process failed to access checkpoints; see its log'
      error = (Damaged if worst == 1 else UserError)(message)
  if error is not None:
    raise error
  return result


def and_more(names: list[str]) -> str:
  return f' (and {len(names) - 1} more)' if len(names) > 1 else ''


def cannot_write(folder: epath.Path, cause: Exception | str) -> Exception:
  """Returns the error of a write that failed; a supervisor retries some."""
  message = f'cannot write checkpoints to {folder} ({cause})'
  if files.is_remote(folder) and not files.is_refusal(cause):
    return ConnectionError(f'{message}; run the same command again')
  return UserError(
    f'{message}; free some space or make it writable, then run the same '
    'command again'
  )
