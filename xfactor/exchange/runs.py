"""Reads and writes checkpoints of our own runs."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import optax
from etils import epath
from flax import traverse_util

from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.exchange import official_xfactor, safetensors, srt_names
from xfactor.exchange import snapshot as snapshot_lib
from xfactor.training import build as builds
from xfactor.training.resilience.checkpoints import Checkpoints
from xfactor.training.state import TrainState


def read_run(workdir: epath.Path) -> snapshot_lib.Snapshot:
  with contextlib.closing(Checkpoints(workdir, create=False)) as checkpoints:
    state, meta = checkpoints.read()
    folder = checkpoints.folder
  step, params = int(state['step']), state['params']
  method = configs.upgraded(meta['config'])['method']
  if method not in safetensors.TO_PUBLIC:
    raise UserError(
      f'{workdir} is a run of config.method={method!r}, which no other format '
      'has: give a run of XFactor or SRT'
    )
  recipe = configs.base(method)
  safetensors.put_model(recipe, meta['config']['model'])
  with snapshot_lib.naming(workdir, method):
    theirs = safetensors.TO_PUBLIC[method](params)
    model = (
      srt_names.read_config(theirs, **recipe.model)
      if method == 'srt'
      else snapshot_lib.read_xfactor(theirs, recipe)
    )
  moments = {'mu': None, 'nu': None}
  recipe.optimizer.name = meta['config']['optimizer'].get('name', 'adamw')
  if recipe.optimizer.name == 'adamw':
    moments = {
      key: optax.tree_utils.tree_get(state['opt_state'], key) for key in moments
    }
  rest = workdir / official_xfactor.REST
  facts = {
    'read': f'{folder / str(step)} (ours)',
    **snapshot_lib.sizes(model, params, len(theirs)),
    'step': f'{step} updates',
  }
  return snapshot_lib.Snapshot(
    facts,
    recipe,
    model,
    step,
    step,
    params,
    **moments,
    rest=official_xfactor.read_msgpack(rest) if rest.exists() else None,
    ema=state.get('ema') or None,
  )


def write_run(
  snapshot: snapshot_lib.Snapshot, workdir: epath.Path
) -> dict[str, str]:
  """Writes a run that can be resumed, evaluated or used by init_from."""
  config = snapshot.recipe
  if config.optimizer.name != 'adamw':
    raise UserError(
      'an imported run resumes with the moments of AdamW: give a --config with '
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
  rest = workdir / official_xfactor.REST
  snapshot_lib.clear(snapshot_lib.target(workdir, 'ours'))
  rest.unlink(missing_ok=True)
  if snapshot.rest is not None:
    with snapshot_lib.whole(rest) as f:
      official_xfactor.write_msgpack(
        f, traverse_util.unflatten_dict(snapshot.rest, sep='/')
      )
  with contextlib.closing(Checkpoints(workdir)) as checkpoints:
    checkpoints.save(
      TrainState(step, snapshot.params, opt_state),
      # Its data are unknown: resuming requires allow_change.
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
