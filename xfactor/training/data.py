"""From a recipe's data section to the pipeline that feeds the step."""

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from xfactor.data import convert, pipeline, records, sources
from xfactor.data.views import Views


def open_pipeline(config: ConfigDict) -> pipeline.Pipeline:
  """This process's share of the training stream of a recipe.

  Raises:
    UserError: If a data set is missing or does not fit the recipe.
  """
  data = config.data
  parts = tuple(
    pipeline.Part(
      name=name,
      split=part.split,
      weight=part.weight,
      views=views_of(config, part),
    )
    for name, part in data.mix.items()
  )
  return pipeline.Pipeline(
    pipeline.DataConfig(
      data_dir=data.dir,
      parts=parts,
      batch_size=data.batch,
      image_size=data.image_size,
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


def views_of(config: ConfigDict, part: ConfigDict) -> Views:
  """How examples are cut from the clips of one part of the mix."""
  data = config.data
  return Views(
    num_views=data.contexts + 1,
    window=(part.begin, part.end),
    ramp_steps=data.ramp_steps,
    bump=data.bump,
    gap_sigma=data.gap_sigma,
    flip_prob=data.flip_prob,
  )


def make_missing(config: ConfigDict) -> None:
  """Makes the data sets that a recipe knows how to make and that are missing.

  Raises:
    UserError: If one cannot be made.
  """
  missing = [
    name
    for name in config.data.make
    if not records.versions(config.data.dir, name)
  ]
  if missing and jax.process_index() == 0:
    for name in missing:
      source = sources.make(name, **config.data.make[name])
      summary = convert.convert(source, config.data.dir)
      print(convert.report(summary), flush=True)
  if missing and jax.process_count() > 1:
    multihost_utils.sync_global_devices('data sets made')
