"""From a recipe's data section to the pipeline that feeds the step."""

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from xfactor.data import convert, pipeline, sources
from xfactor.training import families


def open_pipeline(config: ConfigDict) -> pipeline.Pipeline:
  """This process's share of the training stream of a recipe.

  Raises:
    UserError: If a data set is missing or does not fit the recipe.
  """
  data = config.data
  family = families.get(config.family)
  parts = tuple(
    pipeline.Part(
      name=name,
      split=part.split,
      weight=part.weight,
      views=family.chooser(data, part),
    )
    for name, part in data.mix.items()
  )
  return pipeline.Pipeline(
    pipeline.DataConfig(
      data_dir=data.dir,
      parts=parts,
      batch_size=data.batch,
      image_size=data.image_size,
      image_width=data.image_width,
      cameras=family.posed,
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
  """Makes the data sets that a recipe says how to make, unless they are there.

  Raises:
    UserError: If one cannot be made, or is there with other options.
  """
  if not config.data.make:
    return
  try:
    if jax.process_index() == 0:
      for name, options in config.data.make.items():
        options = dict(options)
        source = sources.make(options.pop('source', name), **options)
        summary = convert.convert(source, config.data.dir, name=name)
        if not summary.already:
          print(convert.report(summary), flush=True)
  finally:
    # However it went: the others wait here, and find out by themselves.
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('data sets made')
