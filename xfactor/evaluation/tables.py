"""Tables of pose scores."""

import dataclasses
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


def percent(value: float) -> str:
  """Formats a share in percent; a dash if it is not finite."""
  return f'{100 * value:.1f}' if np.isfinite(value) else '-'


def number(value: float) -> str:
  """Formats a number with four digits; a dash if it is not finite."""
  return f'{value:.4g}' if np.isfinite(value) else '-'
