"""Poses by a small network trained on rooms with known cameras.

`tools/train_pose_oracle.py` trains the network, calibrates its confidence, and
tests it in a gate on held-out scenes. The file `pose_oracle.safetensors` has
the network and all results.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from jaxtyping import Float, UInt8

from xfactor.data import files
from xfactor.data import images as images_lib
from xfactor.errors import UserError
from xfactor.evaluation.oracles import base as oracles_base
from xfactor.evaluation.oracles.learned import network as network_lib

FILE = 'pose_oracle.safetensors'
TRAIN = (
  'train it by python tools/train_pose_oracle.py '
  '--config=configs/pose_oracle.py --workdir=runs/pose_oracle'
)
_FORMAT = 'xfactor pose oracle 1'
# Pairs of pictures per call of the only compiled program.
_PAIRS = 64


class Oracle(oracles_base.PoseOracle):
  """Predicts the poses of all frames relative to the middle one.

  Poses have the scale of the training data. The expected error of a frame's
  pose is the larger one of those that the network predicts for the angles of
  rotation and translation. A frame is ok if this error is below the threshold
  that nearly all clean held-out clips meet with all their frames (`gate.keep`
  of the recipe); a clip is ok if all of its frames are. No frame is ok if the
  first, the origin, is lost. Clips that hardly change are not ok. Outside its
  training domain its poses are useless and its confidence is not reliable.

  Args:
    weights: Output of `tools/train_pose_oracle.py`: its --workdir or the file
      in it, local or gs://.
    min_change: Smallest mean absolute difference, in 8-bit grey levels, between
      the first frame and the one that differs most.
  """

  name = 'learned'
  version = '1'

  def __init__(self, weights: str, min_change: float = 1.0):
    self._network = load(weights)
    self._min_change = min_change

  def settings(self) -> dict[str, Any]:
    return {
      'weights': self._network.digest,
      'min_change': self._min_change,
    }

  def __call__(
    self, images: oracles_base.Images, scene: oracles_base.Scene | None = None
  ) -> oracles_base.PoseResult:
    return self.batch([(images, scene)])[0]

  def batch(
    self, clips: Sequence[tuple[oracles_base.Images, oracles_base.Scene | None]]
  ) -> list[oracles_base.PoseResult]:
    for pictures, _ in clips:
      oracles_base.check_images(pictures)
    if not clips:
      return []
    start = time.perf_counter()
    shown = [self._network.fit(pictures) for pictures, _ in clips]
    found = self._network.paths(shown)
    seconds = (time.perf_counter() - start) / len(clips)
    return [
      self._judge(pictures, *path, seconds)
      for pictures, path in zip(shown, found, strict=True)
    ]

  def _judge(
    self,
    pictures: np.ndarray,
    path: np.ndarray,
    errors: np.ndarray,
    seconds: float,
  ) -> oracles_base.PoseResult:
    change = np.abs(pictures - pictures[0].astype(np.float32)).mean((1, 2, 3))
    info = {
      'change': float(change.max()),
      'expected_error_degrees': np.degrees(errors).tolist(),
      'seconds': seconds,
    }
    if info['change'] < self._min_change:
      return oracles_base.still(len(path), self._min_change, **info)
    # The negation also rejects errors that are not finite.
    lost = ~(errors <= self._network.max_error)
    info['reasons'] = [
      f'frame {i}: expected error {np.degrees(errors[i]):.3g} degrees, over '
      f'{np.degrees(self._network.max_error):.3g}'
      for i in np.flatnonzero(lost)
    ]
    path[lost] = np.nan
    return oracles_base.guarded(oracles_base.from_poses(path, **info))


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network.

  Attributes:
    config: Sizes of the network.
    params: Parameters of the network.
    max_error: Largest accepted expected error, radians.
    digest: sha256 of the file.
  """

  config: network_lib.Config
  params: Mapping[str, Any]
  max_error: float = np.inf
  digest: str = ''

  def fit(
    self, pictures: oracles_base.Images
  ) -> UInt8[np.ndarray, 'v size size 3']:
    """Returns the pictures' central squares at the network's input size."""
    size = self.config.image_size
    return np.stack([images_lib.centre_crop_resize(x, size) for x in pictures])

  def paths(
    self, clips: Sequence[oracles_base.Images]
  ) -> list[tuple[Float[np.ndarray, 'v 4 4'], Float[np.ndarray, ' v']]]:
    """Returns world-to-camera and expected errors in radians of each clip.

    Args:
      clips: Clips from `fit`. The middle frame is the world.
    """
    others = [np.delete(np.arange(len(x)), len(x) // 2) for x in clips]
    ends = np.cumsum([len(x) for x in others])
    first = [np.repeat(x[len(x) // 2][None], len(x) - 1, axis=0) for x in clips]
    second = [x[i] for x, i in zip(clips, others, strict=True)]
    poses, errors = self._motions(np.concatenate(first), np.concatenate(second))
    out = []
    for clip, other, end in zip(clips, others, ends, strict=True):
      path = np.tile(np.eye(4), (len(clip), 1, 1))
      error = np.zeros(len(clip))
      rows = slice(end - len(other), end)
      path[other, :3], error[other] = poses[rows], errors[rows]
      out.append((path, error))
    return out

  def _motions(
    self, a: np.ndarray, b: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Poses [n, 3, 4] from a to b and expected errors [n] of pairs."""
    chunks = []
    for i in range(0, len(a), _PAIRS):
      pair = [x[i : i + _PAIRS] for x in (a, b)]
      # Constant size, so that results do not depend on the other pairs.
      fill = [(0, _PAIRS - len(pair[0])), (0, 0), (0, 0), (0, 0)]
      filled = (np.pad(x, fill) for x in pair)
      chunks.append(_both_ways(self.params, *filled, config=self.config))
    there, back = jax.tree.map(
      lambda *x: np.concatenate(x)[: len(a)].astype(np.float64), *chunks
    )
    return _mean(there, back)


def _mean(
  there: network_lib.Motion, back: network_lib.Motion
) -> tuple[np.ndarray, np.ndarray]:
  """Averages two estimates of a motion, the second in reverse direction."""
  u, _, vt = np.linalg.svd(there.rotation + back.rotation.mT)
  rotation = u @ vt
  returned = -(rotation @ back.direction[..., None])[..., 0]
  direction = there.direction + returned
  norm = np.linalg.norm(direction, axis=-1, keepdims=True)
  length = np.exp((there.log_length + back.log_length) / 2)
  translation = direction / np.maximum(norm, 1e-9) * length[:, None]
  errors = np.exp((there.log_errors + back.log_errors) / 2)[:, :2]
  # The error is at least half of the angle between the two directions.
  halves = np.arccos(np.clip(norm[:, 0] / 2, 0, 1))
  errors[:, 1] = np.maximum(errors[:, 1], halves)
  poses = np.concatenate([rotation, translation[..., None]], -1)
  return poses, errors.max(-1)


@functools.partial(jax.jit, static_argnames='config')
def _both_ways(params, a, b, *, config: network_lib.Config):
  net = network_lib.make(config).bind(params)
  # Accelerators must find the same poses as CPUs.
  with jax.default_matmul_precision('highest'):
    features = net.encode(jnp.concatenate([a, b]))
    first, second = jnp.split(features, 2)
    return tuple(
      dataclasses.replace(net(*pair), places=None)
      for pair in ((first, second), (second, first))
    )


def save(
  path: str | os.PathLike[str], network: Network, gate: Mapping[str, Any]
) -> None:
  """Writes a network and the gate's results atomically.

  Args:
    path: Path of the file.
    network: Trained and calibrated network.
    gate: JSON values; `passed`, and `failures` as text.
  """
  data = safetensors.numpy.save(
    {name: np.asarray(x) for name, x in network.params.items()},
    metadata={
      'format': _FORMAT,
      'config': json.dumps(dataclasses.asdict(network.config)),
      'max_error': json.dumps(network.max_error),
      'gate': json.dumps(gate),
    },
  )
  path = epath.Path(path)
  if files.is_remote(path):  # Writes to buckets are atomic.
    path.write_bytes(data)
    return
  partial = path.with_name(path.name + files.partial_suffix())
  partial.write_bytes(data)
  partial.replace(path)


def load(path: str | os.PathLike[str]) -> Network:
  """Reads a network that has passed the gate.

  Args:
    path: Path of the file or its folder.

  Raises:
    UserError: If the file is missing, damaged or of another format, or the
      network has not passed the gate.
  """
  path = epath.Path(path)
  if path.is_dir():
    path = path / FILE
  if not path.exists():
    raise UserError(f'the pose oracle {path} does not exist; {TRAIN}')
  data = path.read_bytes()
  try:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
    metadata = header['__metadata__']
    if metadata['format'] != _FORMAT:
      raise ValueError(f'its format is {metadata["format"]!r}')
    params = safetensors.numpy.load(data)
    config = network_lib.Config(**json.loads(metadata['config']))
    max_error, gate = (json.loads(metadata[x]) for x in ('max_error', 'gate'))
    _check_shapes(config, params)
  except (
    *(ValueError, KeyError, TypeError),
    safetensors.SafetensorError,
  ) as error:
    raise UserError(
      f'{path} holds no pose oracle of this version '
      f'({type(error).__name__}: {error}); {TRAIN}'
    ) from error
  if not gate['passed']:
    raise UserError(
      f'the pose oracle {path} has not passed its gate '
      f'({"; ".join(gate["failures"])}); train it longer or on more scenes'
    )
  return Network(config, params, max_error, hashlib.sha256(data).hexdigest())


def _check_shapes(
  config: network_lib.Config, params: Mapping[str, np.ndarray]
) -> None:
  want = {k: x.shape for k, x in network_lib.make(config).shapes.items()}
  have = {k: x.shape for k, x in params.items()}
  for name in sorted(want.keys() | have.keys()):
    if want.get(name) != have.get(name):
      raise ValueError(
        f'{name} is {have.get(name, "absent")} instead of '
        f'{want.get(name, "absent")}'
      )
