"""A small stereo model that learns all six motions of a camera in an hour.

  pip install -e '.[vizdoom]'
  python -m xfactor.main --config=configs/laptop.py --workdir=runs/laptop

Makes its data where they are missing: procedural rooms and levels of Freedoom
through which a camera turns, slides, rises and pushes ahead, 64 x 64 pixels.
Clips in which the camera only turns, stored at 32 x 32 pixels, come first; the
others join them. Windows grow from small motions to large ones. No cameras are
given. Hardware: two CPU cores, one hour: 16 minutes make the data. Held-out
clips in which all six freedoms move: transfer rank 97.8 %, identified 87.5 % in
rooms; 90.0 %, 63.3 % in levels (docs/learning.md).
"""

from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.geometry import wander

# A unit of a level is about two metres.
_WORLDS = {
  'rooms': {
    'source': 'synthetic',
    'scenes': 300,
    'walks': 2,
    'field_of_view': 65.0,
    'move': 0.05,
  },
  'levels': {'source': 'vizdoom', 'walks': 200, 'move': 0.1},
}
# Among clips in which all six freedoms move, pan and slide hide each other for
# thousands of updates, and details within a patch hide both. So turning comes
# first, in blurred pictures of rooms, then of levels. Of the later clips, two
# thirds move in few freedoms.
_TURN, _ALL = 'turn', '6dof'
_PATHS = {
  _TURN: 'pan,pan+tilt',
  'parts': 'pan,pan+tilt,slide,slide+rise,roll,push',
  _ALL: '+'.join(wander.FREEDOMS),
}
# First updates of turning in levels, and of the other motions.
_LEVELS, _MOVING = 1_000, 1_500


def get_config() -> ConfigDict:
  """Returns the recipe: rooms and levels, two to one."""
  config = configs.small()
  config.model.patch_size = 8
  config.data.image_size = 64
  config.data.mix = {
    f'{world}_{kind}': configs.part(
      begin=3,
      end=8 if kind == _TURN else 6,
      weight=2 if world == 'rooms' else 1,
      start=_MOVING if kind != _TURN else 0 if world == 'rooms' else _LEVELS,
    )
    for world in _WORLDS
    for kind in _PATHS
  }
  config.data.make = {
    f'{world}_{kind}': {
      **options,
      'frames': 64,
      'size': 32 if kind == _TURN else 64,
      'turn': 1.2,
      'with_depth': False,
      'paths': paths,
    }
    for world, options in _WORLDS.items()
    for kind, paths in _PATHS.items()
  }
  config.data.ramp_steps = 800
  config.train.steps = 5_000
  config.train.log_every = 50
  config.train.eval_every = 1_000
  config.train.save_every = 250
  config.eval.window = 6
  config.eval.transfer_window = 11
  return config
