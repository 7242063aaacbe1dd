"""Evaluation of a recipe's data sets on their fixed held-out examples."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from xfactor.data import pipeline, records
from xfactor.evaluation import motion, novel_views, reconstruction, tps
from xfactor.models.functional import Params
from xfactor.training import sharding, writers
from xfactor.training.build import Build


class Heldout:
  """The held-out examples of every data set of a recipe, and their scores.

  Which clips and frames are looked at is fixed in a file beside each data set,
  so that runs can be compared.
  """

  def __init__(
    self, config: ConfigDict, build: Build, lpips: Mapping[str, Params]
  ):
    """Opens the data sets.

    Args:
      config: The recipe.
      build: What it built.
      lpips: Names of LPIPS distances and their weights; may be empty.

    Raises:
      UserError: If a data set, its split or long enough clips are missing.
    """
    sharding.check_batch(build.mesh, config.eval.batch, 'config.eval.batch')
    self._config = config
    self._family = build.family
    if build.family.posed:
      self._evaluate = novel_views.Evaluator(
        build.functional,
        build.mesh,
        lpips,
        objective=build.objective,
        num_rays=config.eval.rays,
      )
    else:
      self._evaluate = reconstruction.Evaluator(
        build.functional, build.mesh, lpips
      )
    self._indices = {
      name: records.eval_index(
        config.data.dir,
        name,
        config.eval.split,
        num_views=build.views,
        window=config.eval.window,
        ordered=build.family.ordered,
        cameras=build.family.posed,
      )
      for name in config.data.mix
    }

  def __call__(self, params: Params) -> dict[str, reconstruction.Result]:
    """Scores parameters on every data set, by its name."""
    return {
      name: self._evaluate(
        params,
        self._batches(name),
        num_images=min(self._config.eval.panel, self._config.eval.batch),
      )
      for name in self._indices
    }

  def _batches(self, name: str) -> Iterator[dict[str, np.ndarray]]:
    config, index = self._config, self._indices[name]
    return pipeline.eval_batches(
      config.data.dir,
      name,
      index,
      image_size=config.data.image_size,
      image_width=config.data.image_width,
      cameras=self._family.posed,
      batch_size=config.eval.batch,
      split=config.eval.split,
      order=range(min(config.eval.examples, len(index.clips))),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def folder(workdir: epath.PathLike, step: int) -> epath.Path:
  """Where the pictures of a step are."""
  return epath.Path(workdir) / 'eval' / f'{step:08d}'


def file(workdir: epath.PathLike, step: int) -> epath.Path:
  """Where the scores of a step are."""
  return epath.Path(workdir) / 'eval' / f'{step:08d}.json'


def write(
  workdir: epath.PathLike,
  step: int,
  results: dict[str, reconstruction.Result],
  transfer: Mapping[str, tps.Result],
  explained: Mapping[str, dict[str, float]],
) -> None:
  """Writes eval/STEP.json and, beside it, a folder STEP with the pictures.

  Args:
    workdir: Of the run.
    step: Of the checkpoint.
    results: By data set, of `Heldout`.
    transfer: By data set, of `motion.Motion.transfer`.
    explained: By data set, of `motion.Motion.explained`.
  """
  for name, result in results.items():
    for kind, picture in panels(name, result).items():
      writers.write_png(folder(workdir, step) / f'{kind}.png', picture)
  data = {}
  for name, result in results.items():
    data[name] = {
      'examples': result.num_examples,
      'mean': result.means(),
      'each': {
        who: {k: v.tolist() for k, v in scores.items()}
        for who, scores in result.scores.items()
      },
    }
    if name in transfer:
      data[name]['transfer'] = motion.as_json(transfer[name])
    if name in explained:
      data[name]['explained'] = explained[name]
  # Last, so that whoever sees the numbers finds the pictures.
  records.write_json(file(workdir, step), {'step': step, 'data': data})


def tables(
  results: Mapping[str, reconstruction.Result],
  transfer: Mapping[str, tps.Result],
  explained: Mapping[str, dict[str, float]],
) -> str:
  """What `write` writes as lines of text for people; arguments as there."""
  lines = []
  for name, result in results.items():
    lines.append(reconstruction.table(name, result))
    if name in explained:
      lines.append(motion.explained_line(name, explained[name]))
    if name in transfer:
      lines.append(motion.table(name, transfer[name]))
  return '\n'.join(lines)


def panels(name: str, result: reconstruction.Result) -> dict[str, np.ndarray]:
  """The pictures of one data set, uint8, small ones enlarged."""
  scale = max(1, 128 // result.images['truth'].shape[1])
  return {
    f'{name}_{kind}': picture
    for kind, picture in result.panels(scale=scale).items()
  }


def scalars(results: dict[str, reconstruction.Result]) -> dict[str, float]:
  """Flat names for the log: NAME/psnr, NAME/copy_psnr, ..."""
  return {
    f'eval/{name}/{metric if who == "model" else f"{who}_{metric}"}': value
    for name, result in results.items()
    for who, means in result.means().items()
    for metric, value in means.items()
  }
