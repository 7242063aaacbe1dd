"""Opens the data pipeline of a recipe and makes its data sets."""

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from xfactor.data import sources
from xfactor.data.pipeline import parts as pipeline_parts
from xfactor.data.pipeline import training as pipeline_training
from xfactor.methods import registry


def open_pipeline(config: ConfigDict) -> pipeline_training.Pipeline:
  """Opens this process's share of the training stream of a recipe.

  Raises:
    UserError: If a data set is missing or does not fit the recipe.
  """
  data = config.data
  method = registry.get(config.method)
  parts = tuple(
    pipeline_parts.MixtureEntry(
      name=name,
      split=part.split,
      weight=part.weight,
      start=part.get('start', 0),
      views=method.chooser(data, part),
    )
    for name, part in data.mix.items()
  )
  return pipeline_training.Pipeline(
    pipeline_parts.DataConfig(
      data_dir=data.dir,
      parts=parts,
      batch_size=data.batch,
      image_size=data.image_size,
      image_width=data.image_width,
      cameras=method.posed,
      mirror_prob=data.get('mirror_prob', 0.0),
      seed=config.seed,
      min_length=data.min_length,
      max_bad_fraction=data.max_bad_fraction,
      threads=data.threads,
      prefetch=data.prefetch,
      workers=data.workers,
    ),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def make(config: ConfigDict) -> None:
  """Makes the missing data sets of the recipe's `data.make`.

  Raises:
    UserError: If one cannot be made, or exists with other options.
  """
  if not config.data.make:
    return
  # Imported late: most runs convert nothing.
  from xfactor.data.convert import run, summary

  try:
    if jax.process_index() == 0:
      for name, options in config.data.make.items():
        options = dict(options)
        source = sources.make(options.pop('source', name), **options)
        made = run.convert(source, config.data.dir, name=name)
        if not made.already:
          print(summary.report(made), flush=True)
  finally:
    # Also after an error: the other processes wait here.
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('data sets made')
