"""Tables of pose scores."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xfactor.metrics import poses

COLUMNS = ('rra@20', 'rta@20', 'auc@10', 'auc@20', 'auc@30')


def as_json(summary: poses.Summary, scores: poses.Scores) -> dict[str, Any]:
  """Returns a table row with the scores of every pair; None for no value."""
  return {
    'pairs': summary.num_pairs,
    'acceptance': summary.acceptance_rate,
    'without_translation': summary.num_without_translation,
    'mean': {
      name: {k: plain(v) for k, v in dataclasses.asdict(mean).items()}
      for name, mean in summary.means.items()
    },
    'each': {
      name: [plain(value) for value in values.tolist()]
      for name, values in scores.metrics.items()
    },
  }


def plain(value: float) -> float | None:
  return value if np.isfinite(value) else None


def finite_mean(values: Sequence[float] | np.ndarray) -> float:
  """Returns the mean of the finite values; NaN if there are none."""
  values = np.asarray(values, float)
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else np.nan


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Formats a table in Markdown."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def percent(value: float) -> str:
  """Formats a share in percent; a dash if it is not finite."""
  return f'{100 * value:.1f}' if np.isfinite(value) else '-'


def number(value: float) -> str:
  """Formats a number with four digits; a dash if it is not finite."""
  return f'{value:.4g}' if np.isfinite(value) else '-'
