"""Small stereo model that learns all six degrees of camera motion in an hour.

  pip install -e '.[vizdoom]'
  python -m xfactor.main --config=configs/laptop.py --workdir=runs/laptop

Makes missing data: procedural rooms and Freedoom levels with a camera that
turns, slides, rises and pushes ahead, 64 x 64 pixels. Windows grow from small
to large motions; training uses no cameras.
Hardware: two CPU cores, one hour; not yet run for the full hour.
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
# With all six at once, those that change the picture most hide the others for
# thousands of updates. So half of the clips have only one or two.
_PARTS = ('pan', 'pan+tilt', 'slide', 'slide+rise', 'roll', 'push')


def get_config() -> ConfigDict:
  """Returns the recipe on rooms and levels, with weights 2 : 1."""
  config = configs.small()
  config.model.update(
    features=96, encoder_layers=2, renderer_layers=3, patch_size=8
  )
  config.data.image_size = 64
  config.train.accumulate = 8
  config.data.mix = {
    f'{name}_{suffix}': configs.part(begin=3, end=8, weight=weight)
    for name, weight in (('rooms', 2), ('levels', 1))
    for suffix in ('6dof', 'parts')
  }
  config.data.make = {
    f'{name}_{suffix}': {
      **options,
      'frames': 64,
      'size': 64,
      'turn': 1.2,
      'with_depth': False,
      'paths': paths,
    }
    for name, options in _WORLDS.items()
    for suffix, paths in (
      ('6dof', '+'.join(wander.FREEDOMS)),
      ('parts', ','.join(_PARTS)),
    )
  }
  config.data.ramp_steps = 1_500
  config.train.steps = 6_000
  config.train.log_every = 50
  config.train.eval_every = 500
  config.train.save_every = 250
  config.eval.window = 7
  config.eval.transfer_window = 13
  return config
