"""Reads checkpoints of the public SRT code."""

from etils import epath
from ml_collections import ConfigDict

from xfactor.data.formats import torch_file
from xfactor.exchange import snapshot, srt_names, srt_recipe


def read_torch(
  path: epath.Path, config: ConfigDict | None
) -> snapshot.Snapshot:
  content = torch_file.load(path)
  recipe_file = path.parent / srt_recipe.RECIPE
  known = config is None and recipe_file.exists()
  recipe = (
    srt_recipe.read_recipe(recipe_file)
    if known
    else snapshot.recipe('srt', config)
  )
  with snapshot.naming(path, 'srt'):
    run = srt_recipe.read(content, **recipe.model)
  if known:
    told = {'recipe': f'{recipe_file}; its code has 12 heads'}
  else:
    told = snapshot.complete(recipe, run.model, config)
  params = srt_names.to_ours(run.named)
  facts = {
    'read': f'{path} (torch.save of the public code)',
    **snapshot.sizes(run.model, params, len(run.named)),
    'moments': f'exp_avg and exp_avg_sq, {len(run.named)} arrays each',
    'step': f'{run.iterations} iterations, {run.updates} updates of Adam',
    **told,
    'ignored': ', '.join(f'{key} {value}' for key, value in run.rest.items()),
  }
  return snapshot.Snapshot(
    facts,
    recipe,
    run.model,
    run.iterations,
    run.updates,
    params,
    srt_names.to_ours(run.mu),
    srt_names.to_ours(run.nu),
    rest=None,
  )
