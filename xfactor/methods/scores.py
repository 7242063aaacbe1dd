"""Held-out scores of a method, and panels of its pictures."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from xfactor.errors import UserError

LABELS = {
  'model': 'model',
  'halves': 'pose of the other half',
  'shuffled': "another example's pose",
  'copy': 'copy the nearest view',
  'mean': 'mean colour',
}


@dataclasses.dataclass(frozen=True)
class Result:
  """Scores and pictures of one data set.

  Attributes:
    scores: Map from 'model', 'halves' (XFactor only), 'shuffled', 'copy' and
      'mean' to metric to one number per example: psnr in dB, ssim up to 1,
      lpips if its weights are available.
    images: Pictures of the panels, uint8: 'context' [n, c, h, w, 3] (reference
      first), 'prediction' [n, h, w, 3], 'truth'; 'depth' for volumes; for
      latent poses 'scene' (the next example's reference) and 'transfer' (that
      scene after this example's motion).
    labels: Readable names of the keys of `scores`.
  """

  scores: dict[str, dict[str, np.ndarray]]
  images: dict[str, np.ndarray]
  labels: Mapping[str, str] = dataclasses.field(default_factory=lambda: LABELS)

  @property
  def num_examples(self) -> int:
    return len(self.scores['model']['psnr'])

  def means(self) -> dict[str, dict[str, float]]:
    """Averages every score over the examples."""
    return {
      who: {name: float(np.mean(values)) for name, values in scores.items()}
      for who, scores in self.scores.items()
    }

  def panels(self, *, scale: int = 1) -> dict[str, np.ndarray]:
    """Returns pictures by kind, one row per example.

    reconstruction: contexts | prediction | truth | depth; transfer: the
    motion's reference | its target | another scene | that scene moved.
    """
    shown = self.images
    rows = {
      'reconstruction': [
        *np.moveaxis(shown['context'], 1, 0),
        *(shown[k] for k in ('prediction', 'truth', 'depth') if k in shown),
      ]
    }
    if 'transfer' in shown:
      rows['transfer'] = [
        shown['context'][:, 0],
        *(shown[k] for k in ('truth', 'scene', 'transfer')),
      ]
    return {kind: panel(x, scale=scale) for kind, x in rows.items()}


def check_finite(finite: Bool[np.ndarray, ' n']) -> None:
  """Raises UserError unless all rendered colours are finite."""
  if not finite.all():
    raise UserError(
      f'{(~finite).sum()} of {len(finite)} pictures rendered for held-out '
      'examples are not finite: training diverged; evaluate an earlier '
      'checkpoint'
    )


def table(name: str, result: Result) -> str:
  """Formats the scores as a table of text."""
  means = result.means()
  columns = list(next(iter(means.values())))
  lines = [f'{name} ({result.num_examples} held-out examples)']
  lines.append(' ' * 24 + ''.join(f'{c.upper():>9}' for c in columns))
  for who, label in result.labels.items():
    cells = ''.join(f'{means[who][c]:9.3f}' for c in columns)
    lines.append(f'  {label:22}{cells}')
  return '\n'.join(lines)


def panel(
  columns: Sequence[UInt8[np.ndarray, 'n h w 3']], *, scale: int = 1
) -> UInt8[np.ndarray, 'rows cols 3']:
  """Tiles images: one row per example, one column for each of `columns`.

  Args:
    columns: Images of the same shape: context, prediction, truth, ...
    scale: Integer factor by which pixels are repeated.
  """
  gap = 2
  rows = []
  for images in zip(*columns, strict=True):
    padded = [
      np.pad(x, ((0, gap), (0, gap), (0, 0)), constant_values=255)
      for x in images
    ]
    rows.append(np.concatenate(padded, axis=1))
  picture = np.concatenate(rows, axis=0)[:-gap, :-gap]
  return picture.repeat(scale, axis=0).repeat(scale, axis=1)
