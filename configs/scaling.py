"""Members of `tools/benchmark.py scaling`: when do poses start to transfer?

  python -m xfactor.main --config=configs/scaling.py:MEMBER --workdir=...

The first command's model and rooms (stored at 64 x 64 pixels), and changes of
one setting at a time. `published` has the published initialization, positions
and optimizer at the same size, `published_128` at a width of 128. Hardware: two
CPU cores, minutes per member. docs/learning.md has the results of five members.
"""

from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.errors import UserError

_PUBLISHED = {
  'model.tie_qk': False,
  'model.layer_scale': 0.01,
  'model.pose_gain': 1.0,
  'model.position_grid': 0,
  'optimizer.name': 'adamw',
  'optimizer.learning_rate': 4e-4,
  'optimizer.final_learning_rate': 1e-4,
}
_WIDE = {'model.features': 128, 'model.heads': 8}
# Changes of each member to `base`.
MEMBERS = {
  'base': {},
  'published': _PUBLISHED,
  'width_128': _WIDE,
  'published_128': _PUBLISHED | _WIDE,
  'width_256': {'model.features': 256, 'model.heads': 16},
  'depth_4': {'model.encoder_layers': 4, 'model.renderer_layers': 4},
  'batch_64': {'data.batch': 64, 'train.accumulate': 8},
  'pixels_24': {'data.image_size': 24},
  'pixels_48': {'data.image_size': 48, 'model.position_grid': 12},
  'pixels_64_patch_8': {'data.image_size': 64, 'model.patch_size': 8},
}


def get_config(member: str = 'base') -> ConfigDict:
  """Returns the recipe of a member."""
  if member not in MEMBERS:
    raise UserError(
      f'configs/scaling.py:{member}: choose from {", ".join(MEMBERS)}'
    )
  config = configs.beside(__file__, 'tiny')
  name = 'rooms_turn'
  config.data.mix = {name: configs.part(begin=3, end=8)}
  rooms = configs.beside(__file__, 'laptop').data.make[name].to_dict()
  config.data.make = {name: rooms | {'size': 64}}
  config.eval.examples = config.eval.pairs = 32
  config.update_from_flattened_dict(MEMBERS[member])
  return config
