"""Members of tools/transfer_benchmark.py: whose poses transfer?

  python -m xfactor.main --config=configs/transfer.py:MEMBER[,SUITE] \\
      --workdir=runs/transfer/MEMBER

SUITE is `synthetic` (default: generated rooms, small models), `vizdoom` (walks,
small models) or `full` (the paper's stereo model and data, as configs/sm.py).
All members of a suite have the same data, loss and updates. MEMBER is one of

  xfactor        the full transferability objective
  autoencode     no split: poses may carry any information
  bottleneck     poses of 16 numbers; of 4 in the small models, instead of 16
  se3            explicit SE(3) poses, given to the renderer as Pluecker rays
  render_view    one more context view in the renderer
  joint_view     one more in the renderer and in the pose encoder
  no_jitter, no_blur, no_augmentation   the pose encoder sees plain colours, ...
  offset         with probability 0.5, the halves of a pair are from two moments
  simclr, vicreg only the pose encoder, contrastive objective (probe only)
  rust, rayzer   the baselines

from tables 1, 3, 6 and 7 of arXiv 2510.13063. The transfer test evaluates
`joint_view` pair by pair. Hardware: two CPU cores and minutes per member for
the small suites; `full` as configs/sm.py, not run yet.
"""

from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.errors import UserError

# If the target is the reference, their poses are equal from the start.
_CONTRAST = {
  'objective.unmasked_prob': 0.0,
  'objective.self_target_prob': 0.0,
}
# Changes of each member to `xfactor`; rust and rayzer differ in method.
MEMBERS = {
  'xfactor': {},
  'autoencode': {'objective.unmasked_prob': 1.0},
  'bottleneck': {'model.pose_dim': 16},
  'se3': {'model.pose': 'se3', 'model.pose_dim': 10},
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
  if member == 'bottleneck' and suite != 'full':
    config.model.pose_dim = 4
  return config


def _full() -> ConfigDict:
  return configs.beside(__file__, 'sm')


def _small() -> ConfigDict:
  """Returns a recipe of 0.4 to 0.7 M parameters at 32 x 32 pixels."""
  config = configs.small()
  config.train.accumulate = 1  # Contrastive objectives need the whole batch.
  config.data.ramp_steps = 600
  config.train.steps = 4_000
  config.train.log_every = 100
  config.train.eval_every = 0
  config.train.save_every = 500
  return config


def _synthetic() -> ConfigDict:
  config = _small()
  rooms = configs.beside(__file__, 'tiny')
  config.data.mix = {'synthetic': configs.part(begin=3, end=8)}
  made = rooms.data.make.rooms.to_dict()
  del made['source']
  config.data.make = {'synthetic': made}
  config.eval.window = rooms.eval.window
  config.eval.transfer_window = rooms.eval.transfer_window
  return config


def _vizdoom() -> ConfigDict:
  config = _small()
  config.data.mix = {'vizdoom': configs.part(begin=4, end=12)}
  config.eval.window = 8
  config.eval.transfer_window = 15
  return config


_SUITES = {
  '': _synthetic,
  'synthetic': _synthetic,
  'vizdoom': _vizdoom,
  'full': _full,
}
