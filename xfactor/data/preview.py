"""Renders contact sheets: clips of a converted data set as one picture.

Each clip is a strip of frames from its beginning to its end and, if its cameras
are known, their path seen from above, in the colours of the bars below the
frames.
"""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from xfactor.data import files, images
from xfactor.data.records import codec, folders
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras

FRAMES = 8
# Pixels.
_FRAME, _GAP, _BAR, _LINE, _MARGIN, _PATH = 144, 4, 5, 26, 24, 200
_DPI = 100
_LONGEST_ID = 72  # Characters.


def write(
  data_dir: str | os.PathLike[str],
  *,
  name: str | None = None,
  split: str | None = None,
  num_clips: int = 8,
  out: str | os.PathLike[str] = '.',
) -> list[epath.Path]:
  """Writes OUT/NAME-preview.png for each data set of a folder.

  Args:
    data_dir: Folder of converted data sets, or of one of them.
    name: Name of the only data set to show; all by default.
    split: Name of the split; by default 'train', if there is one.
    num_clips: Number of clips, random but always the same.
    out: Folder for the pictures; created if needed.

  Returns:
    Paths of the pictures.

  Raises:
    UserError: If there is no data set, it has no such split, or the pictures
      cannot be written.
  """
  if num_clips < 1:
    raise UserError(f'--preview_clips is {num_clips}; give 1 or more')
  data_dir = files.data_folder(data_dir)
  if not name and folders.versions(data_dir.parent, data_dir.name):
    data_dir, name = data_dir.parent, data_dir.name
  names = [name] if name else folders.available(data_dir)
  if not names:
    raise UserError(
      f'{data_dir} holds no converted data set; give the '
      '--data_dir of a conversion'
    )
  folder, paths = files.data_folder(out), []
  for each in names:
    store = store_lib.open_split(
      data_dir, each, split or _first_split(data_dir, each)
    )
    picture = sheet(store, num_clips)
    paths.append(folder / f'{each}-preview.png')
    try:
      folder.mkdir(parents=True, exist_ok=True)
      with paths[-1].open('wb') as f:
        Image.fromarray(picture).save(f, 'PNG')
    except OSError as e:
      raise UserError(
        f'cannot write {paths[-1]} ({e.strerror}); give a folder that you may '
        'write to with --out'
      ) from e
  return paths


def _first_split(data_dir: epath.Path, name: str) -> str:
  splits = folders.splits(data_dir, name)
  # If there are no splits, `open_split` reports it.
  return 'train' if 'train' in splits or not splits else splits[0]


def sheet(
  store: store_lib.FrameStore, num_clips: int = 8
) -> UInt8[np.ndarray, 'h w 3']:
  """Returns the contact sheet of random clips, chosen with a fixed seed."""
  rng = np.random.default_rng(0)
  count = min(num_clips, len(store))
  chosen = np.sort(rng.choice(len(store), count, replace=False))
  clips = [store.clip(int(i)) for i in chosen]
  shown = [evenly(clip.num_frames) for clip in clips]
  strips = [
    strip(store.clip_frames(int(i), frames))
    for i, frames in zip(chosen, shown, strict=True)
  ]
  posed = [_has_path(clip) for clip in clips]
  strip_width = FRAMES * (_FRAME + _GAP) - _GAP
  width = strip_width + 2 * _MARGIN + any(posed) * (_PATH + 2 * _MARGIN)
  rows = [
    # Strips of wide frames are too low for a path.
    max(len(picture), _PATH // 2 if with_path else 0)
    for picture, with_path in zip(strips, posed, strict=True)
  ]
  height = sum(row + _LINE + _MARGIN for row in rows) + 2 * _LINE + _MARGIN
  figure = Figure((width / _DPI, height / _DPI), _DPI)
  page = _Page(figure, width, height)
  title = (
    f'{store.name} {store.version}, {store.split}: {len(store)} clips, '
    f'{store.num_frames.sum(dtype=np.int64)} frames'
  )
  page.text(_MARGIN, _MARGIN + 4, title, size=14, weight='bold')
  path_left = strip_width + 3 * _MARGIN
  if any(posed):
    legend = 'from above, dot at start'
    page.text(path_left, _MARGIN + 7, legend, size=10, color='0.3')
  top = 2 * _LINE + _MARGIN
  for clip, frames, picture, with_path, row in zip(
    clips, shown, strips, posed, rows, strict=True
  ):
    page.text(_MARGIN, top, _short(clip.id), size=10, weight='bold')
    page.text(
      _MARGIN + strip_width, top, facts(clip), size=10, color='0.3', ha='right'
    )
    axes = page.axes(_MARGIN, top + _LINE, picture.shape[1], picture.shape[0])
    axes.imshow(picture, interpolation='none')
    axes.set_axis_off()
    if with_path:
      axes = page.axes(path_left, top + _LINE, _PATH, row)
      extent = _path(axes, clip, frames)
      page.text(path_left, top, extent, size=10, color='0.3')
    top += row + _LINE + _MARGIN
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class _Page:
  """Places items on a figure in pixels from the top left."""

  def __init__(self, figure: Figure, width: int, height: int):
    self._figure, self._width, self._height = figure, width, height

  def axes(self, left: int, top: int, width: int, height: int) -> Axes:
    bottom = self._height - top - height
    return self._figure.add_axes(
      (
        left / self._width,
        bottom / self._height,
        width / self._width,
        height / self._height,
      )
    )

  def text(self, left: int, top: int, text: str, **style) -> None:
    self._figure.text(
      left / self._width, 1 - top / self._height, text, va='top', **style
    )


def evenly(num_frames: int) -> list[int]:
  """Returns evenly spaced frames, including the first and the last."""
  count = min(FRAMES, num_frames)
  return np.linspace(0, num_frames - 1, count).round().astype(int).tolist()


def colours(count: int) -> Float[np.ndarray, 'n 3']:
  """Returns RGB colours for the first to the last frame, in 0..1."""
  return colormaps['plasma'](np.linspace(0, 0.85, count))[:, :3]


def strip(frames: Sequence[bytes]) -> UInt8[np.ndarray, 'h w 3']:
  """Returns frames side by side, each above a bar of its colour."""
  pictures = [Image.fromarray(images.decode(frame)) for frame in frames]
  tall = max(picture.height / picture.width for picture in pictures)
  # Portrait pictures are as high as square ones, but narrower.
  scale = _FRAME / max(tall, 1)
  columns = []
  for picture, colour in zip(pictures, colours(len(pictures)), strict=True):
    size = round(scale), max(round(scale * picture.height / picture.width), 1)
    column = np.full((size[1] + _GAP // 2 + _BAR, size[0] + _GAP, 3), 255)
    column[: size[1], : size[0]] = np.asarray(
      picture.resize(size, Image.Resampling.LANCZOS)
    )
    column[-_BAR:, : size[0]] = (255 * colour).round()
    columns.append(column.astype(np.uint8))
  return np.concatenate(columns, 1)[:, :-_GAP]


def _has_path(clip: codec.Clip) -> bool:
  return all(
    # `verify` reports cameras that are not finite.
    array is not None and np.isfinite(array).all()
    for array in (clip.intrinsics, clip.world_to_camera)
  )


def _short(text: str) -> str:
  """Shortens a long text to its end."""
  return text if len(text) <= _LONGEST_ID else f'...{text[3 - _LONGEST_ID :]}'


def facts(clip: codec.Clip) -> str:
  """Describes a clip in one line."""
  said = [f'{clip.num_frames} frames', f'{clip.width} x {clip.height}']
  if clip.timestamps is not None:
    said.append(f'{clip.timestamps[-1] - clip.timestamps[0]:.1f} s')
  if clip.replaced:
    said.append(f'{clip.replaced} replaced')
  return ', '.join(said)


def from_above(
  world_to_camera: Float[np.ndarray, 'n 3 4'],
) -> Float[np.ndarray, '2 3']:
  """Returns the world directions that point right and up on a map.

  The map is the plane orthogonal to the mean up direction of the cameras,
  rotated so that the first camera looks up.
  """
  right, down = world_to_camera[0, 0, :3], world_to_camera[:, 1, :3]
  up = -down.mean(0)
  if np.linalg.norm(up) < 1e-3:  # For instance, all look down.
    up = -down[0]
  up = up / np.linalg.norm(up)
  right = right - right @ up * up
  right = right / np.linalg.norm(right)
  return np.stack([right, np.cross(up, right)])


def _path(axes: Axes, clip: codec.Clip, frames: Sequence[int]) -> str:
  """Plots the camera path and the fields of view at `frames`.

  Returns:
    Text with the extent of the path, across and up.
  """
  poses = clip.world_to_camera.astype(np.float64)
  intrinsics = clip.intrinsics.astype(np.float64)
  plane = from_above(poses)
  centres = cameras.camera_centre(poses) @ plane.T
  extent = np.ptp(centres, 0)
  # Cameras that only rotate have no extent, but a field of view.
  reach = 0.2 * extent.max() or 1.0
  axes.plot(*centres.T, color='0.6', linewidth=1, zorder=1)
  for frame, colour in zip(frames, colours(len(frames)), strict=True):
    fx, _, cx, _ = intrinsics[frame]
    edges = np.array([[-cx / fx, 0, 1], [(1 - cx) / fx, 0, 1]])
    edges = edges / np.linalg.norm(edges, axis=1, keepdims=True)
    edges = reach * edges @ poses[frame, :, :3] @ plane.T
    corners = centres[frame] + np.stack([np.zeros(2), *edges])
    axes.fill(*corners.T, color=colour, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(*corners[[1, 0, 2]].T, color=colour, linewidth=1, zorder=3)
  start = centres[frames[0]]
  axes.plot(*start, 'o', color=colours(1)[0], markersize=6, zorder=4)
  axes.set_aspect('equal', adjustable='datalim')
  axes.margins(0.08)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_color('0.85')
  return '{:.3g} x {:.3g} units'.format(*extent)
