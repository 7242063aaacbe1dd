"""Plots camera paths from latent poses and from known cameras."""

import numpy as np
from jaxtyping import Float
from plotly import graph_objects, subplots

from xfactor.geometry import cameras


def principal(
  poses: Float[np.ndarray, 'n z'],
) -> tuple[Float[np.ndarray, 'n 3'], float]:
  """Returns latent poses along their first three principal components.

  Returns:
    Projected poses, with arbitrary signs and scale, and their share of the
    variance, 0 to 1.
  """
  centred = poses - poses.mean(axis=0)
  directions, sizes, _ = np.linalg.svd(centred, full_matrices=False)
  points = np.zeros((len(poses), 3))
  count = min(3, len(sizes))
  points[:, :count] = (directions * sizes)[:, :count]
  variance = np.square(sizes)
  total = variance.sum()
  return points, float(variance[:3].sum() / total) if total else 1.0


def centres(
  world_to_camera: Float[np.ndarray, 'n 3 4'],
) -> Float[np.ndarray, 'n 3']:
  """Returns camera centres as right, up and ahead of the first one."""
  places = cameras.camera_centre(world_to_camera)
  x, down, ahead = world_to_camera[0, :, :3] @ (places - places[0]).T
  return np.stack([x, -down, ahead], axis=-1)


def figure(
  poses: Float[np.ndarray, 'n z'],
  reference: int,
  world_to_camera: Float[np.ndarray, 'n 3 4'] | None = None,
) -> graph_objects.Figure:
  """Plots the path of latent poses in 3D, and that of known cameras.

  Args:
    poses: Latent poses of the frames of a motion.
    reference: Index of the frame that the poses are relative to.
    world_to_camera: Camera poses of the same frames, if known.
  """
  points, share = principal(poses)
  drawn = {f'latent poses ({share:.0%} of their variance)': points}
  if world_to_camera is not None:
    drawn['the cameras, in units of the scene'] = centres(world_to_camera)
  made = subplots.make_subplots(
    rows=len(drawn),
    specs=[[{'type': 'scene'}]] * len(drawn),
    subplot_titles=list(drawn),
    vertical_spacing=0.08,
  )
  order = np.arange(len(poses))
  colours = {'color': order, 'colorscale': 'Viridis'}
  for row, path in enumerate(drawn.values(), 1):
    # Plotly's third axis points up.
    x, z, y = path.T
    made.add_scatter3d(
      **{'x': x, 'y': y, 'z': z, 'row': row, 'col': 1},
      mode='lines+markers',
      marker={'size': 4, **colours},
      line={'width': 4, **colours},
      text=[f'frame {i}' for i in order],
      hoverinfo='text',
    )
    at = [reference]
    made.add_scatter3d(
      **{'x': x[at], 'y': y[at], 'z': z[at], 'row': row, 'col': 1},
      mode='markers',
      marker={'size': 7, 'color': 'red'},
      text=[f'frame {reference}, the reference'],
      hoverinfo='text',
    )
    # Cubes with the same scale on all axes.
    middle, half = _cube(path)
    ranges = [[c - half, c + half] for c in middle[[0, 2, 1]]]
    sides = zip(('xaxis', 'yaxis', 'zaxis'), ranges, strict=True)
    made.update_scenes(
      **{side: {'range': ends, 'title': ''} for side, ends in sides},
      aspectmode='cube',
      row=row,
      col=1,
    )
  made.update_layout(
    showlegend=False,
    height=320 * len(drawn),
    margin={'l': 0, 'r': 0, 'b': 0, 't': 50},
  )
  made.update_annotations(font_size=13)
  return made


def _cube(
  points: Float[np.ndarray, 'n 3'],
) -> tuple[Float[np.ndarray, '3'], float]:
  """Returns the centre and half the side of a cube around points."""
  low, high = points.min(axis=0), points.max(axis=0)
  return (low + high) / 2, 0.55 * float((high - low).max()) or 1.0
