"""Maps the parameter tree of the public XFactor code to ours and back.

Their names are those of the flax linen modules of vsitzmann/xfactor-nvs (commit
d0dd984). Their layers are separate, ours are stacked.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from xfactor.errors import UserError
from xfactor.methods.xfactor import network as xfactor_network
from xfactor.nn.functional import Functional


def _linear(theirs: str, ours: str) -> dict[str, str]:
  return {f'{theirs}/{leaf}': f'{ours}/{leaf}' for leaf in ('kernel', 'bias')}


def _mlp(theirs: str, ours: str, depth: int) -> dict[str, str]:
  names = {}
  for i in range(depth):
    names |= _linear(f'{theirs}/Dense_{i}', f'{ours}/layers/{i}')
  return names


_LAYER = {
  'LayerNorm_0/scale': 'norm_attention/scale',
  'Dense_0/kernel': 'qkv/kernel',
  'RMSNorm_0/alpha': 'norm_q/scale',
  'RMSNorm_1/alpha': 'norm_k/scale',
  'RMSNorm_2/alpha': 'norm_self_q/scale',
  'RMSNorm_3/alpha': 'norm_self_k/scale',
  **_linear('Dense_1', 'out'),
  'LayerScale_0/alpha': 'scale_attention/scale',
  'LayerNorm_1/scale': 'norm_mlp/scale',
  'LayerNorm_1/bias': 'norm_mlp/bias',
  **_mlp('MLP2_0', 'mlp', 2),
  'LayerScale_1/alpha': 'scale_mlp/scale',
}

_ENDS = {
  **_linear('PoseEnc/Dense_0', 'pose_encoder/embed'),
  'PoseEnc/global_embed': 'pose_encoder/registers',
  'PoseEnc/LayerNorm_0/scale': 'pose_encoder/trunk/norm/scale',
  'PoseEnc/LayerNorm_0/bias': 'pose_encoder/trunk/norm/bias',
  **_mlp('PoseEnc/PoseHead_0/MLP3_0', 'pose_encoder/head', 3),
  **_mlp('Render/MLP2_0', 'renderer/embed_context', 2),
  **_mlp('Render/MLP2_1', 'renderer/embed_target', 2),
  'Render/LayerNorm_0/scale': 'renderer/trunk/norm/scale',
  'Render/LayerNorm_0/bias': 'renderer/trunk/norm/bias',
  **_mlp('Render/MLP3_0', 'renderer/head', 3),
}

_STACKS = {
  'PoseEnc': 'pose_encoder/trunk/stack/layers',
  'Render': 'renderer/trunk/stack/layers',
}

# Network and name within its layers, by our name of a stack of arrays.
_STACKED = {
  f'{stack}/{ours}': (network, theirs)
  for network, stack in _STACKS.items()
  for theirs, ours in _LAYER.items()
}

_OUR_ENDS = {ours: theirs for theirs, ours in _ENDS.items()}


def to_ours(official: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames and stacks official arrays.

  Args:
    official: Arrays by path, 'PoseEnc/...' and 'Render/...'.

  Returns:
    Arrays by our slash-joined paths; layers are stacked on a new first axis.

  Raises:
    UserError: If a path is not of the official model, or a layer is missing.
  """
  ours, stacked = {}, {}
  for path, array in official.items():
    layer = re.fullmatch(r'(PoseEnc|Render)/layers_(\d+)/(.+)', path)
    if layer and layer[3] in _LAYER:
      name = f'{_STACKS[layer[1]]}/{_LAYER[layer[3]]}'
      stacked.setdefault(name, {})[int(layer[2])] = array
    elif path in _ENDS:
      ours[_ENDS[path]] = array
    else:
      raise UserError(f'{path!r} is no parameter of the official XFactor model')
  for name, by_index in stacked.items():
    if sorted(by_index) != list(range(len(by_index))):
      raise UserError(
        f'the official checkpoint lacks a layer of {name}: it has '
        f'{sorted(by_index)}'
      )
    ours[name] = np.stack([by_index[i] for i in range(len(by_index))])
  return ours


def to_official(ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Inverts `to_ours`; returns views in the order of the official tree.

  Raises:
    UserError: If a path is not a parameter of our XFactor, or of its nuisance
      latent, which the public code lacks.
  """
  official = {}
  for path, array in ours.items():
    if path in _STACKED:
      network, name = _STACKED[path]
      layers = enumerate(array)
      official |= {f'{network}/layers_{i}/{name}': layer for i, layer in layers}
    elif path in _OUR_ENDS:
      official[_OUR_ENDS[path]] = array
    elif path.startswith('nuisance/'):
      raise UserError(
        'the public code has no name for the nuisance latent of a model with '
        'config.model.nuisance_dim above 0: keep it as a run of ours'
      )
    else:
      raise UserError(f'{path!r} is no parameter of XFactor')
  return dict(sorted(official.items()))


def read_config(official: Mapping[str, np.ndarray]) -> xfactor_network.Config:
  """Returns the sizes of the model from shapes, with defaults for the rest.

  Args:
    official: Arrays by path, 'PoseEnc/...' and 'Render/...'.

  Raises:
    UserError: If an array is missing, unknown or inconsistent with the others;
      names the first.
  """

  def size(path: str, axis: int) -> int:
    shape = official[path].shape if path in official else ()
    if len(shape) != 2:
      raise UserError(f'{path} is {list(shape) or "missing"}')
    return shape[axis]

  def depth(network: str) -> int:
    found = (re.match(rf'{network}/layers_(\d+)/', path) for path in official)
    return 1 + max((int(layer[1]) for layer in found if layer), default=0)

  config = xfactor_network.Config(
    features=size('PoseEnc/Dense_0/kernel', 1),
    heads=size('PoseEnc/layers_0/RMSNorm_0/alpha', 0),
    patch_size=math.isqrt(size('PoseEnc/Dense_0/kernel', 0) // 3),
    encoder_layers=depth('PoseEnc'),
    renderer_layers=depth('Render'),
    pose_dim=size('PoseEnc/PoseHead_0/MLP3_0/Dense_2/kernel', 1),
    registers=size('PoseEnc/global_embed', 0),
  )
  functional = Functional(
    lambda rngs: xfactor_network.XFactor(config, rngs=rngs)
  )
  # Broadcast, so that they take no memory.
  expected = {
    name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    for name, leaf in functional.shapes.items()
  }
  check_same(to_official(expected), official)
  return config


def check_same(
  expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> None:
  """Raises UserError if names, shapes or dtypes of arrays differ.

  The message names the first difference and counts the others.
  """
  want, have = (
    {path: f'{x.dtype}{list(x.shape)}' for path, x in arrays.items()}
    for arrays in (expected, found)
  )
  wrong = [
    f'{path} is {have[path]} where {text} belongs'
    if path in have
    else f'{path} is missing'
    for path, text in want.items()
    if have.get(path) != text
  ]
  wrong += [f'{path} is unexpected' for path in have if path not in want]
  if wrong:
    more = f' (and {len(wrong) - 1} more such)' if len(wrong) > 1 else ''
    raise UserError(f'{wrong[0]}{more}')
