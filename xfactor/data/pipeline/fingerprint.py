"""Describes a pipeline's data and compares two descriptions."""

import dataclasses
from typing import Any


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Returns the differences of two fingerprints as `NAME: OLD -> NEW`."""
  old, new = _flat(old), _flat(new)
  return [
    f'{key}: {_short(old.get(key))} -> {_short(new.get(key))}'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]


def _flat(fingerprint: dict[str, Any]) -> dict[str, Any]:
  """Flattens a fingerprint to dotted names, with parts by their names."""
  fingerprint = {k: v for k, v in fingerprint.items() if k != 'sha256'}
  parts = fingerprint.pop('parts')
  # The order of the parts affects the elements as well.
  out = fingerprint | {'parts': [part['name'] for part in parts]}
  for part in parts:
    for key, value in part.items():
      nested = value if isinstance(value, dict) else {}
      out |= {f'{part["name"]}.{key}.{k}': v for k, v in nested.items()}
      if not nested:
        out[f'{part["name"]}.{key}'] = value
  return out


def _short(value: Any) -> str:
  """Formats a setting for a message; shortens digests."""
  if isinstance(value, str) and len(value) == 64:
    return value[:8]
  return 'none' if value is None else str(value)


def describe(views: Any) -> dict[str, Any]:
  """Returns the settings of a frame sampler as JSON values."""
  settings = dataclasses.asdict(views)
  return {
    'type': type(views).__name__,
    **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
  }
