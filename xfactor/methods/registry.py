"""Methods by name; the modules of a method are imported on first use."""

import functools
import importlib

from xfactor.errors import UserError
from xfactor.methods import base

# Folder and class of each method.
_CLASSES = {
  'xfactor': ('xfactor', 'XFactor'),
  'srt': ('srt', 'SRT'),
  'rust': ('autoencoding', 'Rust'),
  'rayzer': ('autoencoding', 'RayZer'),
}
NAMES = tuple(_CLASSES)


@functools.cache
def get(name: str) -> base.Method:
  """Returns the method called `name`.

  Raises:
    UserError: If there is no such method.
  """
  if name not in _CLASSES:
    raise UserError(
      f'config.method={name!r} is unknown; choose one of {", ".join(NAMES)}'
    )
  folder, cls = _CLASSES[name]
  module = importlib.import_module(f'xfactor.methods.{folder}.method')
  return getattr(module, cls)()
