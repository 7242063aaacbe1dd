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
      'cpu_devices': 1,  # That a CPU is split into; does not change results.
      'compile_cache': True,  # Keep programs in WORKDIR/compile_cache.
      'data': {
        'dir': 'data',  # Where convert_datasets.py wrote.
        'mix': {},  # Data set's name to `part(...)`.
        # Data sets made where missing: name to the source's options, with the
        # source's name as `source` where it is another.
        'make': {},
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
  'cpu_devices': 1,
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
  'model.position_grid': 0,
  'model.layer_scale': 0,
  'model.pose_gain': 0,
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
  'eval.pairs': 0,
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
  """A model for two CPU cores, without data.

  float32, and no LPIPS: on a CPU it would cost more than all the rest. XFactor
  has the settings by which small models learn motion; see docs/learning.md.

  Args:
    family: 'xfactor', a stereo model of 0.4 M parameters for views of 32 x 32
      pixels; 'rust' or 'rayzer', as deep and wide; 'srt', an improved SRT of
      1.2 M for 64 x 64.
  """
  config = base(family)
  config.model.update(dtype='float32', heads=4)
  if family == 'srt':
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
  if family == 'xfactor':
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
  elif family != 'srt':
    config.model.update(scene_layers=2, decoder_layers=2)
    config.optimizer.learning_rate = 1e-3
    if family == 'rayzer':
      config.model.scene_tokens = 64
  config.optimizer.warmup_steps = 50
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
