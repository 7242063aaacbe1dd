"""Tables of pose scores."""

import dataclasses
from typing import Any

import numpy as np

from xfactor.metrics import poses

COLUMNS = ('rra@20', 'rta@20', 'auc@10', 'auc@20', 'auc@30')


def as_json(summary: poses.Summary, scores: poses.Scores) -> dict[str, Any]:
  """A row of a table, with every pair's scores; None where there is none."""
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
  """A share as a number of percent; a dash where there is none."""
  return f'{100 * value:.1f}' if np.isfinite(value) else '-'


def number(value: float) -> str:
  """A number of four digits; a dash where there is none."""
  return f'{value:.4g}' if np.isfinite(value) else '-'
