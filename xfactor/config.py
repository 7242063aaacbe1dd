"""The default configuration: recipes in configs/ state differences from it.

Every leaf is read by some builder, a test checks it. Recipes are locked, so
that a misspelt `--config.x=y` fails and names the nearest key.
"""

import dataclasses
import pathlib
import runpy

from ml_collections import ConfigDict, config_dict

from xfactor.errors import UserError
from xfactor.training import families, optimizer, sharding


def base(family: str = 'xfactor') -> ConfigDict:
  """The published full-size model of a family, without data.

  Args:
    family: 'xfactor', the stereo model, 'srt', 'rust' or 'rayzer'.
  """
  config = ConfigDict(
    {
      'seed': 0,
      'family': family,  # Which of the sections below depend on.
      'model': {},
      'objective': {},
      'optimizer': dataclasses.asdict(optimizer.Config()),
      'mesh': dataclasses.asdict(sharding.Config()),
      # A folder or file with LPIPS weights; empty: the installed package's.
      'perceptual_weights': '',
      # The workdir of another run to start from, and which of its networks:
      # 'both', or 'pose_encoder' alone as the public multi-view code does.
      'init_from': '',
      'init_networks': 'both',
      # Go on where recipe or data are not those of the checkpoint.
      'allow_change': False,
      'expected_devices': 0,  # Of all processes; fewer are refused; 0: any.
      'compile_cache': True,  # Keep programs in WORKDIR/compile_cache.
      'data': {
        'dir': 'data',  # Where convert_datasets.py wrote.
        'mix': {},  # Data set's name to `part(...)`.
        'make': {},  # Source's name to its options: made where missing.
        'batch': 256,  # Examples of an update, over all devices.
        'image_size': 256,  # Pixels along a side.
        'image_width': config_dict.placeholder(int),  # Where not square.
        'contexts': 1,  # Views given; 1 is the stereo-monocular model.
        'ramp_steps': 50_000,  # Updates until windows reach their end.
        'min_length': 10,  # Frames; shorter clips are left out.
        'threads': 8,  # Reading and decoding, in each process.
        'workers': 0,  # Processes instead of threads, if above 0.
        'prefetch': 8,  # Batches made ahead, at least as many as threads.
        'max_bad_fraction': 0.01,  # Of unreadable examples, before a stop.
      },
      'train': {
        'steps': 100_000,  # Optimizer updates.
        'accumulate': 1,  # Parts that a batch is worked through in.
        'log_every': 100,
        'eval_every': 5_000,  # 0: only at the end.
        'save_every': 1_000,
        'save_minutes': 5.0,  # From a save to one more; 0: none more.
        'keep': 3,  # Newest checkpoints kept.
        'max_skipped': 10,  # Steps in a row that were not finite.
        # Gradients longer than this times their running median are left out;
        # 0: none.
        'spike_factor': 0.0,
        'watchdog_minutes': 30.0,  # Without progress: killed; 0: never.
        'profile_at': config_dict.placeholder(int),  # First step profiled.
        'profile_steps': 5,
      },
      'eval': {
        'split': 'test',
        'batch': 64,
        'examples': 256,  # Held-out examples of each data set, at most.
        'window': 20,  # Frames from context to target, ends included.
        'panel': 8,  # Examples shown in the pictures.
        'lpips': True,  # In the held-out scores, where weights are installed.
      },
    }
  )
  for section, values in families.get(family).settings().items():
    config[section].update(values)
  return config.lock()


# Smallest values that make sense, where zero or less would only fail later.
_LEAST = {
  'seed': 0,
  'expected_devices': 0,
  'model.features': 4,
  'model.heads': 1,
  'model.decoder_heads': 1,
  'model.patch_size': 1,
  'model.encoder_layers': 1,
  'model.renderer_layers': 1,
  'model.decoder_layers': 1,
  'model.scene_layers': 1,
  'model.scene_tokens': 1,
  'model.conv_blocks': 1,
  'model.coarse_samples': 1,
  'model.fine_samples': 0,
  'model.pose_dim': 1,
  'model.registers': 1,
  'objective.rays': 1,
  'objective.input_stride': 1,
  'optimizer.warmup_steps': 0,
  'optimizer.clip_norm': 0,
  'data.batch': 1,
  'data.contexts': 1,
  'data.targets': 0,
  'data.offset': 1,
  'data.offset_prob': 0,
  'data.image_size': 11,  # SSIM's window.
  'data.image_width': 11,
  'data.threads': 0,
  'data.workers': 0,
  'data.prefetch': 1,
  'train.steps': 1,
  'train.accumulate': 1,
  'train.log_every': 1,
  'train.eval_every': 0,
  'train.save_every': 1,
  'train.save_minutes': 0,
  'train.keep': 1,
  'train.max_skipped': 1,
  'train.spike_factor': 0,
  'train.watchdog_minutes': 0,
  'train.profile_steps': 1,
  'eval.batch': 1,
  'eval.examples': 1,
  'eval.window': 2,
  'eval.panel': 1,
  'eval.pairs': 1,
  'eval.targets': 2,
  'eval.transfer_window': 0,
  'eval.rays': 0,
}


def check(config: ConfigDict) -> None:
  """Raises UserError if a value is too small to make sense."""
  for name, least in _LEAST.items():
    section, _, key = name.rpartition('.')
    value = (config[section] if section else config).get(key)
    if value is not None and value < least:
      raise UserError(f'config.{name}={value} must be at least {least}')
  if config.init_networks not in ('both', 'pose_encoder'):
    raise UserError(
      f'config.init_networks={config.init_networks!r}: choose "both" or '
      '"pose_encoder"'
    )


def small(family: str = 'xfactor') -> ConfigDict:
  """A model for two CPU cores and views of 64 x 64 pixels, without data.

  float32, and no LPIPS: on a CPU it would cost more than all the rest.

  Args:
    family: 'xfactor', a stereo model of 2.2 M parameters; 'srt', an improved
      SRT of 1.2 M; 'rust' or 'rayzer', as deep and wide as XFactor.
  """
  config = base(family)
  config.model.update(
    features=128,
    heads=4,
    encoder_layers=3,
    dtype='float32',
    remat='full',  # On a CPU also the fastest: less memory to move.
  )
  if family != 'srt':
    config.model.patch_size = 8
    config.objective.lpips_weight = 0.0
    config.eval.pairs = 16
  if family == 'xfactor':
    config.model.update(renderer_layers=3, pose_dim=16, registers=4)
  elif family in ('rust', 'rayzer'):
    config.model.update(scene_layers=3, decoder_layers=3)
    if family == 'rayzer':
      config.model.scene_tokens = 64
  else:
    config.model.update(
      encoder='isrt',
      decoder='isrt',
      decoder_heads=4,
      mlp_features=256,
      conv_blocks=3,
      conv_features=32,
    )
    config.objective.rays = 512
    config.optimizer.final_learning_rate = 1.6e-4
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 50
  config.data.batch = 16
  config.data.image_size = 64
  config.eval.batch = 16
  return config


def like(config: ConfigDict, family: str) -> ConfigDict:
  """A recipe's data, optimizer and schedule for another family's model.

  Of the model and the objective that is kept which both families have.

  Args:
    config: The recipe.
    family: Of the one to make; as unposed as the recipe's.
  """
  made = small(family) if config.model.features < 1024 else base(family)
  for section in made:
    if not isinstance(made[section], ConfigDict):
      made[section] = config[section] if section != 'family' else family
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
