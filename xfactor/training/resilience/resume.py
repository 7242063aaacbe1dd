"""Checks that a resumed run has the recipe and data of its checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from xfactor import config as configs
from xfactor.data.pipeline import fingerprint
from xfactor.errors import UserError
from xfactor.training.telemetry import writers

# Settings that change the training. The data, seed included, are compared by
# their fingerprint; other settings affect only place, speed and duration.
_MEANING = ('method', 'model.', 'objective.', 'optimizer.')
_SPEED = ('model.attention', 'model.remat')
_END = ('optimizer.decay_steps',)  # As `train.steps`, only the end of a run.


def check(
  saved: Mapping[str, Any],
  found: Mapping[str, Any],
  origin: str,
  *,
  allow: bool,
) -> list[str]:
  """Compares a checkpoint's recipe and data with those of the resumed run.

  Args:
    saved: Metadata of the checkpoint: 'config', the recipe, and 'data', the
      `Pipeline.fingerprint`.
    found: Metadata of the resumed run.
    origin: Name of the checkpoint, for the message.
    allow: Whether to only log changes that affect the training.

  Returns:
    The other changes, each as `NAME: OLD -> NEW`.

  Raises:
    UserError: If changes affect the training; lists names and both values.
  """
  matter, rest = [], []
  for name, old, new in _changes(saved['config'], found['config']):
    serious = name.startswith(_MEANING) and name not in (*_SPEED, *_END)
    (matter if serious else rest).append(f'{name}: {old} -> {new}')
  if not saved['data']['parts']:
    matter.append('it was imported, and its data are not known')
  else:
    matter += fingerprint.differences(saved['data'], found['data'])
  if not matter:
    return rest
  changes = '; '.join(matter)
  if not allow:
    raise UserError(
      f'the recipe or its data are not those that {origin} was trained on '
      f'({changes}): undo the change, give another --workdir, or accept '
      'it with --config.allow_change=true'
    )
  logging.warning('Resuming from %s with changes: %s', origin, changes)
  return rest


def is_evaluated(workdir: epath.PathLike, step: int) -> bool:
  """Returns whether a step has held-out scores; the same on all processes."""
  found = jax.process_index() == 0 and writers.has_evaluation(workdir, step)
  if jax.process_count() > 1:
    found = multihost_utils.broadcast_one_to_all(np.asarray(found))
  return bool(found)


def _changes(
  saved: Mapping[str, Any], found: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
  """Returns settings that differ; missing old ones have their defaults."""
  saved = configs.upgraded(saved)
  defaults = configs.base(found['method'])
  defaults = json.loads(defaults.to_json_best_effort())
  saved = _flat(defaults) | _flat(saved)
  return [
    (name, saved.get(name, 'absent'), new)
    for name, new in _flat(found).items()
    if name != 'allow_change' and saved.get(name, 'absent') != new
  ]


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  out = {}
  for key, value in config.items():
    if isinstance(value, dict):
      out |= _flat(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out
