"""Measures a pose oracle on degraded frames whose cameras are known.

Pictures of models are smoother than frames and sometimes noisy. An oracle that
judges them must find their poses, or reject them.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from xfactor.data import images
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation.oracles import base
from xfactor.metrics import poses

KINDS = (
  ('true frames', 0.0),
  *(('blur', sigma) for sigma in (1.0, 2.0, 3.0)),
  *(('noise', sigma) for sigma in (0.02, 0.05, 0.1)),
)
# Blurs are in pixels of a picture of this size, and scale with the size.
_SIDE = 128
_COLUMNS = {
  'ok_clips': 'clips ok',
  'ok_frames': 'frames ok',
  'rotation_degrees': 'rotation',
  'rotation_degrees_90': '90 %',
  'translation_degrees': 'direction',
  'translation_degrees_90': '90 %',
  'auc@30': 'AUC@30',
  'auc@30_rejected_as_zero': 'all clips',
}


@dataclasses.dataclass(frozen=True)
class Row:
  """Results of an oracle for c clips of v frames with one degradation.

  Attributes:
    kind: Name from `KINDS`.
    sigma: Deviation of the blur, in 1/128 of the pictures' longer side, or of
      the noise, as a share of white.
    ok: bool [c], accepted clips.
    frame_ok: bool [c, v], accepted frames.
    paths: float64 [c, v, 4, 4] world to camera; NaN where neither is accepted.
    numbers: `ok_clips` and `ok_frames`, shares; `rotation_degrees` and
      `translation_degrees`, medians over the pairs of accepted frames (the
      latter over those with a baseline), and `..._90`, the 90th percentiles;
      `auc@30` as in `poses`, the mean over accepted clips, and
      `auc@30_rejected_as_zero`, over all clips. None for means over nothing.
  """

  kind: str
  sigma: float
  ok: np.ndarray
  frame_ok: np.ndarray
  paths: np.ndarray
  numbers: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Result:
  """A measurement of an oracle.

  Attributes:
    title: Description of oracle and data.
    clips: Ids of c clips.
    truth: float64 [c, v, 4, 4] world to camera.
    rows: One for each of `KINDS`.
  """

  title: str
  clips: list[str]
  truth: np.ndarray
  rows: list[Row]

  def summary(self) -> dict[str, Any]:
    """Returns the numbers, for JSON."""
    rows = [
      {'kind': row.kind, 'sigma': row.sigma, **row.numbers} for row in self.rows
    ]
    return {'title': self.title, 'clips': self.clips, 'rows': rows}

  def __str__(self) -> str:
    lines = [self.title, ' ' * 12 + _line(_COLUMNS.values())]
    for row in self.rows:
      name = f'{row.kind} {row.sigma:g}' if row.sigma else row.kind
      cells = [_cell(key, row.numbers[key]) for key in _COLUMNS]
      lines.append(f'{name:12}' + _line(cells))
    return '\n'.join(lines)


def _line(cells: Iterable[str]) -> str:
  return ''.join(f'{cell:>11}' for cell in cells)


def _cell(key: str, value: float | None) -> str:
  if value is None:
    return '-'
  return f'{value:.2f}' if 'degrees' in key else f'{100 * value:.1f}'


def measure(
  oracle: base.PoseOracle,
  store: store_lib.FrameStore,
  clips: Sequence[int] | None = None,
  num_frames: int = 5,
  *,
  window: int | None = None,
  size: int | None = None,
) -> Result:
  """Measures an oracle on true frames and increasingly degraded ones.

  Clips that are too short or lack one of the cameras are skipped. An oracle
  that uses the clip's own frames must exclude those that it localises.

  Args:
    oracle: Oracle to measure; not `file`, which knows the cameras.
    store: Split with cameras.
    clips: Rows of the split; by default all.
    num_frames: Frames per clip, at least 2, evenly spread over the window.
    window: Number of frames in the middle of a clip; by default all.
    size: Side of the pictures; by default frames stay as they are, uncropped.

  Raises:
    UserError: If no clip has such frames, or the oracle lacks something.
  """
  if not 2 <= num_frames <= (window or num_frames):
    raise UserError(
      f'cannot compare poses of {num_frames} frames of a window of {window}; '
      'give at least 2, and no more than the window has'
    )
  chosen, truth, found = [], [], []
  for clip in range(len(store)) if clips is None else map(int, clips):
    frames = _frames(int(store.num_frames[clip]), num_frames, window)
    path = store.clip(clip).world_to_camera
    if frames is None or path is None or not base.rigid(path[frames]).all():
      continue
    pictures = np.stack(
      [images.decode(x) for x in store.clip_frames(clip, frames)]
    )
    if size is not None:
      pictures = np.stack(
        [images.centre_crop_resize(x, size) for x in pictures]
      )
    rng = np.random.default_rng(clip)
    scene = base.Scene(store, clip, frames)
    # Clip by clip, so that an oracle reads each clip once.
    found.append(
      oracle.batch([(worse(pictures, *kind, rng), scene) for kind in KINDS])
    )
    chosen.append(clip)
    truth.append(base.rebase(path[frames]))
  if not chosen:
    raise UserError(
      f'no clip of {store.name}/{store.split} has cameras for '
      f'{window or num_frames} frames, which are needed to measure a pose '
      'oracle; choose another data set or fewer frames'
    )
  truth = np.stack(truth)
  return Result(
    title=(
      f'{oracle.name} {oracle.version} on {len(chosen)} clips of '
      f'{store.name}/{store.split}, {num_frames} frames of '
      f'{pictures.shape[2]} x {pictures.shape[1]} pixels; errors in '
      'degrees, shares in %'
    ),
    clips=[store.clip_id(clip) for clip in chosen],
    truth=truth,
    rows=[
      _row(*kind, truth, results)
      for kind, results in zip(KINDS, zip(*found, strict=True), strict=True)
    ],
  )


def worse(
  pictures: UInt8[np.ndarray, 'v h w 3'],
  kind: str,
  sigma: float,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, 'v h w 3']:
  """Returns degraded pictures; kind and sigma as in `Row`."""
  if kind == 'blur':
    sigma = sigma * max(pictures.shape[1:3]) / _SIDE
    # Blur neither over time nor over colours.
    changed = ndimage.gaussian_filter(
      pictures.astype(np.float32), sigma, mode='mirror', axes=(1, 2)
    )
  elif kind == 'noise':
    changed = pictures + rng.normal(0, 255 * sigma, pictures.shape)
  else:
    return pictures
  return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _frames(length: int, count: int, window: int | None) -> np.ndarray | None:
  """Returns the frames of a clip to use, or None if it is too short."""
  window = length if window is None else window
  if not count <= window <= length:
    return None
  places = np.linspace(0, window - 1, count).round().astype(int)
  return (length - window) // 2 + places


def _row(
  kind: str,
  sigma: float,
  truth: np.ndarray,
  results: Sequence[base.PoseResult],
) -> Row:
  ok = np.array([x.ok for x in results])
  frame_ok = np.stack([x.frame_ok for x in results])
  paths = np.stack([x.world_to_camera for x in results])
  paths[~frame_ok & ~ok[:, None]] = np.nan
  scores = poses.score(truth, paths)
  auc = poses.aggregate(scores, ok).means['auc@30']
  # Errors are infinite for pairs with a frame that is not ok.
  found = np.isfinite(scores.rotation_degrees)
  between = poses.relative_poses(truth)[..., :3, 3]
  apart = np.linalg.norm(between, axis=-1) >= poses.MIN_BASELINE
  numbers = {'ok_clips': ok.mean(), 'ok_frames': frame_ok.mean()}
  for name, degrees in (
    ('rotation', scores.rotation_degrees[found]),
    ('translation', scores.translation_degrees[found & apart]),
  ):
    for suffix, percent in (('', 50), ('_90', 90)):
      value = np.percentile(degrees, percent) if degrees.size else np.nan
      numbers[f'{name}_degrees{suffix}'] = value
  numbers |= {
    'auc@30': auc.value,
    'auc@30_rejected_as_zero': auc.rejected_as_zero,
  }
  return Row(
    kind=kind,
    sigma=sigma,
    ok=ok,
    frame_ok=frame_ok,
    paths=paths,
    numbers={
      key: float(value) if np.isfinite(value) else None
      for key, value in numbers.items()
    },
  )
