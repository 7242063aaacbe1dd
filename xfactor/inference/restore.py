"""Restores a trained model from a checkpoint, which includes the recipe."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.data import files
from xfactor.errors import UserError
from xfactor.nn import sharding
from xfactor.nn.functional import Params
from xfactor.training import build as builds
from xfactor.training.resilience import checkpoints as checkpoints_lib


@dataclasses.dataclass(frozen=True)
class Restored:
  """Parameters of a checkpoint on the local devices, and their model.

  Attributes:
    config: Recipe of the training run, with the defaults of this version.
    step: Number of training updates.
    build: Networks and objective built from the recipe.
    params: Parameters of the networks.
    workdir: Folder of the run; None if they were not read from one.
  """

  config: ConfigDict
  step: int
  build: builds.Build
  params: Params
  workdir: epath.Path | None = None

  @property
  def window(self) -> int | None:
    """Longest window in training, in frames; None if unknown."""
    ends = [part.end for part in self.config.data.mix.values()]
    return max(ends, default=None)


def restore(
  path: epath.PathLike,
  step: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Restored:
  """Restores a model for inference.

  Args:
    path: A run's workdir, or one checkpoint of it, WORKDIR/checkpoints/STEP.
    step: Step of the checkpoint in a workdir; the newest if None.
    devices: Devices to use; all if None. The mesh is that of the recipe; if
      it does not fit their number, each device holds all parameters.

  Raises:
    UserError: If there is no such checkpoint, it cannot be read, or it does not
      match the model of its recipe.
  """
  workdir, step = _locate(files.run_folder(path), step)
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    step = checkpoints.find(step)
    config = recipe(checkpoints.folder / str(step))
    build = _build(config, jax.devices() if devices is None else devices)
    params = build.abstract_state().params
    step, params = checkpoints.restore_params(params, step)
  return Restored(config, step, build, params, workdir)


def place(
  config: ConfigDict,
  step: int,
  params: Mapping[str, np.ndarray],
  workdir: epath.Path,
  devices: Sequence[jax.Device] | None = None,
) -> Restored:
  """Builds a model around parameters that are not of a checkpoint.

  Args:
    config: Recipe.
    step: Number of training updates.
    params: Parameters by path.
    workdir: Folder that they were read from.
    devices: As in `restore`.

  Raises:
    UserError: If the parameters are not those of the recipe's model.
  """
  build = _build(config, jax.devices() if devices is None else devices)
  shapes = build.functional.shapes
  for name in sorted(shapes.keys() | params.keys()):
    theirs, ours = (
      getattr(x.get(name), 'shape', 'absent') for x in (params, shapes)
    )
    if theirs != ours:
      raise UserError(
        f'{workdir} holds another model than its recipe describes: {name} is '
        f'{theirs} there and {ours} here; fetch it again'
      )
  params = jax.device_put(dict(params), build.places.params)
  return Restored(config, step, build, params, workdir)


def _locate(
  path: epath.Path, step: int | None
) -> tuple[epath.Path, int | None]:
  """Returns the workdir and the step that a path refers to."""
  if path.name.isdigit() and path.parent.name == 'checkpoints':
    if step not in (None, int(path.name)):
      raise UserError(
        f'{path} is not the checkpoint of step {step}; pass either the '
        'step or its folder'
      )
    return path.parent.parent, int(path.name)
  if not (path / 'checkpoints').exists():
    raise UserError(
      f'{path} is neither a run (it has no folder checkpoints) nor a '
      'checkpoint (WORKDIR/checkpoints/STEP); pass one of them'
    )
  return path, step


def recipe(folder: epath.Path) -> ConfigDict:
  """Reads the recipe from the metadata of a checkpoint, WORKDIR/checkpoints/N.

  Raises:
    UserError: If there is none.
  """
  return _recipe(folder / 'meta' / 'metadata')[0]


def published_recipe(file: epath.Path) -> tuple[ConfigDict, int]:
  """Reads recipe and step of a published model from its config.json.

  Raises:
    UserError: If there are none.
  """
  config, content = _recipe(file)
  return config, int(content.get('step', 0))


def _recipe(file: epath.Path) -> tuple[ConfigDict, dict[str, Any]]:
  """Returns the recipe in a JSON file, and all of its content."""
  try:
    content = json.loads(file.read_text())
    saved = configs.upgraded(content['config'])
    config = configs.base(saved['method'])
    unknown = _update(config, saved)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f'{file} holds no recipe that can be read ({type(e).__name__}); pass a '
      'checkpoint written by xfactor.main'
    ) from e
  if unknown:
    logging.warning(
      '%s has settings that this version does not know and ignores: %s',
      file.parent.parent,
      ', '.join(unknown),
    )
  return config, content


def _update(
  config: ConfigDict, saved: Mapping[str, Any], prefix: str = ''
) -> list[str]:
  """Copies saved values into a config; returns the names it does not have."""
  unknown = []
  for key, value in saved.items():
    if key not in config:
      unknown.append(prefix + key)
    elif isinstance(config[key], ConfigDict) and config[key]:
      unknown += _update(config[key], value, f'{prefix}{key}.')
    else:  # A leaf, or a dict whose keys are chosen by the recipe.
      config[key] = ConfigDict(value) if isinstance(value, dict) else value
  return unknown


def fit_mesh(config: ConfigDict, devices: Sequence[jax.Device]) -> ConfigDict:
  """Returns a recipe without its mesh, if that does not fit the devices."""
  config = ConfigDict(config)
  try:
    sharding.make_mesh(sharding.Config(**config.mesh), devices)
  except UserError:
    config.mesh.update(dataclasses.asdict(sharding.Config()))
  return config


def _build(config: ConfigDict, devices: Sequence[jax.Device]) -> builds.Build:
  config = fit_mesh(config, devices)
  # These settings were chosen for the training machine.
  config.model.attention = 'auto'
  config.data.batch = len(devices)
  config.train.accumulate = 1
  return builds.build(config, devices)
