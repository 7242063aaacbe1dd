"""Compares held-out reconstruction in the recipe's batches and one by one.

Runs the compiled program of xfactor.eval, including the transfer of scores and
pictures to the host; batches are already in memory. For each example it renders
the target with its own pose, from halves and with another example's pose, and
another scene with its motion. All but the last are scored, with LPIPS if the
recipe has it and weights are installed.
"""

import math
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.measuring import Table, Unequal, alternate, is_exact, timed
from benchmarks.step import perturbed
from xfactor.nn import sharding
from xfactor.training import build as builds

Scores = dict[str, dict[str, np.ndarray]]

# Tolerances of an example's scores: PSNR in dB, others in their own unit.
# Rounding to eight bits may go either way; bfloat16 is coarser.
_TOLERANCE = {'psnr': 0.02, 'other': 2e-3}
_COARSE_TOLERANCE = {'psnr': 0.3, 'other': 3e-2}
# Uses the pose of another example, which batches of one do not have.
_ALONE = 'shuffled'


def make_examples(build: builds.Build, count: int) -> dict[str, np.ndarray]:
  """Returns examples of noise, as yielded by `evaluation.eval_batches`.

  The contrast increases from one to the next, so that their scores differ and
  swapped examples are detected.
  """
  rng = np.random.default_rng(0)
  size = (build.image_size, build.image_width)
  brightest = np.linspace(64, 256, count).astype(int)
  images = rng.integers(
    0,
    brightest[:, None, None, None, None],
    (count, build.views, *size, 3),
    np.uint8,
  )
  frames = np.arange(build.views, dtype=np.int32)
  return {
    'images': images,
    'frames': np.tile(frames, (count, 1)),
    'example': np.arange(count),
    'mask': np.ones(count, bool),
  }


def check_scores_equal(scores: dict[str, Scores], *, coarse: bool) -> str:
  """Returns a line stating that all give every example the same scores.

  Args:
    scores: Scores of one evaluation of each thing.
    coarse: Whether the model computes in bfloat16 or on an accelerator.

  Raises:
    Unequal: If scores differ.
  """
  tolerance = _COARSE_TOLERANCE if coarse else _TOLERANCE
  (first, ours), *others = scores.items()
  worst = 0.0
  for thing, theirs in others:
    for who in ours.keys() - {_ALONE}:
      for name, values in ours[who].items():
        most = tolerance.get(name, tolerance['other'])
        difference = float(np.abs(values - theirs[who][name]).max())
        if not difference <= most:
          raise Unequal(
            f'{name} of {who!r} differs by up to {difference:.3g} between '
            f'{first} and {thing}: they do not compute the same, so their '
            'times cannot be compared'
          )
        if name == 'psnr':
          worst = max(worst, difference)
  return f'all give the same scores, PSNR within {worst:.0e} dB'


def run(recipe: ConfigDict, *, repeats: int) -> list[Table]:
  """Compares batches of the recipe's size with batches of one.

  Args:
    recipe: Recipe with latent poses.
    repeats: Number of evaluations of each, of `config.eval.batch` examples.

  Raises:
    Unequal: If the scores differ.
    UserError: If the recipe is invalid.
  """
  build = builds.build(recipe, jax.devices()[:1])
  count = recipe.eval.batch
  sharding.check_batch(build.mesh, count, 'config.eval.batch')
  weights = None
  if recipe.eval.lpips:
    weights = builds.load_perceptual(recipe, build.mesh, required=False)
  evaluate = build.method.evaluator(
    build, {'lpips': weights} if weights else {}, recipe.eval
  )
  # With the initial weights, poses hardly affect the rendered picture.
  params = jax.device_put(perturbed(build.init().params), build.places.params)
  examples = make_examples(build, count)
  things = {f'batches of {count}': count, 'one by one': 1}

  def scores(thing: str) -> Scores:
    batches = _batches(examples, things[thing])
    return evaluate(params, batches, num_images=1).scores

  # The first evaluation is also the warm-up.
  first = {thing: scores(thing) for thing in things}
  coarse = not is_exact(build.model.dtype)
  print(check_scores_equal(first, coarse=coarse), flush=True)
  table = Table(
    f'held-out reconstruction: {count} examples of {build.views} views at '
    f'{build.image_width} x {build.image_size} pixels, {build.model.dtype}, '
    f'{"LPIPS" if weights else "no LPIPS"}',
    list(things),
  )
  for thing in alternate(things, repeats):
    with timed() as result:
      scores(thing)
    table.add('examples/s', thing, count / result.wall)
    table.add('examples/CPU s', thing, count / result.cpu)
    table.add(
      'wall, ms a batch', thing, 1e3 * result.wall * things[thing] / count
    )
  return [table]


def _batches(
  examples: dict[str, np.ndarray], size: int
) -> Iterator[dict[str, np.ndarray]]:
  count = math.ceil(len(examples['mask']) / size)
  for i in range(count):
    yield {k: x[i * size : (i + 1) * size] for k, x in examples.items()}
