"""Renders a scene of a data set along a camera motion and writes the videos."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32, UInt8
from matplotlib import colormaps
from PIL import Image

from xfactor.inference import camera_path, footage, movie, posed, scene_views

_COLUMNS = 7  # Columns of the strip.
_FPS = 30.0


@dataclasses.dataclass(frozen=True)
class Flight:
  """Pictures rendered along a motion, with their input views.

  Attributes:
    views: Input views of the scene.
    pictures: One picture for each time of the motion.
    depth: Distances along the rays; None for light fields.
    span: Smallest and largest possible distance; None for light fields.
  """

  views: scene_views.Views
  pictures: UInt8[np.ndarray, 'n h w 3']
  depth: Float32[np.ndarray, 'n h w'] | None
  span: tuple[float, float] | None

  def video(self, size: int) -> UInt8[np.ndarray, 'n h w 3']:
    """Returns the pictures, small ones enlarged to a height of about `size`."""
    return _enlarge(self.pictures, size)

  def depth_video(self, size: int) -> UInt8[np.ndarray, 'n h w 3']:
    """Returns the depth as colours; near is bright."""
    return _enlarge(_colours(self.depth, self.span), size)

  def strip(self, size: int) -> UInt8[np.ndarray, 'h w 3']:
    """Returns rows of inputs, of some pictures and of their depth."""
    numbers = self.views.numbers
    inputs = [
      (picture, f'input: frame {number}')
      for picture, number in zip(self.views.images, numbers, strict=True)
    ]
    some = footage.spread(len(self.pictures), _COLUMNS)
    drawn = [(self.pictures[i], f'render: {i}') for i in some]
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
  """Enlarges by repeating pixels, so that rendered pixels stay visible."""
  times = max(1, round(size / pictures.shape[1]))
  return pictures.repeat(times, axis=1).repeat(times, axis=2)


def fly(
  model: posed.PosedModel,
  views: scene_views.Views,
  motion: str,
  *,
  height: int | None = None,
  width: int | None = None,
  **options: Any,
) -> Flight:
  """Renders a scene along a motion.

  Args:
    model: Model to render with.
    views: Views of the scene.
    motion: Key of `motions.MOTIONS`.
    height: Height in pixels; that of the views if None.
    width: Width in pixels; that of the views if None.
    **options: Other arguments of `camera_path.path`.

  Raises:
    UserError: Errors of `camera_path.path`.
  """
  shape = views.images.shape[1:3]
  size = height or shape[0], width or shape[1]
  way = camera_path.path(views, motion, *size, **options)
  scene = model.encode(views.images, views.intrinsics, views.world_to_camera)
  drawn = model.render(scene, *way, *size)
  return Flight(views, drawn.pictures, drawn.depth, model.span)


def write(
  flown: Flight, out: epath.Path, *, fps: float | None = None, size: int = 256
) -> None:
  """Writes the video OUT, x.mp4, a GIF, a strip and the depth.

  The strip x.png has the inputs above some pictures. Models with a volume also
  write x_depth.mp4 in colours and 16-bit pictures x_depth/0000.png ..., where
  65535 is the distance `max_dist` of x_depth/scale.json.

  Raises:
    UserError: If a file cannot be written.
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
