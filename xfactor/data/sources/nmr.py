"""NMR ShapeNet: single objects of 13 categories, 24 views of 64 x 64 pixels.

The renderings of Kato et al. (Neural 3D Mesh Renderer, CVPR 2018) as Niemeyer
et al. (Differentiable Volumetric Rendering, CVPR 2020) publish them,
`NMR_Dataset.zip`:

  SOURCE/CATEGORY/softras_{train,val,test}.lst    one SCENE per line
  SOURCE/CATEGORY/SCENE/image/0000.png ...        24 views
  SOURCE/CATEGORY/SCENE/cameras.npz               world_mat_0, camera_mat_0, ...

The cameras give the rays of SRT's public code (stelzner/srt,
`srt/data/nmr.py`): the centres of the first and last pixels are on the image
border (-1 and 1), and the world is rotated so that z points up.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from xfactor.data import images, naming, sources
from xfactor.data.formats import npz
from xfactor.data.sources import posed
from xfactor.errors import UserError

EXPECTED = (
  'folders CATEGORY with softras_train.lst and CATEGORY/SCENE/cameras.npz, as '
  'in NMR_Dataset.zip'
)
SPLITS = ('train', 'val', 'test')

_SIZE = 24 * 4000  # Bytes of a scene.
_TURN = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # From y up to z up.
_ATOL = 1e-4


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """One clip per scene, `CATEGORY/SCENE`, in the published splits.

  Attributes:
    source: Folder with the categories.
    size: Width and height of the frames, or None for the original pictures.
    quality: JPEG quality, used if `size` is given.
  """

  name: ClassVar[str] = 'nmr'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'NMR ShapeNet: objects seen from 24 sides.'
  reads: ClassVar[str] = (
    r'[^/]+/(softras_\w+\.lst|[^/]+/(cameras\.npz|image/.*))'
  )

  source: str
  size: int | None = None
  quality: int = 95

  def items(self) -> list[sources.Item]:
    """Lists one item per scene; see the base class."""
    root = posed.folder(self.source, EXPECTED)
    items = []
    for category in sorted(path.name for path in root.iterdir()):
      for split in SPLITS:
        path = root / category / f'softras_{split}.lst'
        if path.exists():
          items += [
            sources.Item(f'{category}/{scene}', split=split, size=_SIZE)
            for scene in path.read_text().split()
          ]
    if not items:
      raise posed.wrong_layout(root, EXPECTED)
    return items

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clip of a scene; see the base class."""
    scene = epath.Path(self.source).expanduser() / item.id
    matrices = _matrices(scene / 'cameras.npz')
    views = []
    for i, (world, camera) in enumerate(matrices):
      picture = scene / 'image' / f'{i:04d}.png'
      try:
        data = picture.read_bytes()
        height, width = images.header(data)
        intrinsics, pose = camera_of(world, camera, height, width)
      except (OSError, ValueError, images.ImageError) as error:
        raise UserError(
          f'view {i} of {scene} is not usable ({error}); extract it again'
        ) from error
      views.append(posed.View(data, str(picture), intrinsics, pose))
    # Experiments require all views.
    yield posed.make_clip(
      naming.clip_id(item.id),
      views,
      size=self.size,
      quality=self.quality,
      min_length=len(views),
    )


def _matrices(path: epath.Path) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns world_mat and camera_mat of each view."""
  try:
    arrays = npz.read(path)
    count = sum(f'world_mat_{i}' in arrays for i in range(len(arrays)))
    matrices = [
      (arrays[f'world_mat_{i}'], arrays[f'camera_mat_{i}'])
      for i in range(count)
    ]
  except (ValueError, KeyError) as error:
    raise UserError(
      f'{path} cannot be read: {error}; extract it again'
    ) from error
  if not matrices:
    raise UserError(f'{path} holds no world_mat_0; extract it again')
  return matrices


def camera_of(
  world_mat: np.ndarray, camera_mat: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a view's OpenCV camera.

  Args:
    world_mat: [3 or 4, 4] world to camera.
    camera_mat: [3 or 4, 3 or 4] camera to image plane, where the pixels are at
      linspace(-1, 1, width) and linspace(-1, 1, height).
    height: Pixels.
    width: Pixels.

  Returns:
    Normalised intrinsics, float64 [4], and world to camera, float64 [3, 4], for
    a world whose z points up.

  Raises:
    ValueError: If the matrices are not a rotation and a pinhole.
  """
  focal = np.diag(camera_mat)[:2].astype(np.float64)
  # Flip axes, because focal lengths of OpenCV are positive.
  flip = np.diag([*np.sign(focal), 1.0])
  plane = np.diag([*focal, 1.0])
  rotation = flip @ world_mat[:3, :3]
  if not (
    np.allclose(camera_mat[:3, :3], plane, atol=_ATOL)
    and np.allclose(rotation @ rotation.T, np.eye(3), atol=_ATOL)
    and np.linalg.det(rotation) > 0
    and focal.all()
  ):
    raise ValueError('its matrices are not a rotation and a pinhole')
  translation = flip @ world_mat[:3, 3]
  # Their pixel centres span all of -1..1, ours only 1 - 1 / width of 0..1.
  shrink = (np.array([width, height]) - 1) / (2 * np.array([width, height]))
  intrinsics = np.concatenate([np.abs(focal) * shrink, [0.5, 0.5]])
  pose = np.concatenate([rotation @ _TURN.T, translation[:, None]], axis=1)
  return intrinsics, pose
