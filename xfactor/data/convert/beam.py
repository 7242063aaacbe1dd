"""Converts parts with Apache Beam."""

import functools
import os
import pickle
from collections.abc import Sequence
from typing import Any

from etils import epath

from xfactor.data import files, sources
from xfactor.data.convert import part as part_lib
from xfactor.data.convert import plan as plan_lib
from xfactor.errors import UserError


def convert_on_beam(
  source: sources.Source,
  plan: plan_lib.Plan,
  progress: part_lib.Progress,
  options: Sequence[str],
) -> list[dict[str, Any]]:
  """Does what `workers.convert_parts` does, with workers of Apache Beam."""
  try:
    import apache_beam as beam
  except ImportError as e:
    raise UserError(
      "--runner=beam needs Apache Beam: pip install -e '.[beam]'"
    ) from e
  from apache_beam.options import pipeline_options

  done = {n for n in range(len(plan.parts)) if part_lib.read_part(plan, n)}
  todo = [n for n in range(len(plan.parts)) if n not in done]
  # Named by the options: a worker may have cached the items of others.
  items = plan.work / f'items-{files.digest(plan.options)}.pickle'
  items.write_bytes(pickle.dumps(plan.parts))
  with beam.Pipeline(
    options=pipeline_options.PipelineOptions(list(options))
  ) as pipeline:
    _ = (
      pipeline
      | beam.Create(todo)
      | beam.Reshuffle()
      # A service limits graphs to a few megabytes, too few for the items.
      | beam.Map(
        _beam_part, source, part_lib.without_items(plan), os.fspath(items)
      )
    )
  parts = {}
  for number in range(len(plan.parts)):
    part = part_lib.read_part(plan, number, check=False)
    if part is None:
      raise UserError(
        f'the Beam workers wrote no {part_lib.part_stem(number)} in '
        f'{plan.work}; give a --data_dir that they and this host share, such '
        'as a bucket'
      )
    parts[number] = part
    if number not in done:
      progress.frames[number] = sum(clip['frames'] for clip in part['clips'])
  return list(parts.values())


def _beam_part(
  number: int, source: sources.Source, plan: plan_lib.Plan, items: str
) -> None:
  part_lib.do_part(
    source, plan, None, number, _load_items(items)[number], check=True
  )


@functools.lru_cache(1)
def _load_items(path: str) -> list[list[sources.Item]]:
  try:
    return pickle.loads(epath.Path(path).read_bytes())
  except FileNotFoundError as e:
    raise UserError(
      f'a Beam worker cannot see {path}; give a --data_dir that the workers '
      'and this host share, such as a bucket'
    ) from e
