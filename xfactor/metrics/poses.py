"""Pose metrics of two camera paths, in float64.

Poses are world-to-camera [V, 4, 4], OpenCV. All pairs i < j of frames are
compared by their relative poses T_i T_j^-1: a rotation error and the angle
between the directions of translation, independent of world frame and scale.

The definitions are those of True Pose Similarity in XFactor's public code
(vsitzmann/xfactor-nvs, vggt/metrics/camera_metric.py), including its details:
  - The angle of translations has no sign and is in [0, 90] degrees: a path
    played backwards along its line has no error.
  - If either camera does not move, the angle is 90 degrees, even if both do
    not. Clips whose target does not move are flagged (`has_translation`).
  - The area under the curve is a sum over 31 bins of [0, 30] degrees instead of
    the usual bins of one degree: lower by about 0.003 on average. Both are
    reported.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float

from xfactor.errors import UserError

THRESHOLDS = (3, 5, 10, 15, 20, 30)
# Smallest distance of camera centres, relative to the distance of the scene,
# that defines a direction: about a quarter of a pixel at 256 pixels.
MIN_BASELINE = 1e-3

_BINS, _RANGE = 31, 30  # Official histogram; range in degrees.
_EPS = 1e-12
# Tolerance of the trace of a rotation.
_TRACE_SLACK = 1e-4
_TRAJECTORY = 'trajectory_error'
_TRAJECTORY_SCALED = 'trajectory_error_scale_invariant'


@dataclasses.dataclass(frozen=True)
class Scores:
  """Errors and metrics of a prediction; n = V (V - 1) / 2 pairs of frames.

  Attributes:
    rotation_degrees: float64 [*b, n], in the lexicographic order of i < j;
      infinite where a pose is not finite.
    translation_degrees: float64 [*b, n], in the same order.
    has_translation: bool [*b], whether the target's camera moves enough to
      define directions of translation. If it only turns or stands still, all
      metrics except `rra` and `auc_rotation` follow the official code but are
      meaningless.
    finite: bool [*b], whether all poses are finite.
    metrics: float64 [*b] by name. At t = 3, 5, 10, 15, 20, 30 degrees:
        - rra@t, rta@t: share of pairs with a rotation or translation error
          below t (the official Rac and Tac);
        - auc_rotation@t, auc_translation@t, auc@t: area under that share up to
          t; auc@t uses the larger of both errors (the official Rot_Auc,
          Trans_Auc, SE3_Auc: 31 bins);
        - auc_rotation_1deg@t, auc_translation_1deg@t, auc_1deg@t: the same with
          bins of one degree, as in VGGT and other work.
      Not comparable between oracles:
        - trajectory_error: mean absolute difference of the coordinates of the
          centres (traj_err_unscaled);
        - trajectory_error_scale_invariant: the same after scaling the
          prediction optimally; the scale may be negative
          (traj_err_scale_invariant).
      Both depend on the world frame, and are NaN where not `finite`.
  """

  rotation_degrees: np.ndarray
  translation_degrees: np.ndarray
  has_translation: np.ndarray
  finite: np.ndarray
  metrics: dict[str, np.ndarray]


def score(
  target: Float[np.ndarray, '*b v 4 4'],
  prediction: Float[np.ndarray, '*b v 4 4'],
  scene_distance: float = 1.0,
) -> Scores:
  """Compares two camera paths.

  Args:
    target: World-to-camera poses.
    prediction: World-to-camera poses in any world frame and positive scale.
    scene_distance: Distance from the target's cameras to the scene, in the
      target's unit; `has_translation` needs a baseline of at least
      `MIN_BASELINE` times this. 1 suits paths in metres, and oracles and data
      sets that normalise scenes to about this size.

  Raises:
    UserError: If there is only one frame.
    ValueError: If a rotation matrix has a scale.
  """
  if target.shape[-3] < 2:
    raise UserError(
      'a camera path of one frame has no relative pose; compare at least '
      '2 frames'
    )
  target, prediction = _whole_or_nan(target), _whole_or_nan(prediction)
  target_relative, relative = relative_poses(target), relative_poses(prediction)
  rotation = rotation_error(target_relative, relative)
  translation = translation_error(target_relative, relative)
  both = np.maximum(rotation, translation)
  metrics = {}
  for t in THRESHOLDS:
    metrics[f'rra@{t}'] = _mean(rotation < t)
    metrics[f'rta@{t}'] = _mean(translation < t)
    for name, error in (
      ('auc_rotation', rotation),
      ('auc_translation', translation),
      ('auc', both),
    ):
      metrics[f'{name}@{t}'] = auc(error, t)
      metrics[f'{name}_1deg@{t}'] = auc_1deg(error, t)
  target_centres, centres = camera_centres(target), camera_centres(prediction)
  metrics[_TRAJECTORY] = _distance(target_centres, centres)
  metrics[_TRAJECTORY_SCALED] = _distance(
    target_centres, _best_scale(target_centres, centres) * centres
  )
  return Scores(
    rotation_degrees=rotation,
    translation_degrees=translation,
    has_translation=np.asarray(
      baseline(target) >= MIN_BASELINE * scene_distance
    ),
    finite=np.asarray(np.isfinite([target, prediction]).all((0, -3, -2, -1))),
    metrics=metrics,
  )


def _whole_or_nan(poses: np.ndarray) -> np.ndarray:
  """Converts to float64; sets poses that are not finite to NaN."""
  finite = np.isfinite(poses).all((-2, -1), keepdims=True)
  return np.where(finite, np.float64(poses), np.nan)


def relative_poses(
  world_to_camera: Float[np.ndarray, '*b v 4 4'],
) -> Float[np.ndarray, '*b n 4 4']:
  """Returns T_i T_j^-1 of all pairs i < j, in lexicographic order."""
  i, j = np.triu_indices(world_to_camera.shape[-3], k=1)
  # Not the transpose: poses in float32 are not exactly rigid.
  inverse = np.linalg.inv(world_to_camera)
  return world_to_camera[..., i, :, :] @ inverse[..., j, :, :]


def rotation_error(
  a: Float[np.ndarray, '*b 4 4'], b: Float[np.ndarray, '*b 4 4']
) -> Float[np.ndarray, '*b']:
  """Returns the angle in degrees, [0, 180], between two rotations.

  Near 0 and 180 degrees, where the arc cosine is steep, it is extrapolated
  linearly: equal rotations differ by 4e-5 degrees.
  """
  trace = np.sum(a[..., :3, :3] * b[..., :3, :3], axis=(-2, -1))
  if (np.abs(trace - 1) > 2 + _TRACE_SLACK).any():
    raise ValueError(
      'the rotation of a relative pose has a scale; normalise it'
    )
  cosine = (trace - 1) / 2
  bound = 1 - _EPS
  inside = np.clip(cosine, -bound, bound)
  angle = np.arccos(inside) - (cosine - inside) / np.sqrt(1 - bound**2)
  degrees = np.maximum(np.degrees(angle), 0)
  return np.where(np.isnan(degrees), np.inf, degrees)


def translation_error(
  a: Float[np.ndarray, '*b 4 4'], b: Float[np.ndarray, '*b 4 4']
) -> Float[np.ndarray, '*b']:
  """Returns the angle in degrees, [0, 90], between two translations.

  Opposite directions have angle 0; a zero translation has angle 90 to all.
  """
  cosine = np.sum(_direction(a) * _direction(b), axis=-1)
  sine2 = np.maximum(1 - cosine**2, _EPS)
  degrees = np.degrees(np.arccos(np.sqrt(1 - sine2)))
  return np.where(np.isnan(degrees), np.inf, degrees)


def _direction(pose: np.ndarray) -> np.ndarray:
  t = pose[..., :3, 3]
  return t / (np.linalg.norm(t, axis=-1, keepdims=True) + _EPS)


def auc(
  degrees: Float[np.ndarray, '*b n'], threshold: int
) -> Float[np.ndarray, '*b']:
  """Area under the share of errors, with 31 bins of [0, 30] degrees.

  The mean of the first `threshold` cumulative sums of the histogram, which end
  at 30 / 31 * `threshold` degrees.
  """
  return _area(np.floor(_BINS * degrees / _RANGE), threshold)


def auc_1deg(
  degrees: Float[np.ndarray, '*b n'], threshold: int
) -> Float[np.ndarray, '*b']:
  """Area under the share of errors up to `threshold`, bins of 1 degree."""
  return _area(np.floor(degrees), threshold)


def _area(bins: np.ndarray, count: int) -> np.ndarray:
  """Averages the first `count` cumulative sums of a histogram."""
  # An error counts in all cumulative sums from its bin on.
  return _mean(np.maximum(count - bins, 0) / count)


def _mean(x: np.ndarray, axis: int | tuple[int, int] = -1) -> np.ndarray:
  # NumPy returns scalars instead of arrays without axes.
  return np.asarray(np.mean(x, axis=axis))


def camera_centres(
  world_to_camera: Float[np.ndarray, '*b v 4 4'],
) -> Float[np.ndarray, '*b v 3']:
  """Returns the positions of the cameras in the world."""
  return np.linalg.inv(world_to_camera)[..., :3, 3]


def baseline(
  world_to_camera: Float[np.ndarray, '*b v 4 4'],
) -> Float[np.ndarray, '*b']:
  """Returns the largest distance between two camera centres."""
  centres = camera_centres(world_to_camera)
  i, j = np.triu_indices(centres.shape[-2], k=1)
  between = centres[..., i, :] - centres[..., j, :]
  return np.asarray(np.linalg.norm(between, axis=-1).max(-1))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return _mean(np.abs(a - b), axis=(-2, -1))


def _best_scale(target: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """Returns the scale [*b, 1, 1] of `centres` with least squared distance."""
  axes = (-2, -1)
  norm = np.sum(centres**2, axis=axes, keepdims=True)
  product = np.sum(target * centres, axis=axes, keepdims=True)
  return product / np.maximum(norm, 1e-8)


@dataclasses.dataclass(frozen=True)
class Mean:
  """Mean of a metric over many pairs of clips; NaN if no pair is accepted.

  Attributes:
    value: Mean over the accepted pairs.
    low: Lower end of the bootstrap's 95 % interval of the mean.
    high: Upper end of the interval.
    rejected_as_zero: Mean with 0 for rejected pairs, so that a model does not
      profit if the oracle fails on bad renders; NaN for errors, whose best
      value is 0.
    count: Number of accepted pairs in the mean.
  """

  value: float
  low: float
  high: float
  rejected_as_zero: float
  count: int


@dataclasses.dataclass(frozen=True)
class Summary:
  """Scores over many pairs of clips.

  Attributes:
    num_pairs: Number of all pairs.
    acceptance_rate: Share of pairs whose two paths are accepted.
    num_without_translation: Accepted pairs whose target's camera does not move;
      only means of rotations and `trajectory_error` include them.
    means: Means by name of the metric.
  """

  num_pairs: int
  acceptance_rate: float
  num_without_translation: int
  means: dict[str, Mean]


def aggregate(
  scores: Scores,
  accepted: Bool[np.ndarray, ' b'],
  *,
  seed: int = 0,
  resamples: int = 1000,
) -> Summary:
  """Averages metrics over pairs of clips.

  Args:
    scores: Scores of a batch [b].
    accepted: Whether both paths of a pair are `ok`. Pairs that are not finite
      count as rejected.
    seed: Seed of the bootstrap.
    resamples: Resamples of the bootstrap over pairs; pairs that share a clip
      are treated as independent.
  """
  accepted = accepted & scores.finite
  moving = accepted & scores.has_translation
  # Rejected paths do not show whether the camera moves either.
  num_rejected = int((~accepted).sum())
  means = {}
  for name, values in scores.metrics.items():
    values = values[moving if _needs_translation(name) else accepted]
    total = len(values) + num_rejected
    zero = np.nan
    if total and not name.startswith(_TRAJECTORY):
      zero = float(values.sum() / total)
    means[name] = Mean(*_interval(values, seed, resamples), zero, len(values))
  return Summary(
    num_pairs=len(accepted),
    acceptance_rate=float(accepted.mean()) if len(accepted) else np.nan,
    num_without_translation=int((accepted & ~moving).sum()),
    means=means,
  )


def _needs_translation(metric: str) -> bool:
  return metric != _TRAJECTORY and not metric.startswith(
    ('rra', 'auc_rotation')
  )


def _interval(
  values: np.ndarray, seed: int, resamples: int
) -> tuple[float, float, float]:
  """Returns the mean and its 95 % percentile bootstrap interval."""
  n = len(values)
  if not n:
    return np.nan, np.nan, np.nan
  means = _draws(n, seed, resamples) @ values / n
  low, high = np.percentile(means, (2.5, 97.5))
  return float(values.mean()), float(low), float(high)


@functools.lru_cache(maxsize=2)
def _draws(n: int, seed: int, resamples: int) -> np.ndarray:
  """Returns the counts of n values in each resample, [resamples, n]."""
  rng = np.random.default_rng(seed)
  return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
