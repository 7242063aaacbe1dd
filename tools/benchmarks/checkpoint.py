"""Measures saving and restoring checkpoints, and how long training is blocked.

Compares the checkpoints of training with plain Orbax. Training copies the state
off the device and computes fingerprints while the loop waits, then writes in
the background; it deletes the previous checkpoint and compares what it restores
with the fingerprints. Plain Orbax writes while the loop waits, and neither
compares nor deletes.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from benchmarks.measuring import MIB, Table, Time, Unequal, alternate, timed
from xfactor.training import build as builds
from xfactor.training.resilience import checkpoints, checksums
from xfactor.training.state import TrainState


class Asynchronous:
  """The checkpoints of training."""

  def __init__(self, folder: pathlib.Path, abstract: TrainState):
    self._abstract = abstract
    # Each save deletes a checkpoint, as in training after the first few.
    self._checkpoints = checkpoints.Checkpoints(folder, keep=1)
    self._checkpoints.check_room(abstract)

  def save(self, state: TrainState) -> None:
    self._checkpoints.save(state, {})

  def wait(self) -> None:
    self._checkpoints.wait()

  def restore(self) -> TrainState:
    return self._checkpoints.restore(self._abstract)[0]

  def folder(self) -> pathlib.Path:
    """Folder of the newest checkpoint."""
    newest = self._checkpoints.find(None)
    return pathlib.Path(self._checkpoints.folder) / str(newest)

  def close(self) -> None:
    self._checkpoints.close()


class Synchronous:
  """Plain Orbax, which blocks until the checkpoint is written."""

  def __init__(self, folder: pathlib.Path, abstract: TrainState):
    self._folder, self._abstract = folder / 'state', abstract
    self._checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())

  def save(self, state: TrainState) -> None:
    self._checkpointer.save(self._folder, args=ocp.args.StandardSave(state))

  def wait(self) -> None:
    """Does nothing: `save` has already written the checkpoint."""

  def restore(self) -> TrainState:
    return self._checkpointer.restore(
      self._folder, args=ocp.args.StandardRestore(self._abstract)
    )

  def folder(self) -> pathlib.Path:
    return self._folder

  def close(self) -> None:
    self._checkpointer.close()


def make_state(build: builds.Build) -> TrainState:
  """Returns a state of noise; the zeros of new moments take no disk space."""
  rng = np.random.default_rng(0)

  def make(leaf):
    floats = np.issubdtype(leaf.dtype, np.floating)
    draw = rng.standard_normal if floats else np.zeros
    return jax.device_put(draw(leaf.shape, leaf.dtype), leaf.sharding)

  return jax.tree.map(make, build.abstract_state())


def check_states_equal(
  state: TrainState, restored: dict[str, TrainState]
) -> str:
  """Returns a line stating that all restored states are bit-identical.

  Raises:
    Unequal: If one differs from the saved state.
  """
  expected = checksums.named_leaves(state)
  for thing, other in restored.items():
    found = checksums.named_leaves(other)
    for name, leaf in expected.items():
      if name not in found or not np.array_equal(leaf, found[name]):
        raise Unequal(
          f'{name} restored by {thing!r} differs from the saved array, so '
          'their times cannot be compared'
        )
  return 'all restore the state that was saved'


def run(recipe: ConfigDict, *, repeats: int) -> list[Table]:
  """Saves and restores a recipe's train state in a temporary folder.

  Args:
    recipe: Recipe of any method.
    repeats: Number of saves and of restores of each.

  Raises:
    Unequal: If a restored state differs from the saved one.
    UserError: If the temporary folder ($TMPDIR) has too little free space.
  """
  build = builds.build(recipe, jax.devices()[:1])
  abstract, state = build.abstract_state(), make_state(build)
  size = sum(x.nbytes for x in jax.tree.leaves(state)) / MIB
  with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
    ways = {}
    for thing, make in (
      ('asynchronous', Asynchronous),
      ('synchronous', Synchronous),
    ):
      folder = pathlib.Path(name) / thing
      folder.mkdir()
      way = ways[thing] = make(folder, abstract)
      stack.enter_context(contextlib.closing(way))
    table = Table(
      f'checkpoints: a train state of {size:,.3g} MiB, into {name}', list(ways)
    )
    restored = {}
    for thing, way in ways.items():  # Also the warm-up.
      _save(way, state)
      restored[thing] = way.restore()
    print(check_states_equal(state, restored), flush=True)
    del restored
    for i, thing in enumerate(alternate(ways, repeats), start=1):
      way = ways[thing]
      step = jax.device_put(np.int32(i), build.places.step)
      stall, total = _save(way, dataclasses.replace(state, step=step))
      table.add('loop stalled, wall s', thing, stall.wall)
      table.add('until on disk, wall s', thing, total.wall)
      table.add('until on disk, CPU s', thing, total.cpu)
      table.add('written, MiB/s', thing, size / total.wall)
      with timed() as result:
        jax.block_until_ready(way.restore())
      # Read from the page cache rather than the disk.
      table.add('restore, wall s', thing, result.wall)
      table.add('restore, CPU s', thing, result.cpu)
      table.add('read, MiB/s', thing, size / result.wall)
    for thing, way in ways.items():
      table.add('on disk, MiB', thing, _size(way.folder()) / MIB)
  return [table]


def _save(
  way: Asynchronous | Synchronous, state: TrainState
) -> tuple[Time, Time]:
  """Returns the times until the loop continues and until all is on disk."""
  if isinstance(way, Synchronous):
    shutil.rmtree(way.folder(), ignore_errors=True)
  jax.block_until_ready(state)
  with timed() as total:
    with timed() as stall:
      way.save(state)
    way.wait()
  return stall, total


def _size(folder: pathlib.Path) -> int:
  return sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())
