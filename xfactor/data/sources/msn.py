"""SRT's MultiShapeNet: cluttered scenes of ShapeNet objects, ten views each.

The TFDS data set of Sajjadi et al. (Scene Representation Transformer, CVPR
2022), gs://kubric-public/tfds/multi_shapenet_frames/2.3.3:

  SOURCE/multi_shapenet_frames-SPLIT.tfrecord-NNNNN-of-NNNNN

A record is a scene in the layout of `sunds.specs.frame_spec`: `scene_name`,
`pose`, and for each of `cameras/camera_0` ... its `color_image` with either
`extrinsics` and `intrinsics` or `ray_origins` and `ray_directions`. The cameras
give the rays of `sunds.tasks.Nerf`, which SRT's public code reads. Other sunds
frames of several pinhole cameras can be read as well.

Records are read without TensorFlow and sunds.
"""

import dataclasses
import functools
import re
import zlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any, ClassVar

import numpy as np
from etils import epath

from xfactor.data import images, naming, sources
from xfactor.data.formats import tfrecord
from xfactor.data.sources import posed
from xfactor.errors import UserError
from xfactor.geometry import cameras

EXPECTED = 'files multi_shapenet_frames-SPLIT.tfrecord-NNNNN-of-NNNNN'

_FILE = re.compile(r'\w+-(?P<split>\w+)\.tfrecord-\d{5}-of-\d{5}')
_IMAGE = re.compile(r'cameras/(?P<camera>[^/]+)/color_image')
_ATOL = 1e-5


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """One clip per scene, `SPLIT/SCENE`, in the published splits.

  Attributes:
    source: Folder with all or some of the TFRecord files.
    size: Width and height of the centre-cropped frames, or None for whole
      pictures.
    quality: JPEG quality, used if `size` is given.
  """

  name: ClassVar[str] = 'msn'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = "SRT's MultiShapeNet: ten views of many objects."
  reads: ClassVar[str] = r'[^/]+\.tfrecord-\d{5}-of-\d{5}'

  source: str
  size: int | None = None
  quality: int = 95

  def items(self) -> list[sources.Item]:
    """Lists one item per TFRecord file; see the base class."""
    root = posed.folder(self.source, EXPECTED)
    names = sorted(path.name for path in root.iterdir())
    found = [match for name in names if (match := _FILE.fullmatch(name))]
    if not found:
      raise posed.wrong_layout(root, EXPECTED)
    # Hundreds of files in a bucket need one request each.
    with futures.ThreadPoolExecutor(16) as pool:
      stats = pool.map(lambda match: (root / match.string).stat(), found)
      return [
        sources.Item(
          match.string,
          split=match['split'],
          size=stat.length,
          bundle=True,
        )
        for match, stat in zip(found, stats, strict=True)
      ]

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clips of a file's scenes; see the base class.

    Raises:
      UserError: After all other clips, if some scenes are unusable.
    """
    path = epath.Path(self.source).expanduser() / item.id
    yield from posed.bundle(
      item.id,
      (
        functools.partial(self._clip, item.split, number, record)
        for number, record in enumerate(tfrecord.read(path))
      ),
    )

  def _clip(self, split: str, number: int, record: bytes) -> sources.Clip:
    features = tfrecord.example(record)
    found = [
      match['camera'] for key in features if (match := _IMAGE.match(key))
    ]
    if len(found) < 2 or 'scene_name' not in features:
      raise UserError(
        f'record {number} has no scene_name and color_image of several cameras'
      )
    scene = features['scene_name'][0].decode()
    views = []
    for camera in sorted(found, key=naming.natural):
      prefix = f'cameras/{camera}/'
      picture = features[f'{prefix}color_image'][0]
      try:
        known = _camera(features, prefix, *images.header(picture))
      except (KeyError, ValueError, zlib.error) as error:
        raise UserError(f'{camera} of {scene}: {error}') from error
      views.append(posed.View(picture, f'{camera} of {scene}', *known))
    # Experiments require all views.
    return posed.make_clip(
      naming.clip_id(f'{split}/{scene}'),
      views,
      size=self.size,
      quality=self.quality,
      min_length=len(views),
    )


def _camera(
  features: dict[str, Any], prefix: str, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the intrinsics [4] and world-to-camera [3, 4] of a view.

  Raises:
    KeyError: If features are missing.
    ValueError: If it is not a pinhole camera.
  """
  if f'{prefix}ray_directions' in features:
    origins, directions = (
      _tensor(features[prefix + key]).reshape(height, width, 3)
      for key in ('ray_origins', 'ray_directions')
    )
    return camera_from_rays(origins, directions)
  matrix = features[f'{prefix}intrinsics/K'].reshape(3, 3).astype(np.float64)
  lens = f'{prefix}intrinsics/distortion/'
  if (
    features[f'{prefix}intrinsics/type'] != [b'PERSPECTIVE']
    or any(features[lens + key].any() for key in ('radial', 'tangential'))
    or matrix[0, 1]
  ):
    raise ValueError('not a pinhole camera without skew')
  scale = np.array([width, height, width, height])
  intrinsics = matrix[[0, 1, 0, 1], [0, 1, 2, 2]] / scale
  frame_to_scene = cameras.invert_pose(_pose(features, 'pose/'))
  extrinsics = _pose(features, f'{prefix}extrinsics/')
  return intrinsics, cameras.compose(extrinsics, frame_to_scene)


def _pose(features: dict[str, Any], prefix: str) -> np.ndarray:
  """Returns [R|t] as float64 [3, 4]."""
  rotation = features[f'{prefix}R'].reshape(3, 3)
  translation = features[f'{prefix}t'].reshape(3, 1)
  return np.concatenate([rotation, translation], axis=1).astype(np.float64)


def _tensor(value: Any) -> np.ndarray:
  """Returns a plain or zlib-compressed tensor of TFDS as float64."""
  if isinstance(value, list):
    value = np.frombuffer(zlib.decompress(value[0]), '<f4')
  return value.astype(np.float64)


def camera_from_rays(
  origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pinhole camera whose pixels have the given rays.

  Fits K R linearly in uv ~ K R direction and decomposes it by RQ (Hartley and
  Zisserman, Multiple View Geometry, sections 4.1 and A4.1.1).

  Args:
    origins: [H, W, 3], all the same.
    directions: [H, W, 3] through the pixels' centres, of any length.

  Returns:
    Normalised intrinsics, float64 [4], and world to camera, float64 [3, 4].

  Raises:
    ValueError: If the rays differ from a pinhole camera by more than 1e-5.
  """
  origins, directions = origins.astype(float), directions.astype(float)
  height, width = directions.shape[:2]
  lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
  centre = origins.mean(axis=(0, 1))
  if not (
    (lengths > 0).all() and np.allclose(origins, centre, rtol=_ATOL, atol=_ATOL)
  ):
    raise ValueError('its rays have no direction or no common origin')
  directions = directions / lengths
  u, v = np.meshgrid(
    (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
  )
  zero = np.zeros_like(directions)
  rows = np.concatenate(
    [
      np.concatenate([directions, zero, -u[..., None] * directions], -1),
      np.concatenate([zero, directions, -v[..., None] * directions], -1),
    ]
  ).reshape(-1, 9)
  product = np.linalg.eigh(rows.T @ rows)[1][:, 0].reshape(3, 3)
  # RQ is QR of the reversed rows.
  q, r = np.linalg.qr(product[::-1].T)
  matrix, rotation = r.T[::-1, ::-1], q.T[::-1]
  sign = np.sign(np.diag(matrix))
  matrix, rotation = matrix * sign, sign[:, None] * rotation
  rotation = rotation * np.sign(np.linalg.det(rotation))
  intrinsics = matrix[[0, 1, 0, 1], [0, 1, 2, 2]] / matrix[2, 2]
  pose = np.concatenate([rotation, -rotation @ centre[:, None]], axis=1)
  rays = cameras.pixel_rays(intrinsics, pose, height, width)[1]
  error = np.abs(rays - directions).max()
  if not error <= _ATOL:
    raise ValueError(f'its rays are {error:.0e} off those of a pinhole camera')
  return intrinsics, pose
