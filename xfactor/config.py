"""The default configuration: recipes in configs/ state differences from it.

Every leaf is read by some builder, a test checks it. Recipes are locked, so
that a misspelt `--config.x=y` fails and names the nearest key.
"""

import dataclasses
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
  """The settings outside of sections.

  Attributes:
    seed: Seed of all random numbers.
    method: Method; which other settings there are depends on it.
    perceptual_weights: Folder or file of LPIPS weights; empty takes those of
      the installed package.
    init_from: Workdir of another run to start from.
    init_networks: Networks taken from there: 'both', or 'pose_encoder' as in
      the public multi-view code.
    allow_change: Resume although the recipe or the data have changed.
    expected_devices: Minimum number of devices over all processes; 0 accepts
      any.
    cpu_devices: Devices that a CPU is split into; results do not depend on it.
    compile_cache: Keep compiled programs in WORKDIR/compile_cache.
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


@dataclasses.dataclass(frozen=True)
class Data:
  """Section `data`.

  Attributes:
    dir: Folder of converted data sets.
    batch: Examples of an update, over all devices.
    image_size: Height of images, in pixels.
    image_width: Width of images, in pixels; None: square images.
    contexts: Context views; 1 is the stereo model.
    ramp_steps: Updates until windows reach their end.
    min_length: Minimum length of clips, in frames; shorter ones are skipped.
    threads: Threads of each process that read and decode.
    workers: Processes that do it instead, if above 0.
    prefetch: Batches made ahead.
    max_bad_fraction: Share of unreadable examples that stops a run.
  """

  dir: str = 'data'
  batch: int = limits.at_least(256, 1)
  image_size: int = limits.at_least(256, 11)  # The window of SSIM.
  image_width: int | None = limits.at_least(None, 11)
  contexts: int = limits.at_least(1, 1)
  ramp_steps: int = 50_000
  min_length: int = 10
  threads: int = limits.at_least(8, 0)
  workers: int = limits.at_least(0, 0)
  prefetch: int = limits.at_least(8, 1)
  max_bad_fraction: float = 0.01


@dataclasses.dataclass(frozen=True)
class Train:
  """Section `train`.

  Attributes:
    steps: Optimizer updates.
    accumulate: Parts of a batch whose gradients are accumulated.
    log_every: Updates from a line of the log to the next.
    eval_every: Updates from an evaluation to the next; 0 evaluates only at the
      end.
    save_every: Updates from a checkpoint to the next.
    save_minutes: Also save after this many minutes; 0 disables.
    keep: Number of checkpoints kept, newest first.
    max_skipped: Skipped steps in a row that stop a run.
    spike_factor: Skips gradients longer than this times their running median;
      0 disables.
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
  profile_at: int | None = None
  profile_steps: int = limits.at_least(5, 1)


@dataclasses.dataclass(frozen=True)
class Eval:
  """Section `eval`.

  Attributes:
    split: Split of the data sets.
    batch: Examples of a batch, over all devices.
    examples: Maximum number of held-out examples of each data set.
    window: Frames from context to target, ends included.
    panel: Examples shown in pictures.
    lpips: Whether to score LPIPS where its weights are installed.
  """

  split: str = 'test'
  batch: int = limits.at_least(64, 1)
  examples: int = limits.at_least(256, 1)
  window: int = limits.at_least(20, 2)
  panel: int = limits.at_least(8, 1)
  lpips: bool = True


def _defaults(cls: type) -> dict[str, Any]:
  """Defaults of a section; where None, a placeholder that keeps the type."""
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
      # `mix`: name of a data set to `part(...)`. `make`: data sets made where
      # they are missing, by name; each has the options of its source, and the
      # source's name as `source` where it is another.
      'data': _defaults(Data) | {'mix': {}, 'make': {}},
      'train': _defaults(Train),
      'eval': _defaults(Eval),
    }
  )
  for section, values in registry.get(method).settings().items():
    config[section].update(values)
  return config.lock()


def check(config: ConfigDict) -> None:
  """Raises UserError if a value is too small to make sense."""
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
  if config.init_networks not in ('both', 'pose_encoder'):
    raise UserError(
      f'config.init_networks={config.init_networks!r}: choose "both" or '
      '"pose_encoder"'
    )


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
  """A recipe that an earlier version saved, with today's names.

  Before version 0.2 `method` was called `family`; before that there was only
  XFactor.
  """
  saved = dict(saved)
  saved.setdefault('method', saved.pop('family', 'xfactor'))
  return saved


def small(method: str = 'xfactor') -> ConfigDict:
  """A model for two CPU cores, without data.

  float32, and no LPIPS: on a CPU it would cost more than all the rest. XFactor
  has the settings by which small models learn motion; see docs/learning.md.

  Args:
    method: 'xfactor', a stereo model of 0.4 M parameters for views of 32 x 32
      pixels; 'rust' or 'rayzer', as deep and wide; 'srt', an improved SRT of
      1.2 M for 64 x 64.
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
    # Two cores with four examples at a time each, and layers recomputed: what
    # they work on fits their caches (2.5 times faster than all at once).
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
    # Blur as much of a picture as in the paper.
    config.objective.augmentation.blur_sigma = (0.1, 0.25)
    config.objective.unmasked_prob = 0.0  # One program to compile.
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
  """A recipe's data, optimizer and schedule for another method's model.

  Of the model and the objective that is kept which both methods have.

  Args:
    config: The recipe.
    method: Of the one to make; as unposed as the recipe's.
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
  """The recipe `name` in the folder of a recipe's file, to state changes of."""
  path = pathlib.Path(file).with_name(f'{name}.py')
  return runpy.run_path(str(path))['get_config']()


def part(
  *, begin: int, end: int, weight: float = 1.0, split: str = 'train'
) -> ConfigDict:
  """A data set's share of the mix and its windows.

  Args:
    begin: Longest window, in frames, at the first update.
    end: Longest window from update `data.ramp_steps` on.
    weight: Share of the examples, relative to the other data sets' weights.
    split: The split to train on.
  """
  return ConfigDict(
    {'begin': begin, 'end': end, 'weight': weight, 'split': split}
  )


def leaf_paths(config: ConfigDict, prefix: str = '') -> list[str]:
  """Dotted names of all leaves."""
  paths = []
  for key in config:
    value = config[key]
    if isinstance(value, ConfigDict):
      paths += leaf_paths(value, f'{prefix}{key}.')
    else:
      paths.append(prefix + key)
  return paths
