"""Parses a data set's command-line options, the fields of its source."""

import dataclasses
import importlib
import types
import typing
from collections.abc import Sequence
from typing import Any

from xfactor.data import sources
from xfactor.errors import UserError


def _source_class(dataset: str) -> type[sources.Source]:
  return importlib.import_module(f'{sources.__name__}.{dataset}').Source


def names(dataset: str) -> list[str]:
  """Returns the names of a source's options."""
  return [f.name for f in dataclasses.fields(_source_class(dataset))]


def describe(dataset: str) -> str:
  """Lists the options of a source, one per line, with types and defaults."""
  cls = _source_class(dataset)
  hints = _hints(cls)
  lines = [f'{dataset}: {cls.description}']
  for field in dataclasses.fields(cls):
    kinds = ' or '.join(_kind_name(kind) for kind in hints[field.name])
    required = field.default is dataclasses.MISSING
    default = 'required' if required else f'default {field.default}'
    lines.append(f'  --{field.name}: {kinds}, {default}')
  return '\n'.join(lines)


def parse(dataset: str, args: Sequence[str]) -> dict[str, Any]:
  """Parses `--size=256 --fps 10 --shuffle --nodepth` for a source's fields.

  Values are converted to the types of the annotations.

  Args:
    dataset: Name of the source.
    args: Command-line arguments.

  Returns:
    Keyword arguments for `sources.make`.

  Raises:
    UserError: If the source has no such option or the value does not fit.
  """
  hints = _hints(_source_class(dataset))
  out: dict[str, Any] = {}
  queue = list(args)
  while queue:
    arg = queue.pop(0)
    if not arg.startswith('--'):
      raise UserError(f'unexpected argument {arg!r}; options are --KEY=VALUE')
    key, equals, value = arg[2:].partition('=')
    if key not in hints and key[:2] == 'no' and bool in hints.get(key[2:], ()):
      key, equals, value = key[2:], '=', 'false'
    if key not in hints:
      raise UserError(
        f'the {dataset} source has no option --{key}; it takes '
        + ', '.join(f'--{k}' for k in sorted(hints))
      )
    if not equals and bool in hints[key]:
      value = 'true'
    elif not equals:
      if not queue or queue[0].startswith('--'):
        raise UserError(f'--{key} needs a value')
      value = queue.pop(0)
    out[key] = _parse(key, value, hints[key])
  return out


def _hints(cls: type[Any]) -> dict[str, tuple[Any, ...]]:
  """Returns the types that each field accepts."""
  hints = typing.get_type_hints(cls)
  out = {}
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    out[field.name] = typing.get_args(hint) if union else (hint,)
  return out


def _kind_name(kind: Any) -> str:
  if kind is type(None):
    return 'none'
  return kind.__name__ if isinstance(kind, type) else str(kind)


def _parse(key: str, value: str, kinds: Sequence[Any]) -> Any:
  """Converts a value to the first of the types that accepts it."""
  for kind in kinds:
    try:
      if kind is type(None):
        if value.lower() in ('', 'none'):
          return None
      elif kind is bool:
        return {'true': True, '1': True, 'false': False, '0': False}[
          value.lower()
        ]
      elif typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[:1]
        return tuple(_parse(key, v, inner) for v in value.split(','))
      else:
        return kind(value)
    except (KeyError, ValueError):
      continue
  names = ' or '.join(map(_kind_name, kinds))
  raise UserError(f'--{key} takes {names}, not {value!r}')
