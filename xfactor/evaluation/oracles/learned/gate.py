"""Tests a learned oracle on held-out and corrupted pictures."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from xfactor.data import views
from xfactor.errors import UserError
from xfactor.evaluation.oracles.learned import oracle, training
from xfactor.metrics import poses

Views = tuple[np.ndarray, np.ndarray]


def held_out(config: ConfigDict) -> list[list[Views]]:
  """Returns the excerpts of each scene of the test splits.

  Excerpts, short and long, are pictures [v, size, size, 3] and world-to-camera
  [v, 4, 4].

  Raises:
    UserError: If fewer than two scenes have enough frames with cameras.
  """
  gate = config.gate
  out = []
  for store in training.open(config, 'test'):
    for clip in range(len(store)):
      path = training.cameras(store, clip)
      chosen = [
        views.eval_frames(len(path), gate.frames, window)
        for window in gate.windows
        if len(path) >= window
      ]
      excerpts = [
        (training.decode(store, clip, x, config.model.image_size), path[x])
        for x in chosen
        if np.isfinite(path[x]).all()
      ]
      if excerpts:
        out.append(excerpts)
  if len(out) < 2:
    raise UserError(
      f'{len(out)} test clips of {config.data.names} have '
      f'{min(gate.windows)} frames with cameras, too few to calibrate and '
      'test an oracle; convert more or change config.gate.windows'
    )
  return out


def _blur(sigma: float) -> Callable:
  return lambda x, _: ndimage.gaussian_filter(x, (0, sigma, sigma, 0))


def _warp(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Moves pixels by smooth random fields of about a pixel, one per frame."""
  out = np.empty_like(x)
  size = x.shape[1]
  for picture, result in zip(x, out, strict=True):
    field = ndimage.gaussian_filter(
      rng.normal(size=(2, size, size)), (0, size / 8, size / 8)
    )
    places = np.indices((size, size)) + field / field.std()
    for channel in range(3):
      result[..., channel] = ndimage.map_coordinates(
        picture[..., channel], places, order=1, mode='nearest'
      )
  return out


# Similar to those of training, but not the same; for pictures in [0, 1].
CORRUPTIONS: dict[str, Callable] = {
  'clean': lambda x, _: x,
  'blur 1 px': _blur(1.0),
  'blur 2 px': _blur(2.0),
  'noise 0.05': lambda x, rng: x + rng.normal(0, 0.05, x.shape),
  'darker': lambda x, _: 0.1 + 0.6 * x,
  'warp 1 px': _warp,
}


def corrupted(pictures: np.ndarray, name: str, seed: int) -> np.ndarray:
  """Returns uint8 pictures [v, h, w, 3] after one of `CORRUPTIONS`."""
  rng = np.random.default_rng(seed)
  out = CORRUPTIONS[name](pictures / 255, rng)
  return np.clip(np.rint(255 * out), 0, 255).astype(np.uint8)


def _constant(paths: np.ndarray) -> np.ndarray:
  """Returns the mean path [v, 4, 4] of [n, v, 4, 4], relative to the middle."""
  middle = paths.shape[1] // 2
  motion = paths @ np.linalg.inv(paths[:, middle : middle + 1])
  out = motion.mean(0)
  u, _, vt = np.linalg.svd(out[:, :3, :3])
  out[:, :3, :3] = u @ vt
  return out


def examine(
  network: oracle.Network, scenes: Sequence[list[Views]], gate: ConfigDict
) -> tuple[oracle.Network, dict[str, Any]]:
  """Calibrates a network on every second held-out scene, tests it on the rest.

  Args:
    network: Trained network.
    scenes: Scenes from `held_out`.
    gate: Section of the recipe.

  Returns:
    The calibrated network and the gate's results: `rows`, by kind of picture,
    `passed` and `failures`.
  """
  seen, tested = (list(itertools.chain(*scenes[i::2])) for i in range(2))
  _, errors = zip(*network.paths([x for x, _ in seen]), strict=True)
  limit = float(np.quantile([x.max() for x in errors], gate.keep))
  network = dataclasses.replace(network, max_error=limit)
  truth = np.stack([x for _, x in tested])
  rows = {}
  for name in CORRUPTIONS:
    shown = [corrupted(x, name, i) for i, (x, _) in enumerate(tested)]
    paths, errors = zip(*network.paths(shown), strict=True)
    accepted = np.array([x.max() <= limit for x in errors])
    rows[name] = _score(truth, np.stack(paths), accepted)
    if name == 'clean':
      all_of_them = np.ones(len(truth), bool)
      others = np.roll(np.stack(paths), len(gate.windows), axis=0)
      rows['shuffled'] = _score(truth, others, all_of_them)
      mean = _constant(np.stack([x for _, x in seen]))
      constant = np.broadcast_to(mean, truth.shape)
      rows['constant'] = _score(truth, constant, all_of_them)
  failures = list(_failures(rows, gate))
  return network, {
    'rows': rows,
    'clips': len(tested),
    'max_error_degrees': float(np.degrees(limit)),
    **gate.to_dict(),
    'passed': not failures,
    'failures': failures,
  }


def _score(
  truth: np.ndarray, paths: np.ndarray, accepted: np.ndarray
) -> dict[str, float | None]:
  """Returns means over all clips, accepted or not, and medians of errors."""
  scores = poses.score(truth, paths)
  out = {'accepted': float(accepted.mean())}
  for name in ('rra@20', 'rta@20', 'auc@30'):
    out[name] = float(scores.metrics[name].mean())
  out['auc@30 of accepted'] = (
    float(scores.metrics['auc@30'][accepted].mean()) if accepted.any() else None
  )
  out['rotation_degrees'] = float(np.median(scores.rotation_degrees))
  out['translation_degrees'] = float(np.median(scores.translation_degrees))
  return out


def _failures(
  rows: dict[str, dict[str, float | None]], gate: ConfigDict
) -> Iterator[str]:
  auc = {name: row['auc@30'] for name, row in rows.items()}
  clean = auc['clean']
  if not clean >= gate.min_auc:
    yield f'AUC@30 of clean clips is {clean:.3f}, below {gate.min_auc:g}'
  for name in ('shuffled', 'constant'):
    if not clean >= auc[name] + gate.margin:
      yield (
        f'AUC@30 of clean clips is {clean:.3f}, not {gate.margin:g} above '
        f'{name}, {auc[name]:.3f}'
      )
  for name in CORRUPTIONS:
    if not auc[name] >= clean - gate.max_loss:
      yield (
        f'AUC@30 falls from {clean:.3f} to {auc[name]:.3f} by {name}, more '
        f'than {gate.max_loss:g}'
      )


def table(rows: dict[str, dict[str, float | None]]) -> str:
  """Formats the gate's results as text."""
  columns = list(rows['clean'])
  lines = [' ' * 10 + '  '.join(columns)]
  for name, row in rows.items():
    cells = (
      ('-' if row[x] is None else f'{row[x]:.3f}').rjust(len(x))
      for x in columns
    )
    lines.append(name.ljust(10) + '  '.join(cells))
  return '\n'.join(lines)
