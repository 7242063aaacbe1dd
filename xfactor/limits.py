"""Ranges of settings, stored in the metadata of their fields."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from xfactor.errors import UserError

Range = tuple[float, float]  # Smallest and largest value, both included.


def at_least(default: Any, least: float) -> Any:
  """Returns a dataclass field with a default and a minimum value."""
  return between(default, least, math.inf)


def between(default: Any, least: float, most: float) -> Any:
  """Returns a dataclass field with a default and a range of values."""
  return dataclasses.field(default=default, metadata={'range': (least, most)})


def of(cls: type) -> dict[str, Range]:
  """Returns the ranges of a dataclass's fields, by field."""
  return {
    field.name: field.metadata['range']
    for field in dataclasses.fields(cls)
    if 'range' in field.metadata
  }


def check(
  values: ConfigDict, ranges: Mapping[str, Range], prefix: str = ''
) -> None:
  """Checks the values of a recipe or of a section of it.

  Args:
    values: The recipe or the section; None values and missing keys pass.
    ranges: Smallest and largest values by key.
    prefix: Name of the section and a dot.

  Raises:
    UserError: If a value is out of its range.
  """
  for key, (least, most) in ranges.items():
    value = values.get(key)
    if value is None or least <= value <= most:
      continue
    if most == math.inf:
      raise UserError(f'config.{prefix}{key}={value} must be at least {least}')
    raise UserError(
      f'config.{prefix}{key}={value} must be between {least} and {most}'
    )


def check_finite(values: ConfigDict, prefix: str = '') -> None:
  """Raises UserError if a number in a recipe is infinite or not a number."""
  for key, value in values.items():
    if isinstance(value, ConfigDict):
      check_finite(value, f'{prefix}{key}.')
      continue
    for number in value if isinstance(value, tuple | list) else (value,):
      if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f'config.{prefix}{key}={value} must be a finite number')
