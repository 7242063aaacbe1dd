"""Maps the public XFactor code's parameter tree to ours and back.

The names on the left are those that flax linen gave the modules of
vsitzmann/xfactor-nvs (commit d0dd984); its layers are separate, ours stacked.
"""

import re
from collections.abc import Mapping

import numpy as np

from xfactor.errors import UserError

_LAYER = {
  'LayerNorm_0/scale': 'norm_attention/scale',
  'Dense_0/kernel': 'qkv/kernel',
  'RMSNorm_0/alpha': 'norm_q/scale',
  'RMSNorm_1/alpha': 'norm_k/scale',
  'RMSNorm_2/alpha': 'norm_self_q/scale',
  'RMSNorm_3/alpha': 'norm_self_k/scale',
  'Dense_1/kernel': 'out/kernel',
  'Dense_1/bias': 'out/bias',
  'LayerScale_0/alpha': 'scale_attention/scale',
  'LayerNorm_1/scale': 'norm_mlp/scale',
  'LayerNorm_1/bias': 'norm_mlp/bias',
  'MLP2_0/Dense_0/kernel': 'mlp/layers/0/kernel',
  'MLP2_0/Dense_0/bias': 'mlp/layers/0/bias',
  'MLP2_0/Dense_1/kernel': 'mlp/layers/1/kernel',
  'MLP2_0/Dense_1/bias': 'mlp/layers/1/bias',
  'LayerScale_1/alpha': 'scale_mlp/scale',
}

_NETWORKS = {'PoseEnc': 'pose_encoder', 'Render': 'renderer'}

_ENDS = (
  (r'PoseEnc/Dense_0/(\w+)', r'pose_encoder/embed/\1'),
  (r'PoseEnc/global_embed', r'pose_encoder/registers'),
  (r'PoseEnc/PoseHead_0/MLP3_0/Dense_(\d)', r'pose_encoder/head/layers/\1'),
  (r'Render/MLP2_0/Dense_(\d)', r'renderer/embed_context/layers/\1'),
  (r'Render/MLP2_1/Dense_(\d)', r'renderer/embed_target/layers/\1'),
  (r'Render/MLP3_0/Dense_(\d)', r'renderer/head/layers/\1'),
  (r'PoseEnc/LayerNorm_0', r'pose_encoder/trunk/norm'),
  (r'Render/LayerNorm_0', r'renderer/trunk/norm'),
)


def to_ours(official: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames and stacks official arrays.

  Args:
    official: 'PoseEnc/...' and 'Render/...' paths to arrays.

  Returns:
    Our slash-joined paths to arrays; layers are stacked on a new first axis.

  Raises:
    UserError: If a path is none of the official model's or a layer is missing.
  """
  ours, stacked = {}, {}
  for path, array in official.items():
    layer = re.fullmatch(r'(PoseEnc|Render)/layers_(\d+)/(.+)', path)
    if layer and layer[3] in _LAYER:
      network = _NETWORKS[layer[1]]
      name = f'{network}/trunk/stack/layers/{_LAYER[layer[3]]}'
      stacked.setdefault(name, {})[int(layer[2])] = array
    else:
      ours[_rename_end(path)] = array
  for name, by_index in stacked.items():
    if sorted(by_index) != list(range(len(by_index))):
      raise UserError(
        f'the official checkpoint lacks a layer of {name}: it has '
        f'{sorted(by_index)}'
      )
    ours[name] = np.stack([by_index[i] for i in range(len(by_index))])
  return ours


def _rename_end(path: str) -> str:
  for pattern, name in _ENDS:
    if re.match(pattern, path):
      return re.sub(pattern, name, path)
  raise UserError(f'{path!r} is no parameter of the official XFactor model')
