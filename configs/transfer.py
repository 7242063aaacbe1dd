"""Members of tools/transfer_benchmark.py: whose poses transfer?

  python -m xfactor.main --config=configs/transfer.py:MEMBER[,SUITE] \\
      --workdir=runs/transfer/MEMBER

SUITE is a world with small models, or the paper's:

  turning        rooms in which a camera pans and tilts (default)
  textures       smooth textures that slide past a camera
  moving         rooms as in turning, in which solids move by themselves
  levels         the same, and levels of Freedoom from update 600 on
  parallax       rooms in which all six freedoms of a camera move
  full           the paper's stereo model and data, as configs/sm.py

All members of a suite have the same data in the same order, loss, optimizer,
positions and initialisation (docs/learning.md). MEMBER is one of

  xfactor        the full transferability objective
  autoencode     no split: poses may carry any information
  xfactor_N, autoencode_N   the same with poses of N numbers, N of 2, 4, 16, 64
                 and 256; without N, 16 in small models and 256 in `full`
  se3            explicit SE(3) poses, given to the renderer as Pluecker rays
  nuisance       xfactor with a second latent of the target, dropped in half of
                 the examples of training and in all tests
  rayder         autoencode with that latent
  halves         split into halves of the picture instead of any two quadrants
  render_view    one more context view in the renderer
  joint_view     one more in the renderer and in the pose encoder
  no_jitter, no_blur, no_augmentation   the pose encoder sees plain colours, ...
  offset         with probability 0.5, the halves of a pair are from two moments
  simclr, vicreg only the pose encoder, contrastive objective (probe only)
  rust, rayzer   the baselines

from tables 1, 3, 6 and 7 of arXiv 2510.13063, and from arXiv 2605.31535
(`rayder`). The transfer test evaluates `joint_view` pair by pair. Hardware: one
CPU core and minutes per member for the small suites, more for `parallax`;
`full` as configs/sm.py, not run yet.
"""

from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.errors import UserError

# If the target is the reference, their poses are equal from the start.
_CONTRAST = {
  'objective.unmasked_prob': 0.0,
  'objective.self_target_prob': 0.0,
}
_PLAIN = {'xfactor': {}, 'autoencode': {'objective.unmasked_prob': 1.0}}
_WIDTHS = (2, 4, 16, 64, 256)
# Changes of each member to `xfactor`; rust and rayzer differ in method.
MEMBERS = {
  **_PLAIN,
  **{
    f'{member}_{width}': changes | {'model.pose_dim': width}
    for member, changes in _PLAIN.items()
    for width in _WIDTHS
  },
  **{
    name: _PLAIN[member] | {'model.nuisance_dim': 256}
    for name, member in (('nuisance', 'xfactor'), ('rayder', 'autoencode'))
  },
  'se3': {'model.pose': 'se3', 'model.pose_dim': 10},
  'halves': {'objective.split': 'halves'},
  'render_view': {'data.contexts': 2},
  'joint_view': {'data.contexts': 2, 'model.joint_encoder': True},
  'no_jitter': {'objective.augmentation.jitter_prob': 0.0},
  'no_blur': {'objective.augmentation.blur_prob': 0.0},
  'no_augmentation': {
    'objective.augmentation.jitter_prob': 0.0,
    'objective.augmentation.blur_prob': 0.0,
  },
  'offset': {'data.offset_prob': 0.5, 'objective.unmasked_prob': 0.0},
  'simclr': {'objective.contrast': 'simclr'} | _CONTRAST,
  'vicreg': {'objective.contrast': 'vicreg'} | _CONTRAST,
  'rust': {},
  'rayzer': {},
}
# Members without a renderer.
PROBE_ONLY = frozenset({'simclr', 'vicreg'})
# Learning rates to choose from, and members that take the rate of another.
RATES = (1e-3, 3e-3, 1e-2)
RATE_OF = {
  f'{member}_{width}': member for member in _PLAIN for width in _WIDTHS
} | {'halves': 'xfactor', 'no_augmentation': 'xfactor'}


def get_config(which: str = 'xfactor') -> ConfigDict:
  """Returns the recipe of MEMBER or MEMBER,SUITE."""
  member, _, suite = which.partition(',')
  if member not in MEMBERS or suite not in _SUITES:
    raise UserError(
      f'configs/transfer.py:{which}: give MEMBER,SUITE of the members '
      f'{", ".join(MEMBERS)} and the suites {", ".join(filter(None, _SUITES))}'
    )
  config = _SUITES[suite]()
  if member in ('rust', 'rayzer'):
    config = configs.like(config, member)
    depth = config.model.encoder_layers
    config.model.update(scene_layers=depth, decoder_layers=depth)
    if member == 'rayzer' and suite != 'full':
      config.model.scene_tokens = 64  # As many as patches per view.
  config.update_from_flattened_dict(MEMBERS[member])
  if member in ('nuisance', 'rayder') and suite != 'full':
    config.model.nuisance_dim = config.model.pose_dim
  if member in PROBE_ONLY:
    config.train.accumulate = 1  # Compares all examples of a batch.
  return config


def _full() -> ConfigDict:
  return configs.beside(__file__, 'sm')


def _small() -> ConfigDict:
  """Returns a recipe of 0.3 to 0.7 M parameters for one core of a CPU."""
  config = configs.small()
  config.cpu_devices, config.train.accumulate = 1, 8
  config.data.ramp_steps = 600
  config.train.steps = 2_000
  config.train.log_every = 50
  config.train.eval_every = 500
  config.train.save_every = 500
  config.eval.examples = 64
  config.eval.lpips = False  # Takes longer than the rest of an evaluation.
  config.eval.window = 7
  config.eval.transfer_window = 13
  return config


def _turning() -> ConfigDict:
  config = _small()
  made = configs.beside(__file__, 'tiny').data.make.rooms.to_dict()
  made |= {'scenes': 280, 'test_fraction': 0.15, 'val_fraction': 0.1}
  made['with_depth'] = True  # Oracles need it.
  config.data.mix = {'turning': configs.part(begin=3, end=8)}
  config.data.make = {'turning': made}
  return config


def _textures() -> ConfigDict:
  config = _small()
  config.data.mix = {'textures': configs.part(begin=3, end=8)}
  config.data.make = {
    'textures': {
      'source': 'sliding',
      'scenes': 600,
      'frames': 64,
      'size': 32,
      'with_depth': False,
    }
  }
  return config


def _moving() -> ConfigDict:
  config = _turning()
  made = config.data.make.turning.to_dict() | {'frames': 40, 'movers': 3}
  config.data.mix = {'moving': configs.part(begin=3, end=8)}
  config.data.make = {'moving': made | {'val_fraction': 0.0}}
  return config


def _levels() -> ConfigDict:
  config = _turning()
  # Rooms first: levels are learned sooner after them (configs/laptop.py).
  levels = configs.beside(__file__, 'laptop').data.make.levels_turn.to_dict()
  config.data.mix.levels = configs.part(begin=3, end=8, start=600)
  config.data.make.levels = levels
  config.train.steps = 3_000
  return config


def _parallax() -> ConfigDict:
  config, laptop = _small(), configs.beside(__file__, 'laptop')
  for section, key in (
    *(('model', 'patch_size'), ('data', 'image_size'), ('data', 'ramp_steps')),
    *(('train', 'steps'), ('eval', 'window'), ('eval', 'transfer_window')),
  ):
    config[section][key] = laptop[section][key]
  names = {'turn': 'blurred', 'parts': 'parts', '6dof': 'parallax'}
  config.data.mix = {
    name: laptop.data.mix[f'rooms_{kind}'] for kind, name in names.items()
  }
  config.data.make = {
    name: laptop.data.make[f'rooms_{kind}'] for kind, name in names.items()
  }
  config.data.make.parallax.with_depth = True  # Oracles need it.
  return config


_SUITES = {
  '': _turning,
  'turning': _turning,
  'textures': _textures,
  'moving': _moving,
  'levels': _levels,
  'parallax': _parallax,
  'full': _full,
}
