"""A small stereo model that learns all six motions of a camera in an hour.

  pip install -e '.[vizdoom]'
  python -m xfactor.main --config=configs/laptop.py --workdir=runs/laptop

Makes its data where they are missing: procedural rooms and levels of Freedoom
through which a camera turns, slides, rises and pushes ahead, 64 x 64 pixels.
Clips in which the camera only turns come first, the others join them; windows
grow from small motions to large ones. No cameras are given.
Hardware: two CPU cores, one hour. After 3,668 updates pan had only begun to
turn; docs/learning.md has the numbers.
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
# thousands of updates. So turning comes first, and two thirds of the later
# clips move in few freedoms.
_TURN, _ALL = 'turn', '6dof'
_PATHS = {
  _TURN: 'pan,pan+tilt',
  'parts': 'pan,pan+tilt,slide,slide+rise,roll,push',
  _ALL: '+'.join(wander.FREEDOMS),
}
_TURNING = 1_500  # Updates before the other motions.


def get_config() -> ConfigDict:
  """Returns the recipe: rooms and levels, two to one."""
  config = configs.small()
  config.model.update(
    features=96, encoder_layers=2, renderer_layers=3, patch_size=8
  )
  config.data.image_size = 64
  config.train.accumulate = 8
  config.data.mix = {
    f'{world}_{kind}': configs.part(
      begin=3,
      end=8 if kind == _TURN else 6,
      weight=weight,
      start=0 if kind == _TURN else _TURNING,
    )
    for world, weight in (('rooms', 2), ('levels', 1))
    for kind in _PATHS
  }
  config.data.make = {
    f'{world}_{kind}': {
      **options,
      'frames': 64,
      'size': 64,
      'turn': 1.2,
      'with_depth': False,
      'paths': paths,
    }
    for world, options in _WORLDS.items()
    for kind, paths in _PATHS.items()
  }
  config.data.ramp_steps = 3_000
  config.train.steps = 8_000
  config.train.log_every = 50
  config.train.eval_every = 2_000
  config.train.save_every = 250
  config.eval.window = 6
  config.eval.transfer_window = 11
  return config
