"""Reads and writes checkpoints of the public XFactor code."""

import re
import time
from collections import Counter
from typing import Any, BinaryIO

import msgpack
import numpy as np
from etils import epath
from flax import serialization, traverse_util
from ml_collections import ConfigDict

from xfactor.errors import UserError
from xfactor.exchange import snapshot as snapshot_lib
from xfactor.exchange import xfactor_names

# File next to our checkpoints: leaves of an official one that ours lack.
REST = 'official_rest.msgpack'
_ADAM = 'opt_state/inner_opt_state/1/0'
_COUNTS = (
  'opt_state/gradient_step',
  f'{_ADAM}/count',
  'opt_state/inner_opt_state/1/2/count',
)
# Prefixes in the official tree of the arrays that ours also have.
_PREFIXES = {
  'params': 'params/',
  'mu': f'{_ADAM}/mu/',
  'nu': f'{_ADAM}/nu/',
}
_COUNTERS = ('step', 'multi_steps', 'opt_state/mini_step', *_COUNTS)
_ASIDE = {
  'counters': '|'.join(_COUNTERS),
  'gradient accumulators': 'opt_state/acc_grads/.+',
  'LPIPS weights': 'lpips_params/.+',
  'metrics': r'(train|eval)_metrics/\w+',
  'random key': 'key',
}
_METRICS = (
  'train_metrics/count',
  'train_metrics/max_grads',
  'train_metrics/max_updates',
  'train_metrics/mean_grads',
  'train_metrics/mean_updates',
  'train_metrics/train_l1_loss',
  'train_metrics/train_loss',
  'train_metrics/train_lpips_loss',
  'eval_metrics/count',
  'eval_metrics/eval_l1_loss',
  'eval_metrics/eval_loss',
  'eval_metrics/eval_lpips_loss',
)

# What clu reads next to ckpt-1.flax: the counter 1 of a
# tf.train.Checkpoint, as TensorFlow 2.21 writes it for any model. Without
# it the public scripts start from step 0 and overwrite the checkpoint.
_SAVE_COUNTER = {
  'ckpt-1.index': (
    b'\x00\x00\x06\x08\x01\x1a\x02\x08\x01\x00\x1c\r_CHECKPOINTABLE_OBJ'
    b"ECT_GRAPH\x08\x07\x12\x00 \x08(l5\xe2f\x8e\x98\x00'\x0bsave_count"
    b'er/.ATTRIBUTES/VARIABLE_VALUE\x08\t\x12\x00(\x085\x01u\xdeA\x00'
    b'\x00\x00\x00\x01\x00\x00\x00\x00ij\xc0\xa0\x00\x00\x00\x00\x01'
    b'\x00\x00\x00\x00\xc0\xf2\xa1\xb0\x00\x01\x02t\x00r\x00\x00\x00'
    b'\x00\x01\x00\x00\x00\x00\x8f\xben\x9fw\x08\x84\x01\x0e\x00\x00'
    b'\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00'
    b'\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00'
    b'\x00W\xfb\x80\x8b$uG\xdb'
  ),
  'ckpt-1.data-00000-of-00001': (
    b'\x01\x00\x00\x00\x00\x00\x00\x00g\xa1FE\x13\n\x16\n\x10\x08\x01'
    b'\x12\x0csave_counter*\x02\x08\x01\nM\x12G\n\x0eVARIABLE_VALUE\x12'
    b"\x0csave_counter\x1a'save_counter/.ATTRIBUTES/VARIABLE_VALUE*\x02"
    b'\x08\x01'
  ),
}


def read_msgpack(path: epath.Path) -> dict[str, Any]:
  """Reads a flax msgpack file as slash-joined paths to leaves."""
  try:
    tree = serialization.msgpack_restore(path.read_bytes())
    return traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep='/')
  except Exception as e:  # The parser raises anything on damaged files.
    raise UserError(
      f'{path} is damaged or incomplete ({e}): fetch it again'
    ) from e


def read_official(
  path: epath.Path, config: ConfigDict | None
) -> snapshot_lib.Snapshot:
  recipe = snapshot_lib.recipe('xfactor', config)
  if recipe.model.position_grid:
    raise UserError(
      f'{path} is of the public code, which adds no positions to tokens: '
      'give a --config with config.model.position_grid=0, not '
      f'{recipe.model.position_grid}'
    )
  rest = read_msgpack(path)
  taken = {key: {} for key in _PREFIXES}
  for name in rest:
    for key, prefix in _PREFIXES.items():
      if name.startswith(prefix):
        taken[key][name.removeprefix(prefix)] = np.asarray(rest[name])
        rest[name] = None
  with snapshot_lib.naming(path):
    model = snapshot_lib.read_xfactor(taken['params'], recipe)
    for key in ('mu', 'nu'):
      xfactor_names.check_same(taken['params'], taken[key])
    aside = _aside(rest)
    step = _updates(rest)
  arrays = len(taken['params'])
  # One after the other, so that at most one is in memory twice.
  ours = {key: xfactor_names.to_ours(taken.pop(key)) for key in _PREFIXES}
  facts = {
    'read': f'{path} (flax msgpack of the public code)',
    **snapshot_lib.sizes(model, ours['params'], arrays),
    'moments': f'mu and nu, {arrays} arrays each',
    'step': f'{step} updates, {int(rest["step"])} steps of its loop, '
    f'{int(rest["multi_steps"])} to an update',
    'kept aside': ', '.join(f'{n} {kind}' for kind, n in aside.items()),
  }
  unfinished = int(rest['opt_state/mini_step']) or any(
    np.any(x) for name, x in rest.items() if name.startswith('opt_state/acc')
  )
  if unfinished:
    facts['ignored'] = 'the gradients of an update that was not finished'
  return snapshot_lib.Snapshot(
    facts, recipe, model, step, step, **ours, rest=rest
  )


def _aside(rest: dict[str, Any]) -> Counter[str]:
  """Counts the leaves that our state lacks, by kind."""
  counts = Counter()
  for name, leaf in rest.items():
    if leaf is None or leaf is traverse_util.empty_node:
      continue
    for kind, pattern in _ASIDE.items():
      if re.fullmatch(pattern, name):
        counts[kind] += 1
        break
    else:
      raise UserError(f'{name} is unexpected')
  return counts


def _updates(rest: dict[str, Any]) -> int:
  """Returns the number of optimizer updates; checks that all counts agree."""
  for name in _COUNTERS:
    if name not in rest:
      raise UserError(f'{name} is missing')
  counts = {name: int(rest[name]) for name in _COUNTS}
  if len(set(counts.values())) > 1:
    raise UserError(f'counts of updates differ: {counts}')
  return counts[_COUNTS[0]]


def write_official(
  snapshot: snapshot_lib.Snapshot, target: epath.Path
) -> dict[str, str]:
  """Writes a checkpoint that the public code's training scripts resume from.

  A folder is what clu.checkpoint.MultihostCheckpoint restores; a single file
  is its state only.
  Leaves that our state lacks are those of the import, or else default values.
  A checkpoint that was imported and not trained further is restored bit for
  bit.
  """
  if snapshot.model.position_grid:
    raise UserError(
      f'a model with config.model.position_grid={snapshot.model.position_grid} '
      'cannot be written for the public code, which adds no positions to '
      'tokens: give --to=safetensors'
    )
  if snapshot.mu is None:
    raise UserError(
      f'the run was trained with config.optimizer.name='
      f'{snapshot.recipe.optimizer.name!r}, whose moments the public code does '
      'not have: give --to=safetensors'
    )
  theirs = {
    f'{prefix}{name}': array
    for key, prefix in _PREFIXES.items()
    for name, array in xfactor_names.to_official(getattr(snapshot, key)).items()
  }
  facts = {}
  flat = snapshot.rest
  if flat is None:
    flat = _fresh(theirs)
    facts['made up'] = (
      'zero accumulators and metrics, the key of seed 0, no LPIPS weights'
    )
  if {name for name, leaf in flat.items() if leaf is None} != theirs.keys():
    raise UserError(
      f'{REST} is of another model than the checkpoints next to it: move it '
      'away'
    )
  flat = _at_step(flat, snapshot.step) | theirs
  single = target.suffix == '.flax'
  path = target if single else target / 'ckpt-1.flax'
  snapshot_lib.clear(target)
  with snapshot_lib.whole(path) as f:
    write_msgpack(f, traverse_util.unflatten_dict(flat, sep='/'))
  if not single:
    for name, content in _SAVE_COUNTER.items():
      (target / name).write_bytes(content)
    now = time.time()
    # TensorFlow ignores checkpoints that are not newer than the last preserved.
    (target / 'checkpoint').write_text(
      'model_checkpoint_path: "ckpt-1"\n'
      'all_model_checkpoint_paths: "ckpt-1"\n'
      f'all_model_checkpoint_timestamps: {now}\n'
      f'last_preserved_timestamp: {now - 1}\n'
    )
  if snapshot.model.registers != 32:
    facts['beware'] = (
      f'for {snapshot.model.registers} registers the public PoseEnc must be '
      f'given block_size={2 * snapshot.model.registers}'
    )
  return facts | {'wrote': f'{path} (flax msgpack of the public code)'}


def _fresh(theirs: snapshot_lib.Arrays) -> dict[str, Any]:
  """Returns the rest of an official checkpoint at step 0."""
  empty, zero = traverse_util.empty_node, np.zeros((), np.int32)
  params, moments = {}, {}
  for name in theirs:
    (params if name.startswith('params/') else moments)[name] = None
  accumulators = {
    name.replace('params', 'opt_state/acc_grads', 1): theirs[name]
    for name in params
  }
  return {
    'step': zero,
    'opt_state/mini_step': zero,
    'opt_state/gradient_step': zero,
    'opt_state/inner_opt_state/0': empty,
    f'{_ADAM}/count': zero,
    **moments,
    'opt_state/inner_opt_state/1/1/inner_state': empty,
    'opt_state/inner_opt_state/1/2/count': zero,
    **snapshot_lib.zeros(accumulators),
    'opt_state/skip_state': empty,
    **params,
    'lpips_params': empty,
    'key': np.zeros(2, np.uint32),
    'multi_steps': np.ones((), np.int32),
    **dict.fromkeys(_METRICS, np.zeros((), np.float32)),
  }


def _at_step(rest: dict[str, Any], step: int) -> dict[str, Any]:
  """Returns the rest after `step` updates; unchanged if none were added."""
  done = step - int(rest['opt_state/gradient_step'])
  if not done:
    return rest
  mini_step = int(rest['opt_state/mini_step'])
  micro = int(rest['step']) - mini_step + done * int(rest['multi_steps'])
  counters = {'step': micro, 'opt_state/mini_step': 0}
  counters |= dict.fromkeys(_COUNTS, step)
  accumulators = {
    name: x for name, x in rest.items() if name.startswith('opt_state/acc')
  }
  return (
    rest
    | {name: np.asarray(n, np.int32) for name, n in counters.items()}
    | snapshot_lib.zeros(accumulators)
  )


def write_msgpack(file: BinaryIO, tree: Any) -> None:
  """Writes like `flax.serialization.msgpack_serialize`, array by array."""
  if isinstance(tree, dict):
    file.write(msgpack.Packer().pack_map_header(len(tree)))
    for key, value in tree.items():
      file.write(msgpack.packb(key))
      write_msgpack(file, value)
  else:
    file.write(serialization.msgpack_serialize(tree, in_place=True))
