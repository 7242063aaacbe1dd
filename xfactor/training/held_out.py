"""Evaluates a model on the fixed held-out examples of its data sets."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from xfactor.data import files, images
from xfactor.data.pipeline import evaluation as pipeline_evaluation
from xfactor.data.records import eval_index
from xfactor.methods import scores as methods_scores
from xfactor.nn import sharding
from xfactor.nn.functional import Params
from xfactor.training.build import Build


@dataclasses.dataclass(frozen=True)
class Findings:
  """Results of a `Probe` on a checkpoint.

  Attributes:
    values: JSON values by data set, then by name, for eval/STEP.json.
    lines: Readable text by data set.
    scalars: Numbers by name, for the log.
    save: Writes pictures into a workdir and returns a line about them.
  """

  values: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  lines: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
  scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
  save: Callable[[str], str] | None = None


class Probe:
  """Measures more of a model than the PSNR of held-out pictures.

  The training loop runs a probe and writes its findings. This one measures
  nothing; xfactor.main passes that of `evaluation.motion`.
  """

  def brief(self, params: Params, step: int) -> Findings:
    """Measures during training."""
    return Findings()

  def full(self, params: Params, step: int) -> Findings:
    """Measures at the end of training, or in an evaluation."""
    return Findings()


class HeldOut:
  """Scores models on the held-out examples of a recipe's data sets.

  A file next to each data set fixes the clips and frames, so that runs can be
  compared.
  """

  def __init__(
    self, config: ConfigDict, build: Build, lpips: Mapping[str, Params]
  ):
    """Opens the data sets.

    Args:
      config: Recipe.
      build: Build of the recipe.
      lpips: Weights of LPIPS distances by name; may be empty.

    Raises:
      UserError: If a data set, its split or clips of sufficient length are
        missing.
    """
    sharding.check_batch(build.mesh, config.eval.batch, 'config.eval.batch')
    self._config = config
    self._method = build.method
    self._evaluate = build.method.evaluator(build, lpips, config.eval)
    self._indices = {
      name: eval_index.eval_index(
        config.data.dir,
        name,
        config.eval.split,
        num_views=build.views,
        window=config.eval.window,
        ordered=build.method.ordered,
        cameras=build.method.posed,
      )
      for name in config.data.mix
    }

  def __call__(self, params: Params) -> dict[str, methods_scores.Result]:
    """Returns the scores of parameters by data set."""
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
    return pipeline_evaluation.eval_batches(
      config.data.dir,
      name,
      index,
      image_size=config.data.image_size,
      image_width=config.data.image_width,
      cameras=self._method.posed,
      batch_size=config.eval.batch,
      split=config.eval.split,
      order=range(min(config.eval.examples, len(index.clips))),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def folder(workdir: epath.PathLike, step: int, variant: str = '') -> epath.Path:
  """Returns the folder of the pictures of a step, in WORKDIR/evalVARIANT."""
  return epath.Path(workdir) / f'eval{variant}' / f'{step:08d}'


def file(workdir: epath.PathLike, step: int, variant: str = '') -> epath.Path:
  """Returns the file of the scores of a step."""
  return epath.Path(workdir) / f'eval{variant}' / f'{step:08d}.json'


def write(
  workdir: epath.PathLike,
  step: int,
  results: Mapping[str, methods_scores.Result],
  findings: Findings,
  *,
  variant: str = '',
  overrides: Mapping[str, Any] | None = None,
) -> None:
  """Writes eval/STEP.json and, next to it, a folder STEP with the pictures.

  Args:
    workdir: Folder of the run.
    step: Step of the checkpoint.
    results: Results of `HeldOut` by data set.
    findings: Findings of the probe.
    variant: Suffix of the folder `eval`.
    overrides: Settings that differ from the run's own recipe.
  """
  place = folder(workdir, step, variant)
  for name, result in results.items():
    for kind, picture in panels(name, result).items():
      images.write_png(place / f'{kind}.png', picture)
  data = {
    name: {
      'examples': result.num_examples,
      'mean': result.means(),
      'each': {
        who: {k: v.tolist() for k, v in scores.items()}
        for who, scores in result.scores.items()
      },
      **findings.values.get(name, {}),
    }
    for name, result in results.items()
  }
  # Last, so that the pictures exist whenever the scores do.
  content = {'step': step, 'data': data}
  if overrides:
    content['overrides'] = dict(overrides)
  files.write_json(file(workdir, step, variant), content)


def tables(
  results: Mapping[str, methods_scores.Result], findings: Findings
) -> str:
  """Returns the scores as text for people; arguments are those of `write`."""
  lines = []
  for name, result in results.items():
    lines.append(methods_scores.table(name, result))
    lines += findings.lines.get(name, [])
  return '\n'.join(lines)


def panels(name: str, result: methods_scores.Result) -> dict[str, np.ndarray]:
  """Returns the pictures of one data set as uint8; enlarges small ones."""
  scale = max(1, 128 // result.images['truth'].shape[1])
  return {
    f'{name}_{kind}': picture
    for kind, picture in result.panels(scale=scale).items()
  }


def scalars(results: dict[str, methods_scores.Result]) -> dict[str, float]:
  """Flattens means for the log: NAME/psnr, NAME/copy_psnr, ..."""
  return {
    f'eval/{name}/{metric if who == "model" else f"{who}_{metric}"}': value
    for name, result in results.items()
    for who, means in result.means().items()
    for metric, value in means.items()
  }
