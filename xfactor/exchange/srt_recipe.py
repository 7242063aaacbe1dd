"""Reads runs of the public SRT code (stelzner/srt).

A checkpoint, `model.pt`, is a torch.save of the state dicts of encoder, decoder
and Adam, and of the loop's counters. The recipe is in `config.yaml` next to it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from etils import epath
from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.exchange import srt_names
from xfactor.exchange.xfactor_names import check_same
from xfactor.methods.srt import network as srt_network

Arrays = dict[str, np.ndarray]

RECIPE = 'config.yaml'


@dataclasses.dataclass(frozen=True)
class Run:
  """Content of a model.pt.

  Attributes:
    model: Sizes of the networks.
    named: Parameters; see `srt_names.named_parameters`.
    mu: First moments of Adam, by the same names; zero if Adam has none.
    nu: Second moments of Adam, by the same names; zero if Adam has none.
    updates: Update count of Adam. It can differ from the iterations: their code
      skips an iteration when it resumes, and Adam may have been reset.
    iterations: Completed iterations, which set the learning rate.
    rest: Other content, which our state lacks.
  """

  model: srt_network.Config
  named: Arrays
  mu: Arrays
  nu: Arrays
  updates: int
  iterations: int
  rest: dict[str, Any]


def read(content: Any, **settings: Any) -> Run:
  """Converts the content of a model.pt.

  Args:
    content: Content of the file, as read by torch_file.
    **settings: Model settings that do not follow from the arrays.

  Raises:
    UserError: If something is missing or inconsistent.
  """
  if not isinstance(content, dict):
    raise UserError('it is no dict of state dicts')
  rest = dict(content)
  parts = {key: rest.pop(key, None) for key in ('encoder', 'decoder')}
  for key, part in parts.items():
    if not isinstance(part, dict):
      raise UserError(f'{key} is missing')
  iterations = rest.pop('it', None)
  if not isinstance(iterations, int):
    raise UserError('it, the number of iterations, is missing')
  named = {
    f'{key}.{name}': array
    for key, part in parts.items()
    for name, array in part.items()
  }
  for name, array in named.items():
    if not isinstance(array, np.ndarray):
      raise UserError(f'{name} is no tensor')
  named = srt_names.named_parameters(named)
  model = srt_names.read_config(named, **settings)
  try:
    adam = _read_adam(list(named), rest.pop('optimizer', None))
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
    raise UserError(f'optimizer is not of Adam for this model ({e!r})') from e
  zeros = {name: np.zeros_like(array) for name, array in named.items()}
  mu, nu = ({**zeros, **adam[key]} for key in ('exp_avg', 'exp_avg_sq'))
  for moments in (mu, nu):
    check_same(named, moments)
  steps = {int(step) for step in adam['step'].values()} or {0}
  if len(steps) > 1:
    raise UserError(f'counts of updates differ: {sorted(steps)}')
  return Run(model, named, mu, nu, steps.pop(), iterations, rest)


def _read_adam(names: list[str], adam: Any) -> dict[str, dict[str, Any]]:
  """Returns Adam's state by its keys, then by parameter; empty for None."""
  if adam is None:
    adam = {'state': {}, 'param_groups': [{'params': names}]}
  keys = [key for group in adam['param_groups'] for key in group['params']]
  # Adam identifies parameters by their order in the model.
  order = dict(zip(keys, names, strict=True))
  return {
    what: {order[key]: state[what] for key, state in adam['state'].items()}
    for what in ('exp_avg', 'exp_avg_sq', 'step')
  }


@dataclasses.dataclass(frozen=True)
class _Data:
  """Properties of a data set in their loaders.

  Attributes:
    height, width: Size of a view, in pixels.
    views: Number of views per scene.
    inputs: Number of input views among them.
    distances: Range of the samples along a ray, for volume rendering.
    split: Split for evaluation during training.
    include_inputs: Whether inputs are also targets.
  """

  height: int
  width: int
  views: int
  inputs: int
  distances: tuple[float, float]
  split: str
  include_inputs: bool = False


_OBSURF = _Data(240, 320, 3, 1, (0.035, 35.0), 'val', include_inputs=True)
_DATA = {
  'nmr': _Data(64, 64, 24, 1, (2.0, 4.0), 'val'),
  'msn': _Data(240, 320, 10, 5, (0.0, 20.0), 'test'),
  'clevr3d': _OBSURF,
  'obsurf_msn': _OBSURF,
}


def read_recipe(path: epath.PathLike) -> ConfigDict:
  """Converts their recipe to ours, without the sizes of the model.

  Raises:
    UserError: If the file is damaged or has settings that we do not support.
  """
  try:
    recipe = yaml.safe_load(epath.Path(path).read_text())
    return _convert(recipe['data'], recipe['model'], recipe['training'])
  except UserError as e:
    raise UserError(f'{path}: {e}; give a recipe by --config') from e
  except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as e:
    raise UserError(
      f'{path} is no recipe of the public SRT code ({" ".join(str(e).split())})'
      ': repair it, or give one of ours by --config'
    ) from e


def _convert(
  data: Mapping[str, Any], model: Mapping[str, Any], training: Mapping[str, Any]
) -> ConfigDict:
  """Converts the sections; missing settings get the defaults of their code."""
  name, kwargs = data['dataset'], data.get('kwargs') or {}
  if name not in _DATA:
    raise UserError(f'data set {name!r} is none of {", ".join(_DATA)}')
  known = _DATA[name]
  octaves = {
    int((model.get(f'{part}_kwargs') or {}).get('pos_start_octave', 0))
    for part in ('encoder', 'decoder')
  }
  if len(octaves) > 1:
    raise UserError('encoder and decoder differ in pos_start_octave')

  config = configs.base('srt')
  config.model.start_octave = octaves.pop()
  config.model.min_dist, config.model.max_dist = known.distances
  for ours, theirs in (
    ('coarse_samples', 'num_coarse_samples'),
    ('fine_samples', 'num_fine_samples'),
  ):
    config.model[ours] = int(training.get(theirs, config.model[ours]))

  config.objective.rays = int(data.get('num_points', 2048))
  config.objective.canonical = bool(kwargs.get('canonical_view', True))
  config.objective.input_stride = 2 ** int(kwargs.get('downsample') or 0)
  config.objective.include_inputs = known.include_inputs

  config.data.mix = {name: configs.part(begin=known.views, end=known.views)}
  config.data.image_size = known.height
  if known.width != known.height:
    config.data.image_width = known.width
  config.data.min_length = min(config.data.min_length, known.views)
  config.data.contexts = known.inputs
  config.data.targets = known.views - known.inputs
  config.data.batch = int(training['batch_size'])

  config.train.steps = steps = int(training.get('max_it', 1_000_000))
  optimizer = config.optimizer
  optimizer.warmup_steps = int(training.get('lr_warmup', 2500))
  # Their rate decays by a factor in `decay_it` iterations, ours in `steps`.
  factor = optimizer.final_learning_rate / optimizer.learning_rate
  factor **= steps / int(training.get('decay_it', 4_000_000))
  optimizer.final_learning_rate = optimizer.learning_rate * factor

  config.mesh.fsdp = -1
  config.eval.split = known.split
  config.eval.window = known.views
  config.eval.rays = 8192
  return config
