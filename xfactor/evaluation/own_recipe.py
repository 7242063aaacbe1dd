"""The recipe that a run was trained with, and how another differs from it."""

import contextlib
import json
from typing import Any

from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from xfactor.data import files
from xfactor.errors import UserError
from xfactor.inference import restore

# Settings that change no score: place, speed, duration, and the training.
_NEUTRAL = (
  *('train.', 'optimizer.', 'mesh.', 'model.attention', 'model.remat'),
  *('seed', 'init_from', 'init_networks', 'allow_change', 'expected_devices'),
  *('cpu_devices', 'compile_cache', 'log', 'perceptual_weights'),
  *('data.dir', 'data.make', 'data.batch', 'data.ramp_steps', 'data.threads'),
  *('data.workers', 'data.prefetch', 'data.max_bad_fraction'),
  *('eval.batch', 'eval.panel'),
)
# Settings of the model itself; `allow_change` accepts others.
_MODEL = ('method', 'model.', 'objective.')


def get_config(workdir: str) -> ConfigDict:
  """Returns the recipe of a run's newest checkpoint, to be overridden.

  `--config=xfactor/evaluation/own_recipe.py:WORKDIR` calls it.
  """
  steps = _steps(files.run_folder(workdir))
  if not steps:
    raise UserError(
      f'there is no checkpoint in {workdir}/checkpoints to read the recipe '
      'from: give the --workdir of a run, or --config=FILE'
    )
  for step in reversed(steps[1:]):
    with contextlib.suppress(UserError):  # Just being written to a bucket.
      return read(workdir, step)
  return read(workdir, steps[0])


def read(workdir: epath.PathLike, step: int) -> ConfigDict:
  """Returns the recipe of a checkpoint.

  Raises:
    UserError: If the checkpoint has none.
  """
  config = restore.recipe(epath.Path(workdir) / 'checkpoints' / str(step))
  config.model.attention = 'auto'  # Chosen for the training machine.
  return config


def overrides(
  config: ConfigDict, workdir: epath.PathLike, step: int
) -> dict[str, Any]:
  """Returns the settings that change scores and differ from the run's own.

  Args:
    config: Recipe of an evaluation.
    workdir: Folder of the run.
    step: Step of the checkpoint.

  Returns:
    Values of `config` by name; empty for an imported run, whose data and
    settings are unknown.

  Raises:
    UserError: If the model is another one, unless `config.allow_change`.
  """
  own = _flat(read(workdir, step))
  if _is_imported(epath.Path(workdir) / 'checkpoints' / str(step)):
    return {}
  given = _flat(config)
  found = {
    name: (own.get(name, 'absent'), given.get(name, 'absent'))
    for name in sorted(own.keys() | given.keys())
    if not name.startswith(_NEUTRAL) and own.get(name) != given.get(name)
  }
  other = [
    f'{name}: {a} -> {b}'
    for name, (a, b) in found.items()
    if name.startswith(_MODEL)
  ]
  if other and not config.allow_change:
    raise UserError(
      f'the recipe is not the one that step {step} of {workdir} was trained '
      f'with ({"; ".join(other)}): give no --config to use its own, or accept '
      'the change with --config.allow_change=true'
    )
  return {name: value for name, (_, value) in found.items()}


def variant(overrides: dict[str, Any]) -> str:
  """Returns the suffix of the folder of scores with overrides, or nothing."""
  return f'-{files.digest(overrides)[:8]}' if overrides else ''


def _steps(workdir: epath.Path) -> list[int]:
  folder = workdir / 'checkpoints'
  names = [x.name for x in folder.iterdir()] if folder.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def _is_imported(folder: epath.Path) -> bool:
  meta = json.loads((folder / 'meta' / 'metadata').read_text())
  return meta.get('data') == {'parts': []}


def _flat(config: ConfigDict) -> dict[str, Any]:
  tree = json.loads(config.to_json_best_effort())
  mix = tree['data'].pop('mix')
  return traverse_util.flatten_dict(tree, sep='.') | {'data.mix': mix}
