"""Solids that move by themselves through a room."""

import colorsys
import dataclasses

import numpy as np
from jaxtyping import Float

from xfactor.data.worlds.raycaster import lighting
from xfactor.data.worlds.raycaster import scene as scene_lib

_SIZE = (0.1, 0.25)  # Half extents, metres.
_DISTANCE = (1.2, 2.5)  # From the first camera to a path's middle, metres.
_ASIDE = 1.0  # Largest angle to the first view, radians.
_REACH = (0.2, 0.7)  # Half of the length of a path along each axis, metres.
_PERIOD = (25.0, 60.0)  # Frames.
_MARGIN = 0.3  # Least distance to a camera, beyond the largest extent, metres.
_TRIALS = 32


@dataclasses.dataclass(frozen=True)
class Movers:
  """K glowing solids on closed paths.

  Attributes:
    parts: The solids, as a scene of their own; their centres do not count.
    centres: [N, K, 3] centres in each frame.
  """

  parts: scene_lib.Scene
  centres: Float[np.ndarray, 'n k 3']

  def at(self, baked: scene_lib.Baked, frame: int) -> scene_lib.Baked:
    """Returns a lit room with the solids as they are in a frame."""
    room, extra = baked.scene, self.parts
    extra = dataclasses.replace(extra, centre=self.centres[frame])
    joined = {
      name: np.concatenate([getattr(room, name), getattr(extra, name)])
      for name in (
        *('kind', 'centre', 'half', 'rotation', 'group', 'glow'),
        *('tint', 'texture', 'tile'),
      )
    }
    return lighting.add_glowing(baked, dataclasses.replace(room, **joined))


def sample(
  rng: np.random.Generator,
  room: scene_lib.Scene,
  world_to_camera: Float[np.ndarray, 'n 3 4'],
  count: int,
) -> Movers:
  """Samples solids near the view of the first camera.

  They never touch a camera. They may pass through walls and furniture, whose
  light they do not change.

  Args:
    rng: Random number generator.
    room: Room without them.
    world_to_camera: Cameras of all frames.
    count: Number of solids; fewer in a room that is too small.
  """
  pose = world_to_camera.astype(np.float64)
  eyes = -np.einsum('nji,nj->ni', pose[:, :, :3], pose[:, :, 3])
  ahead = np.arctan2(pose[0, 2, 1], pose[0, 2, 0])
  low, high = room.centre[0] - room.half[0], room.centre[0] + room.half[0]
  paths, halves = [], []
  for _ in range(count):
    half = rng.uniform(*_SIZE, 3)
    for _ in range(_TRIALS):
      path = _path(rng, len(pose), eyes[0], ahead)
      path = np.clip(path, low + half, high - half)
      gap = np.linalg.norm(path - eyes, axis=-1).min()
      if gap > np.linalg.norm(half) + _MARGIN:
        paths.append(path)
        halves.append(half)
        break
  number, f32 = len(paths), np.float32
  kinds = [scene_lib.BOX, scene_lib.TUBE, scene_lib.ELLIPSOID]
  colours = [
    [c**2.2 for c in colorsys.hsv_to_rgb(*x)]
    for x in zip(
      rng.uniform(0, 1, number),
      rng.uniform(0.6, 0.95, number),
      rng.uniform(0.7, 1, number),
      strict=True,
    )
  ]
  # Each face has its own brightness: they are not lit.
  shades = np.array([0.9, 0.7, 0.8, 0.6, 1.0, 0.5])
  tint = np.array(colours).reshape(number, 1, 3) * shades[:, None]
  parts = dataclasses.replace(
    room,
    kind=rng.choice(kinds, number),
    centre=np.zeros((number, 3), f32),
    half=np.array(halves, f32).reshape(number, 3),
    rotation=np.tile(np.eye(3, dtype=f32), (number, 1, 1)),
    group=room.group.max() + 1 + np.arange(number),
    glow=np.full(number, 2.0, f32),
    tint=tint.astype(f32),
    texture=np.repeat(rng.integers(len(room.albedo), size=(number, 1)), 6, 1),
    tile=np.zeros((number, 6), f32),
  )
  centres = np.array(paths, f32).reshape(number, len(pose), 3)
  return Movers(parts, centres.swapaxes(0, 1))


def _path(
  rng: np.random.Generator, frames: int, eye: np.ndarray, ahead: float
) -> Float[np.ndarray, 'n 3']:
  """Samples a closed path about a place in front of a camera."""
  angle = ahead + rng.uniform(-_ASIDE, _ASIDE)
  away = rng.uniform(*_DISTANCE)
  home = [away * np.cos(angle), away * np.sin(angle), rng.uniform(-0.4, 0.4)]
  turns = np.arange(frames)[:, None] / rng.uniform(*_PERIOD, 3)
  phase = rng.uniform(0, 1, 3)
  swing = np.sin(2 * np.pi * (turns + phase)) * rng.uniform(*_REACH, 3)
  return eye + home + swing * [1, 1, 0.5]
