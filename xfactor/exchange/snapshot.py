"""In-memory checkpoint of any code base."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.data import files
from xfactor.errors import UserError
from xfactor.exchange import xfactor_names
from xfactor.methods.srt import network as srt_network
from xfactor.methods.xfactor import network as xfactor_network

Arrays = dict[str, np.ndarray]

FORMATS = ('ours', 'official', 'safetensors')

# Settings of XFactor that do not follow from its arrays.
NOT_IN_ARRAYS = (
  *('dtype', 'attention', 'remat', 'position_grid'),
  *('layer_scale', 'tie_qk', 'pose_gain'),
)
# What is said about a model: the fields of either method that set its size.
_SIZES = (
  *('encoder', 'decoder', 'features', 'heads', 'decoder_heads'),
  *('mlp_features', 'patch_size', 'conv_blocks', 'encoder_layers'),
  *('renderer_layers', 'decoder_layers', 'pose_dim', 'registers'),
)
_NAMES = {'xfactor': 'XFactor', 'srt': 'SRT'}


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """A checkpoint between two formats.

  Attributes:
    facts: Readable facts about what was read.
    recipe: Recipe of the source, as far as it is known; defaults otherwise.
    model: Sizes of the networks.
    step: Completed updates, which set the learning rate.
    updates: Update count of Adam.
    params: float32 arrays by our names.
    mu: First moments of Adam, by the same names; None for a run with Muon.
    nu: Second moments of Adam, by the same names; None for a run with Muon.
    rest: Other leaves of the official checkpoint by slash-joined path, in its
      order, with None for the arrays above; None for other sources.
    ema: Average of the parameters, by the same names; None if there is none.
  """

  facts: dict[str, str]
  recipe: ConfigDict
  model: xfactor_network.Config | srt_network.Config
  step: int
  updates: int
  params: Arrays
  mu: Arrays | None
  nu: Arrays | None
  rest: dict[str, Any] | None
  ema: Arrays | None = None


def target(out: epath.Path, to: str) -> epath.Path:
  """Returns the file or folder to write the arrays to."""
  if to == 'ours':
    return out / 'checkpoints'
  if to == 'official':
    return out if out.suffix == '.flax' else out / 'checkpoints-0'
  return out if out.suffix == '.safetensors' else out / 'model.safetensors'


def clear(target: epath.Path) -> None:
  """Deletes a folder; files are replaced when the new ones are complete."""
  if target.is_dir():
    target.rmtree()


def is_taken(target: epath.Path) -> bool:
  return any(target.iterdir()) if target.is_dir() else target.exists()


def is_run(source: epath.Path) -> bool:
  return (source / 'checkpoints').is_dir()


@contextlib.contextmanager
def naming(path: epath.Path, method: str = 'xfactor') -> Iterator[None]:
  """Adds the file to the message of a UserError."""
  try:
    yield
  except UserError as e:
    raise UserError(
      f'{path} is no complete {_NAMES[method]} checkpoint: {e}'
    ) from e


def recipe(method: str, config: ConfigDict | None) -> ConfigDict:
  """Returns a copy of the given recipe, or the defaults of the method.

  Without a recipe the model is computed in float32, as its code did; see
  docs/export.md for what bfloat16 costs.
  """
  if config is None:
    config = configs.base(method)
    config.model.dtype = 'float32'
    return config
  if config.method != method:
    raise UserError(
      f'the checkpoint is of {_NAMES[method]}, the recipe of '
      f'config.method={config.method!r}: give another --config'
    )
  return copy.deepcopy(config)


def read_xfactor(params: Arrays, recipe: ConfigDict) -> xfactor_network.Config:
  """Returns sizes from the arrays, and other settings from the recipe."""
  return dataclasses.replace(
    xfactor_names.read_config(params),
    **{key: recipe.model[key] for key in NOT_IN_ARRAYS},
  )


def sizes(
  model: xfactor_network.Config | srt_network.Config,
  params: Arrays,
  arrays: int,
) -> dict[str, str]:
  """Returns facts about the model; `arrays` counts those of the source."""
  count = sum(x.size for x in params.values())
  fields = dataclasses.asdict(model)
  sizes = ', '.join(f'{x} {fields[x]}' for x in _SIZES if x in fields)
  return {'model': sizes, 'parameters': f'{count:,} in {arrays} arrays'}


def zeros(params: Arrays) -> Arrays:
  return {name: np.zeros(x.shape, x.dtype) for name, x in params.items()}


def complete(
  recipe: ConfigDict, model: srt_network.Config, config: ConfigDict | None
) -> dict[str, str]:
  """Fits a default recipe to the sizes; returns facts about the recipe."""
  if config is not None:
    return {'recipe': 'as given, with the sizes of the arrays'}
  if model.encoder == 'srt':
    cell = 2**model.conv_blocks
    height, width = model.rows * cell, model.columns * cell
    recipe.data.update(image_size=height, image_width=width)
    recipe.objective.rays = min(recipe.objective.rays, height * width)
  return {
    'assumed': f'heads {model.heads} + {model.decoder_heads}, start_octave '
    f'{model.start_octave}, distances {model.min_dist:g} to '
    f'{model.max_dist:g}, pictures, coordinates and all else that the arrays '
    'do not determine: give --config if they differ'
  }


@contextlib.contextmanager
def whole(path: epath.Path) -> Iterator[BinaryIO]:
  """Opens a file for writing and renames it to `path` when complete."""
  if files.is_remote(path):  # Buckets show only complete files.
    with files.as_os_errors(path), path.open('wb') as f:
      yield f
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + files.partial_suffix())
  with partial.open('wb') as f:
    yield f
  partial.replace(path)
