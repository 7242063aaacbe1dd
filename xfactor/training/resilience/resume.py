"""Is what goes on what was stopped: the recipe and its data, then and now."""

import json
from collections.abc import Mapping
from typing import Any

from absl import logging

from xfactor import config as configs
from xfactor.data.pipeline import fingerprint
from xfactor.errors import UserError

# Settings of another training. The data, seed included, are compared by what
# they are; all else says where, how fast and how long.
_MEANING = ('method', 'model.', 'objective.', 'optimizer.')
_SPEED = ('model.attention', 'model.remat')


def check(
  saved: Mapping[str, Any],
  found: Mapping[str, Any],
  origin: str,
  *,
  allow: bool,
) -> list[str]:
  """Compares a checkpoint's recipe and data with those it would go on with.

  Args:
    saved: The checkpoint's metadata: 'config', the recipe, and 'data', the
      `Pipeline.fingerprint`.
    found: The same of now.
    origin: The checkpoint, for the message.
    allow: Whether differences that matter are only logged.

  Returns:
    What else changed, each as `NAME: OLD -> NEW`.

  Raises:
    UserError: If something that matters changed; names what, and both values.
  """
  matter, rest = [], []
  for name, old, new in _changes(saved['config'], found['config']):
    serious = name.startswith(_MEANING) and name not in _SPEED
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
      f'({changes}): undo the change, give another --workdir, or go on with '
      'the new by --config.allow_change=true'
    )
  logging.warning('Going on from %s with changes: %s', origin, changes)
  return rest


def _changes(
  saved: Mapping[str, Any], found: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
  """Settings that differ; those that an older version lacked are defaults."""
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
