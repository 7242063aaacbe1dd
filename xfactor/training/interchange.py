"""Checkpoints of other formats to ours and back.

The public XFactor code (vsitzmann/xfactor-nvs, commit d0dd984) saves its whole
train state by clu.checkpoint: flax msgpack in `checkpoints-0/ckpt-N.flax`, and
a text file `checkpoint` that names the latest. The public SRT code saves its
own by torch.save: `model.pt`, beside its recipe; see srt_import.
Safetensors files hold parameters alone, by the public codes' names with dots.

A source's format is told by its content. Whatever it is becomes a `Snapshot`,
and a snapshot can be written in any format; but PyTorch's is only read, for
whoever has PyTorch can load safetensors into the public SRT.
"""

import contextlib
import copy
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax
import msgpack
import numpy as np
import optax
import safetensors
import safetensors.numpy
from etils import epath
from flax import serialization, traverse_util
from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.data import records, torch_file
from xfactor.errors import UserError
from xfactor.models import official, srt, srt_public, xfactor
from xfactor.training import build as builds
from xfactor.training import srt_import
from xfactor.training.checkpoint import Checkpoints
from xfactor.training.state import TrainState

Arrays = dict[str, np.ndarray]

FORMATS = ('ours', 'official', 'safetensors')

# Settings of XFactor that its arrays do not tell.
_NOT_IN_ARRAYS = (
  *('dtype', 'attention', 'remat', 'position_grid'),
  *('layer_scale', 'tie_qk', 'pose_gain'),
)

# Beside our checkpoints: what of an official one has no place in them.
REST = 'official_rest.msgpack'

_NAMES = {'xfactor': 'XFactor', 'srt': 'SRT'}
_TO_PUBLIC = {'xfactor': official.to_official, 'srt': srt_public.to_public}

# torch.save's magic number, before PyTorch 1.6.
_LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9'

_ADAM = 'opt_state/inner_opt_state/1/0'
_COUNTS = (
  'opt_state/gradient_step',
  f'{_ADAM}/count',
  'opt_state/inner_opt_state/1/2/count',
)
# Where the official tree has the arrays that are ours, too.
_PREFIXES = {
  'params': 'params/',
  'mu': f'{_ADAM}/mu/',
  'nu': f'{_ADAM}/nu/',
}
_COUNTERS = ('step', 'multi_steps', 'opt_state/mini_step', *_COUNTS)
_ASIDE = {
  'counters': '|'.join(_COUNTERS),
  'gradient accumulators': 'opt_state/acc_grads/.+',
  'LPIPS weights': 'lpips_params/.+',
  'metrics': r'(train|eval)_metrics/\w+',
  'random key': 'key',
}
_METRICS = (
  'train_metrics/count',
  'train_metrics/max_grads',
  'train_metrics/max_updates',
  'train_metrics/mean_grads',
  'train_metrics/mean_updates',
  'train_metrics/train_l1_loss',
  'train_metrics/train_loss',
  'train_metrics/train_lpips_loss',
  'eval_metrics/count',
  'eval_metrics/eval_l1_loss',
  'eval_metrics/eval_loss',
  'eval_metrics/eval_lpips_loss',
)


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """A checkpoint between two formats.

  Attributes:
    facts: What was read, for people.
    recipe: Of the source, as far as it is known; of its family.
    model: Sizes of the networks.
    step: Updates done, which set the learning rate.
    updates: That Adam counts.
    params: Our names to float32 arrays.
    mu: Adam's first moments, by the same names; None of a run with Muon.
    nu: Adam's second moments, likewise.
    rest: The official checkpoint's slash-joined paths to what is kept aside,
      in its order, with None for the arrays above; None if there never was one.
  """

  facts: dict[str, str]
  recipe: ConfigDict
  model: xfactor.Config | srt.Config
  step: int
  updates: int
  params: Arrays
  mu: Arrays | None
  nu: Arrays | None
  rest: dict[str, Any] | None


def convert(
  source: epath.PathLike,
  out: epath.PathLike,
  *,
  to: str = 'ours',
  config: ConfigDict | None = None,
  contexts: int | None = None,
  image_size: int | None = None,
  overwrite: bool = False,
) -> dict[str, str]:
  """Reads a checkpoint of any format and writes it in another.

  Args:
    source: A file, a run of ours, a folder `checkpoints-0` or its parent, or
      one with `model.pt`.
    out: The new run's folder for 'ours'; otherwise a file, or a folder to put
      `checkpoints-0` or `model.safetensors` into.
    to: One of FORMATS.
    config: The recipe of a run of ours; sizes of the networks that arrays tell
      are put into it. If None, what is known of the source's.
    contexts: Views given, for the same.
    image_size: Pixels along a side, for the same.
    overwrite: Whether to replace what is there.

  Returns:
    What was read and written, for people.

  Raises:
    UserError: If the source is missing, damaged or of another model, or if
      there is a checkpoint already.
  """
  source, out = epath.Path(source), epath.Path(out)
  target = _target(out, to)
  if to == 'ours' and _is_run(source):
    raise UserError(
      f'{source} is a run of ours already: give --to=official or '
      '--to=safetensors'
    )
  if not overwrite and _is_taken(target):
    raise UserError(
      f'{target} is there already: give another --out, or --overwrite to '
      'replace it'
    )
  snapshot = read(source, config)
  if to == 'official' and snapshot.recipe.family != 'xfactor':
    raise UserError(
      f'{source} is of SRT, which is not written as its public code does: give '
      '--to=safetensors'
    )
  if contexts is not None:
    snapshot.recipe.data.contexts = contexts
  if image_size is not None:
    snapshot.recipe.data.update(image_size=image_size, image_width=None)
  try:
    if to == 'ours':
      wrote = _write_run(snapshot, out)
    elif to == 'official':
      wrote = _write_official(snapshot, target)
    else:
      wrote = _write_safetensors(snapshot, target)
  except OSError as e:
    raise UserError(f'cannot write {target}: {e}') from e
  return snapshot.facts | wrote


def _target(out: epath.Path, to: str) -> epath.Path:
  """The file or folder that holds the arrays."""
  if to == 'ours':
    return out / 'checkpoints'
  if to == 'official':
    return out if out.suffix == '.flax' else out / 'checkpoints-0'
  return out if out.suffix == '.safetensors' else out / 'model.safetensors'


def _clear(target: epath.Path) -> None:
  """Makes place; files are replaced when their successors are complete."""
  if target.is_dir():
    target.rmtree()


def _is_taken(target: epath.Path) -> bool:
  return any(target.iterdir()) if target.is_dir() else target.exists()


def _is_run(source: epath.Path) -> bool:
  return (source / 'checkpoints').is_dir()


# -------------------------------------------------------------------- reading


def read(source: epath.PathLike, config: ConfigDict | None = None) -> Snapshot:
  """Reads a checkpoint, whatever its format; arguments as of `convert`.

  Raises:
    UserError: If it is missing, damaged, or of another model: names the first
      array that is missing, unexpected or of another shape.
  """
  path = epath.Path(source)
  try:
    if _is_run(path):
      return _read_run(path)
    if path.is_dir():
      path = _latest(path)
    elif not path.exists():
      raise UserError(f'there is no {path}: give the right --source')
    with path.open('rb') as f:
      head = f.read(9)
    if head[8:] == b'{' and int.from_bytes(head[:8], 'little') <= 100_000_000:
      return _read_safetensors(path, config)
    if head.startswith((b'PK', _LEGACY_TORCH)):
      return _read_torch(path, config)
    if head[:1] and head[0] >> 4 == 0x8:  # msgpack's small map.
      return _read_official(path, config)
  except OSError as e:
    raise UserError(f'cannot read {path}: {e}') from e
  raise UserError(
    f'{path} is of no known format: give a .flax file of the public XFactor '
    'code, a .pt file of the public SRT code, a .safetensors file, or a run of '
    'ours'
  )


def _latest(folder: epath.Path) -> epath.Path:
  """The file that clu's text file `checkpoint` names, or model.pt."""
  if (folder / 'model.pt').exists():
    return folder / 'model.pt'
  if (folder / 'checkpoints-0').is_dir():
    folder = folder / 'checkpoints-0'
  names = folder / 'checkpoint'
  if not names.exists():
    raise UserError(
      f'{folder} holds no checkpoint that is known: neither a folder '
      'checkpoints (ours) nor a file checkpoint or model.pt (the public code) '
      'is in it'
    )
  latest = re.search(r'^model_checkpoint_path: "(.+)"', names.read_text(), re.M)
  # The path may be absolute, of the machine that it was trained on.
  path = folder / f'{latest[1].split("/")[-1]}.flax' if latest else names
  if not latest or not path.exists():
    raise UserError(
      f'{names} names no .flax file that is there: give one as --source'
    )
  return path


@contextlib.contextmanager
def _naming(path: epath.Path, family: str = 'xfactor') -> Iterator[None]:
  """Says in which file something is wrong."""
  try:
    yield
  except UserError as e:
    raise UserError(
      f'{path} is no complete {_NAMES[family]} checkpoint: {e}'
    ) from e


def _recipe(family: str, config: ConfigDict | None) -> ConfigDict:
  """The recipe given, or the family's defaults."""
  if config is None:
    return configs.base(family)
  if config.family != family:
    raise UserError(
      f'the checkpoint is of {_NAMES[family]}, the recipe of '
      f'config.family={config.family!r}: give another --config'
    )
  return copy.deepcopy(config)


def _read_xfactor(params: Arrays, recipe: ConfigDict) -> xfactor.Config:
  """Sizes read off the arrays, with the recipe's other settings."""
  return dataclasses.replace(
    official.read_config(params),
    **{key: recipe.model[key] for key in _NOT_IN_ARRAYS},
  )


def _read_msgpack(path: epath.Path) -> dict[str, Any]:
  """A flax msgpack file as slash-joined paths to leaves."""
  try:
    tree = serialization.msgpack_restore(path.read_bytes())
    return traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep='/')
  except (ValueError, TypeError, KeyError) as e:
    raise UserError(
      f'{path} is damaged or incomplete ({e}): fetch it again'
    ) from e


def _read_official(path: epath.Path, config: ConfigDict | None) -> Snapshot:
  recipe = _recipe('xfactor', config)
  if recipe.model.position_grid:
    raise UserError(
      f'{path} is of the public code, whose tokens have no positions added: '
      'give a --config with config.model.position_grid=0, not '
      f'{recipe.model.position_grid}'
    )
  rest = _read_msgpack(path)
  taken = {key: {} for key in _PREFIXES}
  for name in rest:
    for key, prefix in _PREFIXES.items():
      if name.startswith(prefix):
        taken[key][name.removeprefix(prefix)] = np.asarray(rest[name])
        rest[name] = None
  with _naming(path):
    model = _read_xfactor(taken['params'], recipe)
    for key in ('mu', 'nu'):
      official.check_same(taken['params'], taken[key])
    aside = _aside(rest)
    step = _updates(rest)
  arrays = len(taken['params'])
  # One after the other, so that no more than one is there twice.
  ours = {key: official.to_ours(taken.pop(key)) for key in _PREFIXES}
  facts = {
    'read': f'{path} (flax msgpack of the public code)',
    **_sizes(model, ours['params'], arrays),
    'moments': f'mu and nu, {arrays} arrays each',
    'step': f'{step} updates, {int(rest["step"])} steps of its loop, '
    f'{int(rest["multi_steps"])} to an update',
    'kept aside': ', '.join(f'{n} {kind}' for kind, n in aside.items()),
  }
  unfinished = int(rest['opt_state/mini_step']) or any(
    np.any(x) for name, x in rest.items() if name.startswith('opt_state/acc')
  )
  if unfinished:
    facts['left out'] = 'the gradients of an update that was not finished'
  return Snapshot(facts, recipe, model, step, step, **ours, rest=rest)


def _aside(rest: dict[str, Any]) -> Counter[str]:
  """Counts what has no place in our state, by kind."""
  counts = Counter()
  for name, leaf in rest.items():
    if leaf is None or leaf is traverse_util.empty_node:
      continue
    for kind, pattern in _ASIDE.items():
      if re.fullmatch(pattern, name):
        counts[kind] += 1
        break
    else:
      raise UserError(f'{name} is unexpected')
  return counts


def _updates(rest: dict[str, Any]) -> int:
  """The optimizer updates done, on which all counts must agree."""
  for name in _COUNTERS:
    if name not in rest:
      raise UserError(f'{name} is missing')
  counts = {name: int(rest[name]) for name in _COUNTS}
  if len(set(counts.values())) > 1:
    raise UserError(f'counts of updates differ: {counts}')
  return counts[_COUNTS[0]]


def _sizes(
  model: xfactor.Config | srt.Config, params: Arrays, arrays: int
) -> dict[str, str]:
  """Facts about the model; `arrays` is how many those of the source were."""
  count = sum(x.size for x in params.values())
  if isinstance(model, srt.Config):
    sizes = (
      f'encoder {model.encoder}, decoder {model.decoder}, features '
      f'{model.features}, heads {model.heads} + {model.decoder_heads}, '
      f'mlp_features {model.mlp_features}, conv_blocks {model.conv_blocks}, '
      f'layers {model.encoder_layers} + {model.decoder_layers}'
    )
  else:
    sizes = (
      f'features {model.features}, heads {model.heads}, patch_size '
      f'{model.patch_size}, layers {model.encoder_layers} + '
      f'{model.renderer_layers}, pose_dim {model.pose_dim}, registers '
      f'{model.registers}'
    )
  return {'model': sizes, 'parameters': f'{count:,} in {arrays} arrays'}


def _zeros(params: Arrays) -> Arrays:
  return {name: np.zeros(x.shape, x.dtype) for name, x in params.items()}


def _read_torch(path: epath.Path, config: ConfigDict | None) -> Snapshot:
  content = torch_file.load(path)
  beside = path.parent / srt_import.RECIPE
  known = config is None and beside.exists()
  recipe = srt_import.read_recipe(beside) if known else _recipe('srt', config)
  with _naming(path, 'srt'):
    run = srt_import.read(content, **recipe.model)
  if known:
    told = {'recipe': f'{beside}; its code has 12 heads'}
  else:
    told = _complete(recipe, run.model, config)
  params = srt_public.to_ours(run.named)
  facts = {
    'read': f'{path} (torch.save of the public code)',
    **_sizes(run.model, params, len(run.named)),
    'moments': f'exp_avg and exp_avg_sq, {len(run.named)} arrays each',
    'step': f'{run.iterations} iterations, {run.updates} updates of Adam',
    **told,
    'left out': ', '.join(f'{key} {value}' for key, value in run.rest.items()),
  }
  return Snapshot(
    facts,
    recipe,
    run.model,
    run.iterations,
    run.updates,
    params,
    srt_public.to_ours(run.mu),
    srt_public.to_ours(run.nu),
    rest=None,
  )


def _complete(
  recipe: ConfigDict, model: srt.Config, config: ConfigDict | None
) -> dict[str, str]:
  """Makes a recipe that was not given go with the sizes; facts about it."""
  if config is not None:
    return {'recipe': 'as given, with sizes of the arrays'}
  if model.encoder == 'srt':
    cell = 2**model.conv_blocks
    height, width = model.rows * cell, model.columns * cell
    recipe.data.update(image_size=height, image_width=width)
    recipe.objective.rays = min(recipe.objective.rays, height * width)
  return {
    'assumed': f'heads {model.heads} + {model.decoder_heads}, start_octave '
    f'{model.start_octave}, distances {model.min_dist:g} to '
    f'{model.max_dist:g}, pictures, coordinates and all else that the arrays '
    'do not tell: give --config where they are others'
  }


def _read_safetensors(path: epath.Path, config: ConfigDict | None) -> Snapshot:
  data = path.read_bytes()
  try:
    dotted = safetensors.numpy.load(data)
  except safetensors.SafetensorError as e:
    raise UserError(
      f'{path} is damaged or incomplete ({e}): fetch it again'
    ) from e
  except KeyError as e:  # A type that NumPy lacks.
    raise UserError(
      f'{path} holds arrays of type {e.args[0]}: save them as F32'
    ) from e
  if any(name.startswith(('encoder.', 'decoder.')) for name in dotted):
    recipe = _recipe('srt', config)
    if config is None:
      _put_model(recipe, _written_model(data))
    named = srt_public.named_parameters(dotted)
    with _naming(path, 'srt'):
      model = srt_public.read_config(named, **recipe.model)
    told = _complete(recipe, model, config)
    params = srt_public.to_ours(named)
  else:
    recipe = _recipe('xfactor', config)
    written = _written_model(data)
    _put_model(recipe, {k: written[k] for k in _NOT_IN_ARRAYS if k in written})
    named = {name.replace('.', '/'): array for name, array in dotted.items()}
    with _naming(path):
      model = _read_xfactor(named, recipe)
    params, told = official.to_ours(named), {}
  facts = {
    'read': f'{path} (safetensors)',
    **_sizes(model, params, len(named)),
    'moments': 'none there: zero, and the step is 0',
    **told,
  }
  return Snapshot(
    facts,
    recipe,
    model,
    0,
    0,
    params,
    _zeros(params),
    _zeros(params),
    rest=None,
  )


def _written_model(data: bytes) -> dict[str, Any]:
  """The model that `_write_safetensors` put into the header, if it did."""
  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
  return json.loads(header.get('__metadata__', {}).get('model', '{}'))


def _put_model(recipe: ConfigDict, model: Mapping[str, Any]) -> None:
  """Older and newer versions may have other settings."""
  known = {key: value for key, value in model.items() if key in recipe.model}
  recipe.model.update(known)


def _read_run(workdir: epath.Path) -> Snapshot:
  with contextlib.closing(Checkpoints(workdir, create=False)) as checkpoints:
    state, meta = checkpoints.read()
    folder = checkpoints.folder
  step, params = int(state['step']), state['params']
  family = meta['config'].get('family', 'xfactor')
  recipe = configs.base(family)
  _put_model(recipe, meta['config']['model'])
  with _naming(workdir, family):
    theirs = _TO_PUBLIC[family](params)
    model = (
      srt_public.read_config(theirs, **recipe.model)
      if family == 'srt'
      else _read_xfactor(theirs, recipe)
    )
  moments = {'mu': None, 'nu': None}
  recipe.optimizer.name = meta['config']['optimizer'].get('name', 'adamw')
  if recipe.optimizer.name == 'adamw':
    moments = {
      key: optax.tree_utils.tree_get(state['opt_state'], key) for key in moments
    }
  rest = workdir / REST
  facts = {
    'read': f'{folder / str(step)} (ours)',
    **_sizes(model, params, len(theirs)),
    'step': f'{step} updates',
  }
  return Snapshot(
    facts,
    recipe,
    model,
    step,
    step,
    params,
    **moments,
    rest=_read_msgpack(rest) if rest.exists() else None,
  )


# -------------------------------------------------------------------- writing


def _write_run(snapshot: Snapshot, workdir: epath.Path) -> dict[str, str]:
  """Writes a run that can be gone on with, evaluated or started from."""
  config = snapshot.recipe
  if config.optimizer.name != 'adamw':
    raise UserError(
      'an imported run goes on with the moments of AdamW: give a --config with '
      'config.optimizer.name="adamw", and start a run with '
      f'{config.optimizer.name!r} from it by config.init_from'
    )
  config.model.update(dataclasses.asdict(snapshot.model))
  abstract = builds.build(config, jax.devices()[:1]).abstract_state()
  opt_state = optax.tree_utils.tree_set(
    abstract.opt_state,
    mu=snapshot.mu,
    nu=snapshot.nu,
    count=np.asarray(snapshot.step, np.int32),
  )
  opt_state = optax.tree_utils.tree_set(
    opt_state,
    lambda path, _: path[-1].tuple_name == 'ScaleByAdamState',
    count=np.asarray(snapshot.updates, np.int32),
  )
  step = np.asarray(snapshot.step, np.int32)
  rest = workdir / REST
  _clear(_target(workdir, 'ours'))
  rest.unlink(missing_ok=True)
  if snapshot.rest is not None:
    with _whole(rest) as f:
      _write_msgpack(f, traverse_util.unflatten_dict(snapshot.rest, sep='/'))
  with contextlib.closing(Checkpoints(workdir)) as checkpoints:
    checkpoints.save(
      TrainState(step, snapshot.params, opt_state),
      # Nothing is known of its data: whoever goes on has to allow a change.
      {
        'config': json.loads(config.to_json_best_effort()),
        'data': {'parts': []},
      },
    )
    checkpoints.wait()
    wrote = checkpoints.folder / str(snapshot.step)
  facts = {'wrote': f'{wrote} (ours)'}
  if snapshot.rest is not None:
    facts['kept in'] = str(rest)
  return facts


def _write_official(snapshot: Snapshot, target: epath.Path) -> dict[str, str]:
  """Writes what the public code's clu.checkpoint.load_state_dict reads.

  Without a rest from an import it is made up. The arrays of a checkpoint that
  was imported and not trained on come back bit for bit.
  """
  if snapshot.model.position_grid:
    raise UserError(
      f'a model with config.model.position_grid={snapshot.model.position_grid} '
      'cannot be written for the public code, which adds no positions to '
      'tokens: give --to=safetensors'
    )
  if snapshot.mu is None:
    raise UserError(
      f'the run was trained with config.optimizer.name='
      f'{snapshot.recipe.optimizer.name!r}, whose moments the public code does '
      'not have: give --to=safetensors'
    )
  theirs = {
    f'{prefix}{name}': array
    for key, prefix in _PREFIXES.items()
    for name, array in official.to_official(getattr(snapshot, key)).items()
  }
  facts = {}
  flat = snapshot.rest
  if flat is None:
    flat = _fresh(theirs)
    facts['made up'] = (
      'zero accumulators and metrics, the key of seed 0, no LPIPS weights'
    )
  if {name for name, leaf in flat.items() if leaf is None} != theirs.keys():
    raise UserError(
      f'{REST} is of another model than the checkpoints beside it: move it away'
    )
  flat = _at_step(flat, snapshot.step) | theirs
  single = target.suffix == '.flax'
  path = target if single else target / 'ckpt-1.flax'
  _clear(target)
  with _whole(path) as f:
    _write_msgpack(f, traverse_util.unflatten_dict(flat, sep='/'))
  if not single:
    (target / 'checkpoint').write_text(
      'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-1"\n'
    )
  if snapshot.model.registers != 32:
    facts['beware'] = (
      f'for {snapshot.model.registers} registers the public PoseEnc must be '
      f'given block_size={2 * snapshot.model.registers}'
    )
  return facts | {'wrote': f'{path} (flax msgpack of the public code)'}


def _fresh(theirs: Arrays) -> dict[str, Any]:
  """The rest of an official checkpoint of nothing done yet."""
  empty, zero = traverse_util.empty_node, np.zeros((), np.int32)
  params, moments = {}, {}
  for name in theirs:
    (params if name.startswith('params/') else moments)[name] = None
  accumulators = {
    name.replace('params', 'opt_state/acc_grads', 1): theirs[name]
    for name in params
  }
  return {
    'step': zero,
    'opt_state/mini_step': zero,
    'opt_state/gradient_step': zero,
    'opt_state/inner_opt_state/0': empty,
    f'{_ADAM}/count': zero,
    **moments,
    'opt_state/inner_opt_state/1/1/inner_state': empty,
    'opt_state/inner_opt_state/1/2/count': zero,
    **_zeros(accumulators),
    'opt_state/skip_state': empty,
    **params,
    'lpips_params': empty,
    'key': np.zeros(2, np.uint32),
    'multi_steps': np.ones((), np.int32),
    **dict.fromkeys(_METRICS, np.zeros((), np.float32)),
  }


def _at_step(rest: dict[str, Any], step: int) -> dict[str, Any]:
  """The rest after training on to `step` updates, or unchanged."""
  done = step - int(rest['opt_state/gradient_step'])
  if not done:
    return rest
  mini_step = int(rest['opt_state/mini_step'])
  micro = int(rest['step']) - mini_step + done * int(rest['multi_steps'])
  counters = {'step': micro, 'opt_state/mini_step': 0}
  counters |= dict.fromkeys(_COUNTS, step)
  accumulators = {
    name: x for name, x in rest.items() if name.startswith('opt_state/acc')
  }
  return (
    rest
    | {name: np.asarray(n, np.int32) for name, n in counters.items()}
    | _zeros(accumulators)
  )


def _write_safetensors(snapshot: Snapshot, path: epath.Path) -> dict[str, str]:
  theirs = _TO_PUBLIC[snapshot.recipe.family](snapshot.params)
  if snapshot.recipe.family == 'srt':
    theirs = srt_public.state_dict(theirs)
  data = safetensors.numpy.save(
    {
      name.replace('/', '.'): np.ascontiguousarray(array)
      for name, array in theirs.items()
    },
    {
      'model': json.dumps(dataclasses.asdict(snapshot.model)),
      'step': str(snapshot.step),
    },
  )
  with _whole(path) as f:
    f.write(data)
  return {'wrote': f'{path} (safetensors, parameters alone)'}


def _write_msgpack(file: BinaryIO, tree: Any) -> None:
  """`flax.serialization.msgpack_serialize`, an array at a time."""
  if isinstance(tree, dict):
    file.write(msgpack.Packer().pack_map_header(len(tree)))
    for key, value in tree.items():
      file.write(msgpack.packb(key))
      _write_msgpack(file, value)
  else:
    file.write(serialization.msgpack_serialize(tree, in_place=True))


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[BinaryIO]:
  """Opens a file to write, which gets its name only when complete."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + records.partial_suffix())
  with partial.open('wb') as f:
    yield f
  partial.replace(path)
