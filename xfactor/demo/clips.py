"""Shows clips of a converted data set as strips, cameras and histograms."""

import dataclasses
from concurrent import futures

import numpy as np
from jaxtyping import Float, Int, UInt8
from plotly import graph_objects, subplots

from xfactor.data import depth as depth_lib
from xfactor.data import images, preview
from xfactor.data.records import codec
from xfactor.data.records import store as store_lib
from xfactor.geometry import cameras
from xfactor.inference import footage

POINTS = 20_000  # Points of a clip, over all frames of its strip.
SAMPLE = 512  # Clips whose cameras the histograms count.
_BINS = 30
_CAMERAS = 64  # Cameras of a clip among which to find the widest baseline.
_FAR = 95  # Percentile of depth beyond which points are hidden.
# Errors raised by a damaged record, picture or depth.
UNREADABLE = (RuntimeError, ValueError, OSError, SyntaxError, images.ImageError)


def strip(
  store: store_lib.FrameStore, number: int
) -> tuple[UInt8[np.ndarray, 'h w 3'], str]:
  """Returns frames of a clip side by side, and an error message or ''.

  A strip that cannot be read is grey.
  """
  frames = preview.evenly(int(store.num_frames[number]))
  try:
    return preview.strip(store.clip_frames(number, frames)), ''
  except UNREADABLE as e:
    grey = np.full((148, 148 * preview.FRAMES, 3), 221, np.uint8)
    return grey, f'its frames cannot be read: {e}'


def caption(store: store_lib.FrameStore, number: int, problem: str) -> str:
  """Returns the caption of a strip."""
  said = problem or f'{store.num_frames[number]} frames'
  return f'{store.clip_id(number)}, {said}'


def details(
  store: store_lib.FrameStore, number: int, depth: bool
) -> tuple[str, UInt8[np.ndarray, 'h w 3'], graph_objects.Figure | None]:
  """Returns the facts, the strip and the cameras of a clip.

  Args:
    store: Split with the clip.
    number: Number of the clip.
    depth: Whether the data set has depth.

  Raises:
    Any of `UNREADABLE`: If the record of the clip is damaged.
  """
  clip = store.clip(number)
  facts = f'{clip.id}: {preview.facts(clip)}'
  picture, problem = strip(store, number)
  if problem:
    facts += f'; {problem}'
  if not clip.posed:
    return f'{facts}. No cameras are known.', picture, None
  points = colours = None
  if not depth:
    facts += '. No depth is known; only the cameras are shown.'
  else:
    try:
      points, colours = cloud(store, clip)
    except UNREADABLE as e:
      facts += f'. Its points cannot be shown: {e}'
  return facts, picture, scene(clip, points, colours)


def cloud(
  store: store_lib.FrameStore, clip: codec.Clip
) -> tuple[Float[np.ndarray, 'n 3'], UInt8[np.ndarray, 'n 3']]:
  """Returns at most `POINTS` world points of a clip's strip, with colours.

  The farthest points are skipped, see `_FAR`.

  Raises:
    Any of `UNREADABLE`: If a frame is damaged or has no depth.
  """
  frames = preview.evenly(clip.num_frames)
  pixels = len(frames) * clip.height * clip.width
  step = int(np.ceil(np.sqrt(pixels / POINTS)))
  points, colours, depths = [], [], []
  for frame in frames:
    number = clip.first_frame + frame
    rgb = images.decode(store.frame(number))
    depth = depth_lib.decode_depth(store.depth(number))
    if depth.shape != rgb.shape[:2]:
      raise ValueError(f'frame {frame} has depth of another size')
    # Whole pixels, from the middle of the first step.
    rows, columns = np.nonzero(depth[step // 2 :: step, step // 2 :: step])
    rows, columns = step // 2 + step * rows, step // 2 + step * columns
    z = depth[rows, columns]
    fx, fy, cx, cy = clip.intrinsics[frame].astype(float)
    x = ((columns + 0.5) / depth.shape[1] - cx) / fx
    y = ((rows + 0.5) / depth.shape[0] - cy) / fy
    pose = cameras.invert_pose(clip.world_to_camera[frame].astype(float))
    local = z[:, None] * np.stack([x, y, np.ones_like(z)], -1)
    points.append(local @ pose[:, :3].T + pose[:, 3])
    colours.append(rgb[rows, columns])
    depths.append(z)
  z = np.concatenate(depths)
  near = z <= np.percentile(z, _FAR) if len(z) else z > 0
  return np.concatenate(points)[near], np.concatenate(colours)[near]


def scene(
  clip: codec.Clip,
  points: Float[np.ndarray, 'n 3'] | None = None,
  colours: UInt8[np.ndarray, 'n 3'] | None = None,
) -> graph_objects.Figure:
  """Plots the cameras of a clip, and world points if they are known.

  The first camera is the origin and looks ahead; up is the average up vector of
  the cameras. The pyramids have the colours of the strip's bars.
  """
  poses = clip.world_to_camera.astype(float)
  right, ahead = preview.from_above(poses)
  turn = np.stack([right, ahead, np.cross(right, ahead)])
  centres = cameras.camera_centre(poses)

  def place(world: np.ndarray) -> dict[str, np.ndarray]:
    x, y, z = ((world - centres[0]) @ turn.T).T.astype(np.float32)
    return {'x': x, 'y': y, 'z': z}

  size = 0.15 * np.ptp(centres, 0).max()
  drawn = []
  if points is not None and len(points):
    # Keep cameras visible that hardly move in a large scene.
    size = max(size, 0.04 * np.ptp(points, 0).max())
    rgb = [f'#{r:02x}{g:02x}{b:02x}' for r, g, b in colours.tolist()]
    drawn.append(
      graph_objects.Scatter3d(
        **place(points),
        mode='markers',
        marker={'size': 2, 'color': rgb, 'line': {'width': 0}},
        hoverinfo='skip',
      )
    )
  drawn.append(
    graph_objects.Scatter3d(
      **place(centres),
      mode='lines',
      line={'color': '#808080', 'width': 3},
      text=[f'frame {i}' for i in range(len(centres))],
      hoverinfo='text',
    )
  )
  frames = preview.evenly(clip.num_frames)
  for frame, colour in zip(frames, preview.colours(len(frames)), strict=True):
    fx, fy, cx, cy = clip.intrinsics[frame].astype(float)
    left, right, top, bottom = -cx / fx, (1 - cx) / fx, -cy / fy, (1 - cy) / fy
    corners = np.array(
      [[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]]
    )
    corners = np.concatenate([np.zeros((1, 3)), (size or 1.0) * corners])
    # One stroke along all eight edges.
    corners = corners[[0, 1, 2, 3, 4, 1, 2, 0, 3, 4, 0]]
    red, green, blue = (255 * colour).round().astype(int)
    drawn.append(
      graph_objects.Scatter3d(
        **place(corners @ poses[frame, :, :3] + centres[frame]),
        mode='lines',
        line={'color': f'rgb({red},{green},{blue})', 'width': 4},
        text=f'frame {frame}',
        hoverinfo='text',
      )
    )
  axes = ('right', 'ahead', 'up')
  return graph_objects.Figure(
    drawn,
    {
      'height': 640,
      'showlegend': False,
      'margin': {'l': 0, 'r': 0, 't': 0, 'b': 0},
      'scene': {
        'aspectmode': 'data',
        'camera': {'eye': {'x': -0.8, 'y': -1.5, 'z': 0.9}},
        **{
          f'{letter}axis': {'title': {'text': text}}
          for letter, text in zip('xyz', axes, strict=True)
        },
      },
    },
  )


@dataclasses.dataclass(frozen=True)
class Baselines:
  """Distances between cameras, in units of each scene.

  Attributes:
    steps: Median distance of consecutive frames of each clip.
    widest: Largest distance in each clip.
    sampled: Number of sampled clips; those without cameras have no distance.
    unreadable: Number of damaged clips among them.
  """

  steps: Float[np.ndarray, 'n']
  widest: Float[np.ndarray, 'n']
  sampled: int
  unreadable: int


def baselines(store: store_lib.FrameStore) -> Baselines:
  """Returns the baselines of at most `SAMPLE` clips, evenly spread."""
  numbers = footage.spread(len(store), SAMPLE).tolist()

  def read(number: int) -> tuple[float, float] | None:
    try:
      clip = store.clip(number)
    except UNREADABLE:
      return None
    if not clip.posed or clip.num_frames < 2:
      return np.nan, np.nan
    centres = cameras.camera_centre(clip.world_to_camera.astype(float))
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    some = centres[footage.spread(len(centres), _CAMERAS)]
    between = np.linalg.norm(some[:, None] - some, axis=-1)
    return float(np.median(steps)), float(between.max())

  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(read, numbers))
  known = np.array([x for x in found if x], float).reshape(-1, 2)
  known = known[np.isfinite(known).all(1)]
  return Baselines(known[:, 0], known[:, 1], len(found), found.count(None))


def histograms(
  lengths: Int[np.ndarray, 'n'], found: Baselines
) -> graph_objects.Figure:
  """Plots histograms of clip lengths and of baselines of known cameras."""
  # Bins of whole frames, with a margin around a single bin.
  width = -(-int(np.ptp(lengths) + 1) // _BINS)
  edges = np.arange(lengths.min(), lengths.max() + width + 1, width) - 0.5
  drawn = [('clip length, frames', np.histogram(lengths, edges))]
  for title, values in (
    ('baseline of consecutive frames, median of a clip', found.steps),
    ('widest baseline in a clip', found.widest),
  ):
    if len(values):
      bins = np.histogram(values, _BINS, (0, values.max() or 1))
      drawn.append((f'{title}, scene units', bins))
  figure = subplots.make_subplots(cols=len(drawn))
  for column, (title, (counts, edges)) in enumerate(drawn, 1):
    figure.add_bar(
      x=(edges[1:] + edges[:-1]) / 2,
      y=counts,
      width=np.diff(edges),
      marker={'color': 'steelblue'},
      row=1,
      col=column,
      hovertemplate='%{x:.3g}: %{y} clips<extra></extra>',
    )
    figure.update_xaxes(title={'text': title, 'font': {'size': 12}}, col=column)
  room = [lengths.min() - width - 1, lengths.max() + width + 1]
  figure.update_xaxes(range=room, col=1)
  figure.update_yaxes(title={'text': 'clips'}, col=1)
  return figure.update_layout(
    height=280,
    bargap=0,
    showlegend=False,
    margin={'l': 50, 'r': 10, 't': 40, 'b': 50},
  )


def describe(store: store_lib.FrameStore, found: Baselines) -> str:
  """Describes the histograms in words."""
  low, high = store.num_frames.min(), store.num_frames.max()
  middle = np.median(store.num_frames)
  text = (
    f'Clips have {low} frames. '
    if low == high
    else f'Clips have {low} to {high} frames, median {middle:g}. '
  )
  if len(found.steps):
    text += (
      f'Baselines of {len(found.steps):,} clips spread evenly over the split, '
      'in the units of their scenes (metres only where the source has metres).'
    )
  else:
    text += f'None of {found.sampled:,} sampled clips has cameras.'
  if found.unreadable:
    text += f' {found.unreadable:,} of them cannot be read.'
  return text
