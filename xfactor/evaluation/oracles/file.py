"""Known cameras: those of the data set, or of the user's file."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from etils import epath

from xfactor.data import files, naming
from xfactor.data import images as images_lib
from xfactor.data.formats import camera_files, colmap, npz
from xfactor.errors import UserError
from xfactor.evaluation.oracles import base
from xfactor.geometry import cameras

# Largest mean difference of real frames in grey levels, due to rounding; even
# the best renders differ by more.
_SAME_PICTURE = 1.0
_OTHERS = (
  'choose another oracle for renders: known_scene, learned, colmap, vggt'
)


@dataclasses.dataclass(frozen=True)
class Oracle(base.PoseOracle):
  """Looks cameras up; works for real frames only, not for renders.

  Attributes:
    path: Path of the cameras; those of the data set if None. `{clip}` stands
      for the clip's id, for a file per clip. One of
        - .npz with `world_to_camera` [N, 3, 4] or [N, 4, 4], OpenCV, and
          optional normalised `intrinsics` [N, 4];
        - a folder with a COLMAP model, text or binary;
        - .json: transforms.json of instant-ngp and nerfstudio;
        - .txt: cameras of RealEstate10K.
      Cameras of COLMAP and transforms.json are sorted by the names of their
      pictures, with numbers in numerical order. There must be one camera per
      picture, or one per frame of the clip.
  """

  path: str | None = None
  name: ClassVar[str] = 'file'
  version: ClassVar[str] = '1'
  # The file may change.
  cacheable: ClassVar[bool] = False

  def settings(self) -> dict[str, Any]:
    return {'path': self.path}

  def __call__(
    self, images: base.Images, scene: base.Scene | None = None
  ) -> base.PoseResult:
    base.check_images(images)
    if scene is not None:
      _check_real(images, scene)
    if self.path is None:
      poses, intrinsics = _of_clip(images, scene)
    else:
      poses, intrinsics = _of_file(self.path, len(images), scene)
    return base.from_poses(
      poses, intrinsics, cameras=self.path or 'of the data set'
    )


def _check_real(pictures: base.Images, scene: base.Scene) -> None:
  """Checks that pictures are the clip's own frames.

  Raises:
    UserError: If they are renders, which would get perfect poses.
  """
  what = f'{_name(scene)}, but was given other pictures; {_OTHERS}'
  if not len(scene.frames):
    raise UserError(f'the file oracle poses only the frames of {what}')
  stored = scene.store.clip_frames(scene.clip, scene.frames)
  for data, picture in zip(stored, pictures, strict=True):
    frame = images_lib.decode(data)
    if frame.shape != picture.shape:
      frame = images_lib.centre_crop_resize(frame, len(picture))
    if (
      frame.shape != picture.shape
      or np.abs(frame.astype(int) - picture).mean() > _SAME_PICTURE
    ):
      raise UserError(f'the file oracle poses only the frames of {what}')


def _name(scene: base.Scene) -> str:
  store = scene.store
  return f'clip {store.clip_id(scene.clip)} of {store.name}/{store.split}'


def _of_clip(
  pictures: base.Images, scene: base.Scene | None
) -> tuple[np.ndarray, np.ndarray | None]:
  if scene is None:
    raise UserError(
      'the file oracle only knows the cameras of frames of data sets; '
      f'give it a file of cameras (path), or {_OTHERS}'
    )
  clip = scene.store.clip(scene.clip)
  if clip.world_to_camera is None:
    raise UserError(
      f'{_name(scene)} has no cameras; give the file oracle a file of cameras '
      '(path) or choose another oracle'
    )
  intrinsics = None
  # Pictures are whole frames or their central squares.
  if clip.intrinsics is not None and pictures.shape[1] == pictures.shape[2]:
    intrinsics = cameras.crop_intrinsics(
      clip.intrinsics[scene.frames].astype(np.float64), clip.height, clip.width
    )
  return clip.world_to_camera[scene.frames], intrinsics


def _of_file(
  path: str, count: int, scene: base.Scene | None
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns [count, 3 or 4, 4] poses and, if the file has them, intrinsics."""
  if '{clip}' in path:
    if scene is None:
      raise UserError(
        f'{path} names a file for each clip of a data set, but these pictures '
        'are of none; give a path without {clip}'
      )
    path = path.replace('{clip}', scene.store.clip_id(scene.clip))
  poses, intrinsics = _read(files.data_folder(path))
  finite = np.isfinite(poses).all((1, 2))
  if not base.rigid(poses[finite]).all():
    raise UserError(
      f'{path} has matrices whose first three columns are no rotation; write '
      'world-to-camera [R|t] without scale or intrinsics'
    )
  if scene is not None and len(poses) == scene.store.num_frames[scene.clip]:
    poses = poses[scene.frames]
    intrinsics = None if intrinsics is None else intrinsics[scene.frames]
  if len(poses) != count:
    raise UserError(
      f'{path} has {len(poses)} cameras for a clip of {count} pictures; give '
      'one per picture, in order'
    )
  return poses, intrinsics


def _read(path: epath.Path) -> tuple[np.ndarray, np.ndarray | None]:
  """Reads all cameras of a file or COLMAP folder, in the order of frames."""
  # The intrinsics of the other formats are for uncropped pictures.
  if path.suffix == '.npz':
    return _read_npz(path)
  if path.suffix == '.txt':
    return camera_files.read_realestate(path).cameras.world_to_camera, None
  if path.suffix == '.json':
    found = {
      frame.path: frame.world_to_camera
      for frame in camera_files.read_transforms(path)
    }
  elif model := colmap.read_model(path):
    found = {name: image.world_to_camera for name, image in model.items()}
  else:
    raise UserError(
      f'{path} holds no cameras; the file oracle reads .npz, transforms.json, '
      "RealEstate10K's .txt and folders with COLMAP's cameras and images files"
    )
  names = sorted(found, key=naming.natural)
  return np.array([found[name] for name in names]).reshape(-1, 3, 4), None


def _read_npz(path: epath.Path) -> tuple[np.ndarray, np.ndarray | None]:
  try:
    arrays = npz.read(path)
    poses = arrays['world_to_camera'].astype(np.float64)
    intrinsics = arrays.get('intrinsics')
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
      raise ValueError(f'world_to_camera has the shape {poses.shape}')
    if intrinsics is not None and intrinsics.shape != (len(poses), 4):
      raise ValueError(f'intrinsics have the shape {intrinsics.shape}')
  except (ValueError, KeyError, TypeError, UserError) as error:
    reason = f'it lacks {error}' if isinstance(error, KeyError) else error
    raise UserError(
      f'{path} is no file of cameras ({reason}); write it with numpy.savez('
      'FILE, world_to_camera=[N, 3, 4] or [N, 4, 4])'
    ) from error
  return poses, intrinsics
