"""A trained model from its checkpoint alone: the recipe is written in it."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.nn import sharding
from xfactor.nn.functional import Params
from xfactor.training import build as builds
from xfactor.training.resilience import checkpoints as checkpoints_lib


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint's parameters on the devices here, and what they belong to.

  Attributes:
    config: The recipe that was trained, on the defaults of this version.
    step: Updates done.
    build: What the recipe builds on the devices here.
    params: Of the networks.
  """

  config: ConfigDict
  step: int
  build: builds.Build
  params: Params


def restore(
  path: epath.PathLike,
  step: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Restored:
  """Restores a model for inference.

  Args:
    path: A run's workdir, or one checkpoint of it, WORKDIR/checkpoints/STEP.
    step: Of the checkpoint in a workdir; the newest if None.
    devices: Default: all. They are laid out as in the recipe; if their number
      does not allow that, each holds all parameters.

  Raises:
    UserError: If there is no such checkpoint, it cannot be read, or it does not
      hold the model that its recipe describes.
  """
  workdir, step = _locate(epath.Path(path).expanduser(), step)
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    step = checkpoints.find(step)
    config = _recipe(checkpoints.folder / str(step))
    build = _build(config, jax.devices() if devices is None else devices)
    params = build.abstract_state().params
    step, params = checkpoints.restore_params(params, step)
  return Restored(config, step, build, params)


def _locate(
  path: epath.Path, step: int | None
) -> tuple[epath.Path, int | None]:
  """The workdir and the step that are meant."""
  if path.name.isdigit() and path.parent.name == 'checkpoints':
    if step not in (None, int(path.name)):
      raise UserError(
        f'{path} is not the checkpoint of step {step}; leave out the one or '
        'the other'
      )
    return path.parent.parent, int(path.name)
  if not (path / 'checkpoints').exists():
    raise UserError(
      f'{path} is no run (it has no folder checkpoints) and no checkpoint '
      '(WORKDIR/checkpoints/STEP); give the one or the other'
    )
  return path, step


def _recipe(folder: epath.Path) -> ConfigDict:
  """The recipe in a checkpoint's metadata."""
  file = folder / 'meta' / 'metadata'
  try:
    saved = configs.upgraded(json.loads(file.read_text())['config'])
    config = configs.base(saved['method'])
    unknown = _update(config, saved)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f'{file} holds no recipe that can be read ({type(e).__name__}); give a '
      'checkpoint that xfactor.main wrote'
    ) from e
  if unknown:
    logging.warning(
      '%s has settings that this version does not know and leaves out: %s',
      folder,
      ', '.join(unknown),
    )
  return config


def _update(
  config: ConfigDict, saved: Mapping[str, Any], prefix: str = ''
) -> list[str]:
  """Puts saved values into a config; returns the names it does not have."""
  unknown = []
  for key, value in saved.items():
    if key not in config:
      unknown.append(prefix + key)
    elif isinstance(config[key], ConfigDict) and config[key]:
      unknown += _update(config[key], value, f'{prefix}{key}.')
    else:  # A leaf, or a dict whose names are the recipe's own.
      config[key] = ConfigDict(value) if isinstance(value, dict) else value
  return unknown


def _build(config: ConfigDict, devices: Sequence[jax.Device]) -> builds.Build:
  config = ConfigDict(config)
  try:
    sharding.make_mesh(sharding.Config(**config.mesh), devices)
  except UserError:
    config.mesh.update(dataclasses.asdict(sharding.Config()))
  # What suits the machine of the training need not suit this one.
  config.model.attention = 'auto'
  config.data.batch = len(devices)
  config.train.accumulate = 1
  return builds.build(config, devices)
