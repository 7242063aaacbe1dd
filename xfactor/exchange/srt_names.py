"""Maps parameters of the public SRT code to ours and back.

Their names are those of the state dicts of stelzner/srt with the prefix
'encoder.' or 'decoder.', their layout is that of PyTorch. Their layers are
separate, ours are stacked.
"""

import re
from collections.abc import Mapping
from typing import Any

import einops
import numpy as np

from xfactor.errors import UserError
from xfactor.exchange.xfactor_names import check_same
from xfactor.methods.srt import network as srt_network
from xfactor.nn.functional import Functional

Arrays = dict[str, np.ndarray]

# Our names to theirs, with the axes of theirs and ours.
_Names = dict[str, tuple[str, str]]

_VECTOR = 'c -> c'
_LINEAR = 'o i -> i o'


def _linear(ours: str, theirs: str) -> _Names:
  return {
    f'{ours}/kernel': (f'{theirs}.weight', _LINEAR),
    f'{ours}/bias': (f'{theirs}.bias', _VECTOR),
  }


def _norm(ours: str, theirs: str) -> _Names:
  return {
    f'{ours}/scale': (f'{theirs}.weight', _VECTOR),
    f'{ours}/bias': (f'{theirs}.bias', _VECTOR),
  }


def _mlp(ours: str, theirs: str, depth: int, step: int = 2) -> _Names:
  """Names an MLP; their indices also count the layers between linear ones."""
  names = {}
  for i in range(depth):
    names |= _linear(f'{ours}/layers/{i}', f'{theirs}.{step * i}')
  return names


_LAYER = {
  **_norm('norm_attention', '0.norm'),
  'qkv/kernel': ('0.fn.to_qkv.weight', _LINEAR),
  'q/kernel': ('0.fn.to_q.weight', _LINEAR),
  'kv/kernel': ('0.fn.to_kv.weight', _LINEAR),
  **_linear('out', '0.fn.to_out.0'),
  **_norm('norm_mlp', '1.norm'),
  **_mlp('mlp', '1.fn.net', 2, step=3),
}


def _stack(ours: str, theirs: str) -> _Names:
  """Names all layers, with a star for the number of the layer."""
  return {
    f'{ours}/stack/layers/{path}': (
      f'{theirs}.transformer.layers.*.{key}',
      axes,
    )
    for path, (key, axes) in _LAYER.items()
  }


def _volume(ours: str, theirs: str) -> _Names:
  return {
    **_stack(ours, theirs),
    **_mlp(f'{ours}/color', f'{theirs}.color_predictor', 2),
    **_mlp(f'{ours}/density', f'{theirs}.density_predictor', 2),
  }


_ENCODER = {
  'encoder/pixel_embedding': ('encoder.pixel_embedding', '1 c h w -> h w c'),
  'encoder/canonical_camera': (
    'encoder.canonical_camera_embedding',
    '1 1 c -> c',
  ),
  'encoder/other_camera': (
    'encoder.non_canonical_camera_embedding',
    '1 1 c -> c',
  ),
  # In their code a convolution.
  'encoder/project/kernel': (
    'encoder.per_patch_linear.weight',
    'o i 1 1 -> i o',
  ),
  'encoder/project/bias': ('encoder.per_patch_linear.bias', _VECTOR),
  **_stack('encoder', 'encoder'),
}
_DECODERS = {
  'srt': {
    **_stack('decoder', 'decoder.ray_predictor'),
    **_mlp('decoder/head', 'decoder.ray_predictor.output_mlp', 2),
  },
  'isrt': {
    **_mlp('decoder/query', 'decoder.allocation_transformer.input_mlp', 2),
    **_stack('decoder', 'decoder.allocation_transformer'),
    **_mlp('decoder/head', 'decoder.render_mlp', 5),
  },
  'nerf': {
    **_volume('decoder/coarse', 'decoder.coarse_net'),
    **_volume('decoder/fine', 'decoder.fine_net'),
  },
}
# Prefix of names that only the state dict of this decoder has.
_MARKS = {
  'srt': 'decoder.ray_predictor.',
  'isrt': 'decoder.allocation_transformer.',
  'nerf': 'decoder.coarse_net.',
}

_OURS = {
  theirs: (ours, axes)
  for names in (_ENCODER, *_DECODERS.values())
  for ours, (theirs, axes) in names.items()
}


def _split(name: str) -> tuple[str, int | None]:
  """Replaces the layer in one of their names by a star; returns both."""
  layer = re.search(r'(?<=\.transformer\.layers\.)\d+', name)
  if not layer:
    return name, None
  return f'{name[: layer.start()]}*{name[layer.end() :]}', int(layer[0])


def _convolution(index: int) -> str:
  """Returns their name of a convolution: two per block, each with a ReLU."""
  block, second = divmod(index, 2)
  return f'encoder.conv_blocks.{block}.layers.{2 * second}.weight'


def named_parameters(state_dict: Mapping[str, np.ndarray]) -> Arrays:
  """Returns PyTorch's `named_parameters` from a state dict of the model.

  Args:
    state_dict: Arrays by their names. Names may have the 'module.' of
      DataParallel before or after 'encoder.' and 'decoder.'.

  Returns:
    Arrays by name without 'module.', in their order. Each parameter appears
    once: 'decoder.fine_net.' is missing if it is the coarse net.
  """
  named = {
    re.sub(r'^(module\.)?((en|de)coder\.)(module\.)?', r'\2', name): array
    for name, array in state_dict.items()
  }
  fine = {
    name: name.replace('.fine_net.', '.coarse_net.')
    for name in named
    if name.startswith('decoder.fine_net.')
  }
  shared = all(
    coarse in named and np.array_equal(named[name], named[coarse])
    for name, coarse in fine.items()
  )
  if shared:
    return {name: x for name, x in named.items() if name not in fine}
  return named


def state_dict(named: Mapping[str, np.ndarray]) -> Arrays:
  """Inverts `named_parameters`: returns all names that PyTorch loads."""
  fine = {
    name.replace('.coarse_net.', '.fine_net.'): array
    for name, array in named.items()
    if name.startswith('decoder.coarse_net.')
  }
  return fine | dict(named)


def to_ours(named: Mapping[str, np.ndarray]) -> Arrays:
  """Renames, transposes and stacks arrays of the public code.

  Args:
    named: Parameters as returned by `named_parameters`, or their moments.

  Returns:
    Arrays by our slash-joined paths; layers are stacked on a new first axis.

  Raises:
    UserError: If a name is not of the public models, or a layer is missing.
  """
  ours, stacked = {}, {}
  convolutions = {
    _convolution(i): f'encoder/convs/{i}/kernel' for i in range(len(named))
  }
  for name, array in named.items():
    key, layer = _split(name)
    if name in convolutions:
      kernel = einops.rearrange(array, 'o i h w -> h w i o')
      ours[convolutions[name]] = kernel
    elif key in _OURS:
      path, axes = _OURS[key]
      turned = einops.rearrange(array, axes)
      if layer is None:
        ours[path] = turned
      else:
        stacked.setdefault(path, {})[layer] = turned
    else:
      raise UserError(f'{name} is no parameter of the public SRT model')
  for path, by_index in stacked.items():
    if sorted(by_index) != list(range(len(by_index))):
      raise UserError(
        f'the SRT checkpoint lacks a layer of {path}: it has {sorted(by_index)}'
      )
    ours[path] = np.stack([by_index[i] for i in range(len(by_index))])
  return ours


def to_public(ours: Mapping[str, np.ndarray]) -> Arrays:
  """Inverts `to_ours`; returns views of the arrays.

  Raises:
    UserError: If a path is not a parameter of our SRT.
  """
  if any(path.startswith('decoder/query/') for path in ours):
    decoder = 'isrt'
  elif any(path.startswith('decoder/coarse/') for path in ours):
    decoder = 'nerf'
  else:
    decoder = 'srt'
  names = _ENCODER | _DECODERS[decoder]
  public = {}
  for path, array in ours.items():
    convolution = re.fullmatch(r'encoder/convs/(\d+)/kernel', path)
    if convolution:
      name = _convolution(int(convolution[1]))
      public[name] = einops.rearrange(array, 'h w i o -> o i h w')
    elif path in names:
      name, axes = names[path]
      back = ' -> '.join(reversed(axes.split(' -> ')))
      if '*' in name:
        for i, layer in enumerate(array):
          public[name.replace('*', str(i))] = einops.rearrange(layer, back)
      else:
        public[name] = einops.rearrange(array, back)
    else:
      raise UserError(f'{path} is no parameter of SRT')
  return public


def read_config(
  named: Mapping[str, np.ndarray], **settings: Any
) -> srt_network.Config:
  """Returns the sizes of the model, from names and shapes.

  Args:
    named: Parameters as returned by `named_parameters`.
    **settings: Model settings that do not follow from shapes: heads (12 in the
      public code), the first octave of positions, samples and distances. The
      defaults are those of the published SRT.

  Raises:
    UserError: If an array is missing, unknown or inconsistent with the others;
      names the first. If heads do not divide the features.
  """

  def size(name: str, axis: int, ndim: int) -> int:
    shape = named[name].shape if name in named else ()
    if len(shape) != ndim:
      raise UserError(f'{name} is {list(shape) or "missing"}')
    return shape[axis]

  def depth(pattern: str) -> int:
    found = (re.match(pattern, name) for name in named)
    return 1 + max((int(index[1]) for index in found if index), default=-1)

  decoders = [
    decoder
    for decoder, mark in _MARKS.items()
    if any(name.startswith(mark) for name in named)
  ]
  sizes = {
    'encoder': 'isrt',
    'decoder': decoders[0] if decoders else 'srt',
    'features': size('encoder.per_patch_linear.weight', 0, 4),
    'mlp_features': size(
      'encoder.transformer.layers.0.1.fn.net.0.weight', 0, 2
    ),
    'conv_blocks': depth(r'encoder\.conv_blocks\.(\d+)\.'),
    'conv_features': size(_convolution(0), 0, 4),
    'encoder_layers': depth(r'encoder\.transformer\.layers\.(\d+)\.'),
    'decoder_layers': depth(r'decoder\..*transformer\.layers\.(\d+)\.'),
    'fine_net': any(name.startswith('decoder.fine_net.') for name in named),
  }
  if any(re.match(r'encoder\.\w+_embedding$', name) for name in named):
    sizes |= {
      'encoder': 'srt',
      'rows': size('encoder.pixel_embedding', 2, 4),
      'columns': size('encoder.pixel_embedding', 3, 4),
    }
  config = srt_network.Config(**{**settings, **sizes})
  functional = Functional(lambda rngs: srt_network.SRT(config, rngs=rngs))
  # Broadcast, so that they take no memory.
  expected = {
    path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    for path, leaf in functional.shapes.items()
  }
  check_same(to_public(expected), named)
  return config
