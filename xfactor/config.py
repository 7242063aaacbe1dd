"""The default configuration; recipes in configs/ state differences from it.

A test checks that every leaf is used. Recipes are locked, so that a misspelled
`--config.x=y` fails and names the nearest key.
"""

import dataclasses
import math
import pathlib
import runpy
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from xfactor import limits
from xfactor.errors import UserError
from xfactor.methods import registry
from xfactor.nn import optimizer, sharding


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Top-level settings.

  Attributes:
    seed: Seed of all random numbers.
    method: Name of the method; the other settings depend on it.
    perceptual_weights: Folder or file of LPIPS weights; empty takes those of
      the installed package.
    init_from: Workdir of another run to start from.
    init_networks: Networks loaded from it: 'both', or 'pose_encoder' as in the
      public multi-view code.
    allow_change: Whether to resume if the recipe or the data have changed.
    expected_devices: Minimum number of devices over all processes; 0 accepts
      any.
    cpu_devices: Devices that a CPU is split into; does not change results.
    compile_cache: Whether to keep compiled programs in WORKDIR/compile_cache.
    log: Trackers besides TensorBoard, separated by commas: 'wandb', 'trackio'.
  """

  seed: int = limits.at_least(0, 0)
  method: str = 'xfactor'
  perceptual_weights: str = ''
  init_from: str = ''
  init_networks: str = 'both'
  allow_change: bool = False
  expected_devices: int = limits.at_least(0, 0)
  cpu_devices: int = limits.at_least(1, 1)
  compile_cache: bool = True
  log: str = ''


@dataclasses.dataclass(frozen=True)
class Data:
  """Section `data`.

  Attributes:
    dir: Folder of converted data sets.
    batch: Examples of an update, over all devices.
    image_size: Height of images, in pixels.
    image_width: Width of images, in pixels; None: square images.
    contexts: Context views; 1 is the stereo model.
    ramp_steps: Updates until windows reach their final length.
    min_length: Minimum length of clips, in frames; shorter ones are skipped.
    threads: Threads per process that read and decode.
    workers: Processes that read and decode instead of threads, if above 0.
    prefetch: Batches prepared ahead.
    max_bad_fraction: Share of unreadable examples that stops a run.
  """

  dir: str = 'data'
  batch: int = limits.at_least(256, 1)
  image_size: int = limits.at_least(256, 11)  # The window of SSIM.
  image_width: int | None = limits.at_least(None, 11)
  contexts: int = limits.at_least(1, 1)
  ramp_steps: int = limits.at_least(50_000, 0)
  min_length: int = limits.at_least(10, 1)
  threads: int = limits.at_least(8, 0)
  workers: int = limits.at_least(0, 0)
  prefetch: int = limits.at_least(8, 1)
  max_bad_fraction: float = limits.between(0.01, 0, 1)


@dataclasses.dataclass(frozen=True)
class Train:
  """Section `train`.

  Attributes:
    steps: Optimizer updates.
    accumulate: Parts of a batch whose gradients are accumulated.
    log_every: Updates between lines of the log.
    eval_every: Updates between evaluations; 0 evaluates only at the end.
    save_every: Updates between checkpoints.
    save_minutes: Minutes after which to save as well; 0 disables.
    keep: Number of newest checkpoints to keep.
    max_skipped: Number of non-finite steps in a row that stops a run.
    spike_factor: Multiple of the running median of gradient norms above which
      an update is skipped; 0 disables.
    watchdog_minutes: Minutes without progress that end the process; 0 disables.
    profile_at: First step that is profiled; None disables.
    profile_steps: Steps that are profiled.
  """

  steps: int = limits.at_least(100_000, 1)
  accumulate: int = limits.at_least(1, 1)
  log_every: int = limits.at_least(100, 1)
  eval_every: int = limits.at_least(5_000, 0)
  save_every: int = limits.at_least(1_000, 1)
  save_minutes: float = limits.at_least(5.0, 0)
  keep: int = limits.at_least(3, 1)
  max_skipped: int = limits.at_least(10, 1)
  spike_factor: float = limits.at_least(0.0, 0)
  watchdog_minutes: float = limits.at_least(30.0, 0)
  profile_at: int | None = limits.at_least(None, 0)
  profile_steps: int = limits.at_least(5, 1)


@dataclasses.dataclass(frozen=True)
class Eval:
  """Section `eval`.

  Attributes:
    split: Split of the data sets.
    batch: Examples of a batch, over all devices.
    examples: Maximum number of held-out examples of each data set.
    window: Frames from context to target, inclusive.
    panel: Number of examples shown in pictures.
    lpips: Whether to compute LPIPS if its weights are installed.
  """

  split: str = 'test'
  batch: int = limits.at_least(64, 1)
  examples: int = limits.at_least(256, 1)
  window: int = limits.at_least(20, 2)
  panel: int = limits.at_least(8, 1)
  lpips: bool = True


def _defaults(cls: type) -> dict[str, Any]:
  """Returns the defaults of a section; typed placeholders for None."""
  types = typing.get_type_hints(cls)
  return {
    name: config_dict.placeholder(typing.get_args(types[name])[0])
    if value is None
    else value
    for name, value in dataclasses.asdict(cls()).items()
  }


def base(method: str = 'xfactor') -> ConfigDict:
  """Returns the published full-size model of a method, without data.

  Args:
    method: 'xfactor', the stereo model, 'srt', 'rust' or 'rayzer'.
  """
  config = ConfigDict(
    _defaults(Recipe)
    | {
      'method': method,
      'model': {},
      'objective': {},
      'optimizer': dataclasses.asdict(optimizer.Config()),
      'mesh': dataclasses.asdict(sharding.Config()),
      # `mix`: `part(...)` by name of a data set. `make`: options of the data
      # sets to make if they are missing, by name; `source` names the source if
      # it differs from the data set.
      'data': _defaults(Data) | {'mix': {}, 'make': {}},
      'train': _defaults(Train),
      'eval': _defaults(Eval),
    }
  )
  for section, values in registry.get(method).settings().items():
    config[section].update(values)
  return config.lock()


def check(config: ConfigDict) -> None:
  """Raises UserError if a value of the recipe is out of range."""
  limits.check_finite(config)
  method = registry.get(config.method)
  limits.check(config, limits.of(Recipe))
  for section, cls in (
    ('model', method.model),
    ('objective', method.objective),
    ('optimizer', optimizer.Config),
    ('data', Data),
    ('train', Train),
    ('eval', Eval),
  ):
    limits.check(
      config[section],
      limits.of(cls) | method.limits().get(section, {}),
      f'{section}.',
    )
  if 'augmentation' in config.objective:
    limits.check(
      config.objective.augmentation,
      limits.of(type(method.objective().augmentation)),
      'objective.augmentation.',
    )
  for name, part in config.data.mix.items():
    limits.check(part, {'weight': (0, math.inf)}, f'data.mix.{name}.')
  if config.init_networks not in ('both', 'pose_encoder'):
    raise UserError(
      f'config.init_networks={config.init_networks!r}: choose "both" or '
      '"pose_encoder"'
    )


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Converts a recipe saved by an earlier version to today's names.

  Before version 0.2 `method` was called `family`, and all data sets of a
  mixture started at once. Even older recipes have neither and are XFactor.
  """
  saved = dict(saved)
  saved.setdefault('method', saved.pop('family', 'xfactor'))
  data = saved.get('data', {})
  mix = {k: {'start': 0} | v for k, v in data.get('mix', {}).items()}
  return saved | {'data': data | {'mix': mix}}


def small(method: str = 'xfactor') -> ConfigDict:
  """Returns a small model for two CPU cores, without data.

  It uses float32 and no LPIPS, which would cost more than the rest of a step on
  a CPU. XFactor has the settings with which small models learn motion; see
  docs/learning.md.

  Args:
    method: 'xfactor', a stereo model of 0.4 M parameters for views of 32 x 32
      pixels; 'rust' or 'rayzer' of the same depth and width; 'srt', an improved
      SRT of 1.2 M parameters for 64 x 64 pixels.
  """
  config = base(method)
  config.model.update(dtype='float32', heads=4)
  if method == 'srt':
    config.model.update(
      features=128,
      encoder_layers=3,
      encoder='isrt',
      decoder='isrt',
      decoder_heads=4,
      mlp_features=256,
      conv_blocks=3,
      conv_features=32,
    )
    config.objective.rays = 512
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1.6e-4
    config.data.update(batch=16, image_size=64)
  else:
    config.model.update(features=64, encoder_layers=2, patch_size=4)
    config.objective.lpips_weight = 0.0
    config.data.update(batch=32, image_size=32)
    # Four examples at a time on each of two cores, with recomputed layers: the
    # working set fits their caches (2.5 times faster than all at once).
    config.cpu_devices = 2
    config.train.accumulate = 4
    config.eval.pairs = 64
  if method == 'xfactor':
    config.model.update(
      renderer_layers=2,
      pose_dim=16,
      registers=4,
      position_grid=8,
      layer_scale=0.3,
      tie_qk=True,
      pose_gain=10.0,
    )
    # The same blur relative to the picture size as in the paper.
    config.objective.augmentation.blur_sigma = (0.1, 0.25)
    config.objective.unmasked_prob = 0.0  # Compiles only one program.
    config.optimizer.update(
      name='muon', learning_rate=3e-3, final_learning_rate=3e-4
    )
  elif method != 'srt':
    config.model.update(scene_layers=2, decoder_layers=2)
    config.optimizer.learning_rate = 1e-3
    if method == 'rayzer':
      config.model.scene_tokens = 64
  config.optimizer.warmup_steps = 50
  config.eval.batch = 16
  return config


def like(config: ConfigDict, method: str) -> ConfigDict:
  """Converts a recipe to another method, with the same data and schedule.

  Keeps the settings of model and objective that both methods have.

  Args:
    config: Recipe.
    method: Name of the new method; like the recipe's, one without cameras.
  """
  made = small(method) if config.model.features < 1024 else base(method)
  for section in made:
    if not isinstance(made[section], ConfigDict):
      made[section] = config[section] if section != 'method' else method
      continue
    for key in made[section]:
      if key in config[section] and key != 'pose_dim':
        made[section][key] = config[section][key]
  return made


def beside(file: str, name: str) -> ConfigDict:
  """Returns the recipe `name` in the folder of `file`, as a base to modify."""
  path = pathlib.Path(file).with_name(f'{name}.py')
  return runpy.run_path(str(path))['get_config']()


def part(
  *,
  begin: int,
  end: int,
  weight: float = 1.0,
  start: int = 0,
  split: str = 'train',
) -> ConfigDict:
  """Returns the share and the windows of a data set in the mix.

  Args:
    begin: Maximum window, in frames, at the first update.
    end: Maximum window, in frames, from update `data.ramp_steps`.
    weight: Share of the examples, relative to the other data sets' weights.
    start: First update that may have examples of it: a curriculum over data
      sets; at least one must start at 0.
    split: Split to train on.
  """
  return ConfigDict(
    {
      'begin': begin,
      'end': end,
      'weight': weight,
      'start': start,
      'split': split,
    }
  )


def leaf_paths(config: ConfigDict, prefix: str = '') -> list[str]:
  """Returns the dotted names of all leaves."""
  paths = []
  for key in config:
    value = config[key]
    if isinstance(value, ConfigDict):
      paths += leaf_paths(value, f'{prefix}{key}.')
    else:
      paths.append(prefix + key)
  return paths
