"""Reads and writes safetensors files with the names of the public models."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from ml_collections import ConfigDict

from xfactor.errors import UserError
from xfactor.exchange import snapshot as snapshot_lib
from xfactor.exchange import srt_names, xfactor_names

TO_PUBLIC = {'xfactor': xfactor_names.to_official, 'srt': srt_names.to_public}


def read_safetensors(
  path: epath.Path, config: ConfigDict | None
) -> snapshot_lib.Snapshot:
  data = path.read_bytes()
  dotted = _load(path, data)
  if any(name.startswith(('encoder.', 'decoder.')) for name in dotted):
    recipe = snapshot_lib.recipe('srt', config)
    if config is None:
      put_model(recipe, _written_model(data))
    named = srt_names.named_parameters(dotted)
    with snapshot_lib.naming(path, 'srt'):
      model = srt_names.read_config(named, **recipe.model)
    told = snapshot_lib.complete(recipe, model, config)
    params = srt_names.to_ours(named)
  else:
    recipe = snapshot_lib.recipe('xfactor', config)
    written = _written_model(data)
    put_model(
      recipe,
      {k: written[k] for k in snapshot_lib.NOT_IN_ARRAYS if k in written},
    )
    named = _with_slashes(dotted)
    with snapshot_lib.naming(path):
      model = snapshot_lib.read_xfactor(named, recipe)
    params, told = xfactor_names.to_ours(named), {}
  facts = {
    'read': f'{path} (safetensors)',
    **snapshot_lib.sizes(model, params, len(named)),
    'moments': 'none in the file: zero, and the step is 0',
    **told,
  }
  return snapshot_lib.Snapshot(
    facts,
    recipe,
    model,
    0,
    0,
    params,
    snapshot_lib.zeros(params),
    snapshot_lib.zeros(params),
    rest=None,
  )


def read_params(path: epath.Path, method: str) -> snapshot_lib.Arrays:
  """Reads what `write_params` wrote for a method, by our names.

  Raises:
    UserError: If the file is damaged or of another method.
  """
  dotted = _load(path, path.read_bytes())
  if method not in TO_PUBLIC:
    return _with_slashes(dotted)
  with snapshot_lib.naming(path, method):
    if method == 'srt':
      return srt_names.to_ours(srt_names.named_parameters(dotted))
    return xfactor_names.to_ours(_with_slashes(dotted))


def _with_slashes(dotted: snapshot_lib.Arrays) -> snapshot_lib.Arrays:
  return {name.replace('.', '/'): array for name, array in dotted.items()}


def _load(path: epath.Path, data: bytes) -> snapshot_lib.Arrays:
  try:
    return safetensors.numpy.load(data)
  except KeyError as e:  # A dtype that NumPy lacks.
    raise UserError(
      f'{path} holds arrays of type {e.args[0]}: save them as F32'
    ) from e
  except Exception as e:  # The parser raises anything on damaged files.
    raise UserError(
      f'{path} is damaged or incomplete ({e}): fetch it again'
    ) from e


def _written_model(data: bytes) -> dict[str, Any]:
  """Returns the model that `write_safetensors` put into the header, or {}."""
  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
  return json.loads(header.get('__metadata__', {}).get('model', '{}'))


def put_model(recipe: ConfigDict, model: Mapping[str, Any]) -> None:
  """Sets model settings, except those of other versions."""
  known = {key: value for key, value in model.items() if key in recipe.model}
  recipe.model.update(known)


def write_safetensors(
  snapshot: snapshot_lib.Snapshot, path: epath.Path
) -> dict[str, str]:
  """Writes the average of the parameters, if there is one."""
  params = snapshot.params if snapshot.ema is None else snapshot.ema
  write_params(
    path, snapshot.recipe.method, snapshot.model, snapshot.step, params
  )
  what = 'parameters only' if snapshot.ema is None else 'average only'
  return {'wrote': f'{path} (safetensors, {what})'}


def write_params(
  path: epath.Path,
  method: str,
  model: Any,
  step: int,
  params: snapshot_lib.Arrays,
) -> None:
  """Writes parameters by the names of the public code, if there is one."""
  theirs = TO_PUBLIC.get(method, dict)(params)
  if method == 'srt':
    theirs = srt_names.state_dict(theirs)
  data = safetensors.numpy.save(
    {
      name.replace('/', '.'): np.ascontiguousarray(array)
      for name, array in theirs.items()
    },
    {
      'model': json.dumps(dataclasses.asdict(model)),
      'step': str(step),
    },
  )
  with snapshot_lib.whole(path) as f:
    f.write(data)
