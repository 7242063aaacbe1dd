"""A scene of a data set seen along a camera motion, from names to pictures."""

import dataclasses
import difflib
import json
import re
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, UInt8
from matplotlib import colormaps
from ml_collections import ConfigDict
from PIL import Image

from xfactor.data import images, records
from xfactor.errors import UserError
from xfactor.geometry import cameras, motions
from xfactor.inference import footage, movie, posed

_COLUMNS = 7  # Of the strip.
_FPS = 30.0
# Views whose lines of sight are closer to parallel, by the mean squared sine of
# the angles to the first, do not say what they look at.
_PARALLEL = 1e-3


@dataclasses.dataclass(frozen=True)
class Views:
  """Views of a scene: a model's inputs, and the cameras of the whole clip.

  Attributes:
    name: NAME/SPLIT/ID.
    numbers: Of the frames in the clip.
    images: The frames at the model's size.
    intrinsics: Theirs, normalised.
    world_to_camera: Theirs.
    all_intrinsics: Of all frames of the clip.
    all_poses: Of all frames of the clip.
  """

  name: str
  numbers: list[int]
  images: UInt8[np.ndarray, 'k h w 3']
  intrinsics: Float[np.ndarray, 'k 4']
  world_to_camera: Float[np.ndarray, 'k 3 4']
  all_intrinsics: Float[np.ndarray, 'n 4']
  all_poses: Float[np.ndarray, 'n 3 4']


@dataclasses.dataclass(frozen=True)
class Flight:
  """What a model draws along a motion, and from what.

  Attributes:
    views: The inputs.
    pictures: One a time of the motion.
    depth: Distances along the rays; None for light fields.
    span: Nearest and farthest that they can be; None for light fields.
  """

  views: Views
  pictures: UInt8[np.ndarray, 'n h w 3']
  depth: Float32[np.ndarray, 'n h w'] | None
  span: tuple[float, float] | None

  def video(self, size: int) -> UInt8[np.ndarray, 'n h w 3']:
    """The pictures, small ones enlarged to about `size` pixels of height."""
    return _enlarge(self.pictures, size)

  def depth_video(self, size: int) -> UInt8[np.ndarray, 'n h w 3']:
    """The depth in colours: what is near is bright."""
    return _enlarge(_colours(self.depth, self.span), size)

  def strip(self, size: int) -> UInt8[np.ndarray, 'h w 3']:
    """Inputs above some of the pictures, and these above their depth."""
    numbers = self.views.numbers
    inputs = [
      (picture, f'input: frame {number}')
      for picture, number in zip(self.views.images, numbers, strict=True)
    ]
    some = footage.spread(len(self.pictures), _COLUMNS)
    drawn = [(self.pictures[i], f'drawn: {i}') for i in some]
    rows = [
      inputs[i : i + _COLUMNS] for i in range(0, len(inputs), _COLUMNS)
    ] + [drawn]
    if self.depth is not None:
      colours = _colours(self.depth[some], self.span)
      captions = [f'depth: {i}' for i in some]
      rows.append(list(zip(colours, captions, strict=True)))
    rows = [
      movie.row([movie.caption(movie.enlarge(x, size), t) for x, t in row])
      for row in rows
    ]
    width = max(row.shape[1] for row in rows)
    return movie.column(
      [
        np.pad(
          row,
          [(0, 0), (0, width - row.shape[1]), (0, 0)],
          constant_values=255,
        )
        for row in rows
      ]
    )


def _colours(
  depth: Float32[np.ndarray, 'n h w'], span: tuple[float, float]
) -> UInt8[np.ndarray, 'n h w 3']:
  near, far = span
  share = np.clip((depth - near) / (far - near), 0, 1)
  return colormaps['plasma_r'](share, bytes=True)[..., :3]


def _enlarge(
  pictures: UInt8[np.ndarray, 'n h w 3'], size: int
) -> UInt8[np.ndarray, 'n hh ww 3']:
  """Repeats pixels, so that nothing is added to what was drawn."""
  times = max(1, round(size / pictures.shape[1]))
  return pictures.repeat(times, axis=1).repeat(times, axis=2)


# ==============================================================================
# Reading
# ==============================================================================


def find(name: str, data_dir: str) -> tuple[records.FrameStore, list[int]]:
  """The clips that NAME/SPLIT/ID stands for, and the split they are in.

  Instead of an ID there can be a clip's number, counted from 0 in the order of
  the records, or a range of them, BEGIN:END, whose end is left out.

  Raises:
    UserError: If there are none.
  """
  dataset, _, rest = name.partition('/')
  split, _, clip = rest.partition('/')
  if not clip or dataset not in records.available(data_dir):
    raise UserError(
      f'{name} is no clip of a data set in {data_dir} '
      f'({", ".join(records.available(data_dir)) or "which has none"}); give '
      'NAME/SPLIT/ID, NAME/SPLIT/3 or NAME/SPLIT/0:5'
    )
  store = records.open_split(data_dir, dataset, split)
  ids = store.clip_ids()
  if clip in ids:
    return store, [ids.index(clip)]
  if not (numbers := re.fullmatch(r'(\d*)(:?)(\d*)', clip)):
    near = difflib.get_close_matches(clip, ids, cutoff=0)
    raise UserError(
      f'{dataset}/{split} has no clip {clip!r}; near are {", ".join(near)}'
    )
  begin = int(numbers[1] or 0)
  end = int(numbers[3] or len(ids)) if numbers[2] else begin + 1
  if not begin < end <= len(ids):
    raise UserError(
      f'{dataset}/{split} has clips 0 to {len(ids) - 1} and none {clip}; '
      'choose among these'
    )
  return store, list(range(begin, end))


def read(
  store: records.FrameStore, clip: int, config: ConfigDict, data_dir: str
) -> Views:
  """Reads the views that a model is given of a clip.

  They are the inputs of the fixed evaluation, or where the clip is not in it,
  the clip's first frames.

  Args:
    store: The clip's split.
    clip: Its number.
    config: Of the model.
    data_dir: Where the store is.

  Raises:
    UserError: If the clip has no cameras or too few frames, or a frame cannot
      be read.
  """
  known = store.clip(clip)
  name = f'{store.name}/{store.split}/{known.id}'
  if not known.posed:
    raise UserError(
      f'{name} has no cameras, which this model needs; take a scene of a data '
      'set whose cameras are known'
    )
  data = config.data
  if known.num_frames < data.contexts:
    raise UserError(
      f'{name} has {known.num_frames} frames and the model takes '
      f'{data.contexts} of them; take another scene'
    )
  numbers = list(range(data.contexts))
  num_views = data.contexts + data.targets
  if store.split == config.eval.split and known.num_frames >= num_views:
    index = records.eval_index(
      data_dir,
      store.name,
      store.split,
      num_views=num_views,
      window=config.eval.window,
      ordered=False,
      cameras=True,
    )
    chosen = index.frames[index.clips == clip]
    numbers = chosen[0, : data.contexts].tolist() if len(chosen) else numbers
  shape = data.image_size, data.image_width or data.image_size
  try:
    pictures = [
      images.centre_crop_resize(images.decode(frame), *shape)
      for frame in store.clip_frames(clip, numbers)
    ]
  except (RuntimeError, ValueError, images.ImageError) as e:
    raise UserError(
      f'{name} cannot be read ({e}); copy or convert the data set again'
    ) from e
  lenses = cameras.crop_intrinsics(
    known.intrinsics, known.height, known.width, shape=shape
  ).astype(float)
  poses = known.world_to_camera.astype(float)
  return Views(
    name,
    numbers,
    np.stack(pictures),
    lenses[numbers],
    poses[numbers],
    lenses,
    poses,
  )


# ==============================================================================
# Flying
# ==============================================================================


def fly(
  model: posed.PosedModel,
  views: Views,
  motion: str,
  *,
  height: int | None = None,
  width: int | None = None,
  **options: Any,
) -> Flight:
  """Draws a scene along a motion.

  Args:
    model: Draws.
    views: Of the scene.
    motion: A key of `motions.MOTIONS`.
    height: Pixels; that of the views if None.
    width: Pixels; that of the views if None.
    **options: Of `path`.

  Raises:
    UserError: As `path`.
  """
  shape = views.images.shape[1:3]
  size = height or shape[0], width or shape[1]
  way = path(views, motion, *size, **options)
  scene = model.encode(views.images, views.intrinsics, views.world_to_camera)
  drawn = model.render(scene, *way, *size)
  return Flight(views, drawn.pictures, drawn.depth, model.span)


def path(
  views: Views,
  motion: str,
  height: int,
  width: int,
  *,
  frames: int,
  faded: bool = False,
  look_at: str | None = None,
  keep_lens: bool = False,
) -> tuple[Float[np.ndarray, 'n 4'], Float[np.ndarray, 'n 3 4']]:
  """Cameras of a motion that starts where the first view's camera is.

  Args:
    views: Of the scene.
    motion: A key of `motions.MOTIONS`.
    height: Pixels of a picture.
    width: Pixels of a picture.
    frames: Pictures.
    faded: Whether speed is gained and lost evenly, see `motions.fade`.
    look_at: See `middle`.
    keep_lens: Whether the pictures' height shows as much as that of the first
      view, and not what the public code's lens shows.

  Returns:
    Normalised intrinsics and world-to-camera poses.

  Raises:
    UserError: If there is no such motion, or nothing to look at.
  """
  check_motion(motion)
  world_to_stage = stage(views, look_at)
  start = cameras.transform(
    world_to_stage, cameras.camera_centre(views.world_to_camera[0])
  )
  if np.linalg.norm(start[:2]) <= 1e-3 * np.linalg.norm(start):
    raise UserError(
      f'the first view of {views.name} is right above or below what the motion '
      'goes round; choose another point, --look_at=X,Y,Z'
    )
  lens = motions.public_lens(height, width)
  if keep_lens:
    fx, fy, cx, cy = views.intrinsics[0]
    rows, columns = views.images.shape[1:3]
    # Pictures of another shape show more or less at the sides.
    lens = np.array([fx * columns / rows * height / width, fy, cx, cy])
  t = motions.frame_times(motion, frames, faded=faded)
  lenses, poses = motions.fly(motion, t, start, lens)
  stages = np.broadcast_to(world_to_stage, poses.shape)
  return lenses, cameras.compose(poses, stages)


def check_motion(name: str) -> None:
  """Raises UserError if there is no camera motion of this name."""
  if name not in motions.MOTIONS:
    raise UserError(
      f'--motion={name} is no camera motion, and this model follows no other; '
      f'choose one of {", ".join(motions.MOTIONS)}'
    )


def stage(views: Views, look_at: str | None) -> Float[np.ndarray, '3 4']:
  """Pose that brings what a motion goes round to the origin, and z upwards.

  z stays as it is unless the clip's cameras are far from upright in it.
  """
  centre = middle(views, look_at)
  up = -views.all_poses[:, 1, :3].mean(0)
  rotation = np.eye(3)
  if up[2] < 0.5 * np.linalg.norm(up):
    up = cameras.normalize(up)
    right = cameras.normalize(np.cross(views.world_to_camera[0, 2, :3], up))
    rotation = np.stack([right, np.cross(up, right), up])
  return np.concatenate([rotation, -rotation @ centre[:, None]], axis=1)


def middle(views: Views, look_at: str | None) -> Float[np.ndarray, '3']:
  """The point of the world that a motion goes round.

  Args:
    views: Of the scene.
    look_at: 'X,Y,Z', or a distance ahead of the first view. If None it is the
      world's origin, where all cameras of the clip have it in sight: as in the
      data sets of SRT, and as in its public code. Else the point on the first
      view's optical axis that is nearest to those of the clip's others.

  Raises:
    UserError: If there is no such point, or `look_at` is neither.
  """
  pose = views.world_to_camera[0]
  eye, ahead = cameras.camera_centre(pose), pose[2, :3]
  if look_at is not None:
    try:
      point = np.array([float(x) for x in look_at.split(',')])
    except ValueError:
      point = np.zeros(0)
    if point.shape == (3,) and np.isfinite(point).all():
      return point
    if point.shape == (1,) and 0 < point[0] < np.inf:
      return eye + point * ahead
    raise UserError(
      f'--look_at={look_at} is no point X,Y,Z and no distance above 0'
    )
  # The translation of a pose is where the world's origin is for the camera.
  if (views.all_poses[:, 2, 3] > 0).all():
    origin = np.zeros((len(views.all_poses), 3))
    uv, _ = cameras.project(origin, views.all_intrinsics, views.all_poses)
    if ((uv > 0) & (uv < 1)).all():
      return origin[0]
  eyes, axes = cameras.camera_centre(views.all_poses), views.all_poses[:, 2, :3]
  # What of the first axis, and of the way to each eye, is across each axis.
  across = ahead - (axes @ ahead)[:, None] * axes
  angles = np.sum(across**2, axis=1)
  distance = np.sum(across * (eyes - eye)) / max(np.sum(angles), 1e-12)
  if angles.mean() < _PARALLEL or distance <= 0:
    raise UserError(
      f'the views of {views.name} have no common middle to go round; give '
      '--look_at=X,Y,Z or a distance ahead of the first view'
    )
  return eye + distance * ahead


# ==============================================================================
# Writing
# ==============================================================================


def write(
  flown: Flight, out: epath.Path, *, fps: float | None = None, size: int = 256
) -> None:
  """Writes OUT, x.mp4, and what else there is to see beside it.

  That is x.gif, x.png with the inputs above some pictures, and of a volume
  x_depth.mp4 in colours and x_depth/0000.png ..., 16 bits, where 65535 is as
  far as the `max_dist` that x_depth/scale.json tells.

  Raises:
    UserError: If they cannot be written.
  """
  video = flown.video(size)
  fps = fps or _FPS
  with movie.naming(out):
    movie.write(out, video, fps, flown.strip(size))
    if flown.depth is not None:
      _write_depth(flown, out, fps, size)
  print(
    f'{out}, {out.stem}.gif and {out.stem}.png: {len(video)} pictures of '
    f'{flown.views.name} at {fps:.3g} a second'
    + f'; depth in {out.stem}_depth and {out.stem}_depth.mp4'
    * (flown.depth is not None)
  )


def _write_depth(flown: Flight, out: epath.Path, fps: float, size: int) -> None:
  far = flown.span[1]
  folder = out.with_name(f'{out.stem}_depth')
  folder.mkdir(exist_ok=True)
  levels = np.round(np.clip(flown.depth / far, 0, 1) * 65535)
  for i, picture in enumerate(levels.astype(np.uint16)):
    with (folder / f'{i:04d}.png').open('wb') as file:
      Image.fromarray(picture).save(file, 'PNG')
  scale = {
    'max_dist': far,
    'meaning': 'distance along the ray = value / 65535 * max_dist',
  }
  (folder / 'scale.json').write_text(json.dumps(scale, indent=2) + '\n')
  video = movie.mp4(flown.depth_video(size), fps)
  out.with_name(f'{out.stem}_depth.mp4').write_bytes(video)
