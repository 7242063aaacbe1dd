"""Minimum values of settings, stored in the metadata of their fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from xfactor.errors import UserError


def at_least(default: Any, least: float) -> Any:
  """Returns a dataclass field with a default and a minimum value."""
  return dataclasses.field(default=default, metadata={'least': least})


def of(cls: type) -> dict[str, float]:
  """Returns the minimum values of a dataclass's fields, by field."""
  return {
    field.name: field.metadata['least']
    for field in dataclasses.fields(cls)
    if 'least' in field.metadata
  }


def check(
  values: ConfigDict, least: Mapping[str, float], prefix: str = ''
) -> None:
  """Checks the values of a recipe or of a section of it.

  Args:
    values: The recipe or the section; None values and missing keys pass.
    least: Minimum values by key.
    prefix: Name of the section and a dot.

  Raises:
    UserError: If a value is below its minimum.
  """
  for key, limit in least.items():
    value = values.get(key)
    if value is not None and value < limit:
      raise UserError(f'config.{prefix}{key}={value} must be at least {limit}')
