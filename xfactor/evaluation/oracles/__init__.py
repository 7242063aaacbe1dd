"""Pose oracles, which recover the camera path from pictures.

To add one, write `xfactor/evaluation/oracles/NAME.py` (or a package) with a
class `Oracle` whose arguments are its options, and add NAME to `NAMES`. Scores
of different oracles are not comparable.
"""

import ast
import importlib
import inspect
import os
from collections.abc import Sequence
from typing import Any

from xfactor.errors import UserError
from xfactor.evaluation.oracles import base as oracles_base

NAMES = (
  'none',
  'file',
  'known_scene',
  'rerender',
  'learned',
  'colmap',
  'vggt',
)


class SceneOracle(oracles_base.PoseOracle):
  """Base of oracles with slow per-scene preparation: sorts clips by scene."""

  def batch(
    self, clips: Sequence[tuple[oracles_base.Images, oracles_base.Scene | None]]
  ) -> list[oracles_base.PoseResult]:
    def row(i: int) -> int:
      scene = clips[i][1]
      return -1 if scene is None else int(scene.clip)

    out = {i: self(*clips[i]) for i in sorted(range(len(clips)), key=row)}
    return [out[i] for i in range(len(clips))]


def make(name: str, **options: Any) -> oracles_base.PoseOracle:
  """Returns the oracle called `name` with the given options.

  Raises:
    UserError: If there is no such oracle or option, or a requirement of the
      oracle is missing.
  """
  if name not in NAMES:
    raise UserError(
      f'there is no pose oracle {name!r}; choose one of {", ".join(NAMES)}'
    )
  cls = importlib.import_module(f'{__name__}.{name}').Oracle
  parameters = inspect.signature(cls).parameters
  for key in options:
    if key not in parameters:
      raise UserError(
        f'the {name} oracle has no option {key!r}; it takes '
        f'{", ".join(sorted(parameters)) or "none"}'
      )
  for key, parameter in parameters.items():
    if parameter.default is parameter.empty and key not in options:
      raise UserError(f'the {name} oracle needs the option {key!r}')
  return cls(**options)


def parse_options(text: str) -> dict[str, Any]:
  """Parses `weights=model.pt,size=518`, including numbers, booleans and None.

  Raises:
    UserError: If a part is not KEY=VALUE.
  """
  options = {}
  for part in filter(None, text.split(',')):
    key, equals, value = part.partition('=')
    if not equals:
      raise UserError(f'give options of oracles as KEY=VALUE, not {part!r}')
    try:
      options[key.strip()] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      options[key.strip()] = os.path.expanduser(value)
  return options
