"""Camera flights through the levels of Freedoom, rendered by ViZDoom.

An independently made world (`pip install -e '.[vizdoom]'` installs it): the 36
levels of Freedoom phase 1 and the 32 of phase 2, with exact cameras and exact
depth. These changes make it suitable for novel view synthesis:

*   The level is frozen. A patch file removes every thing (monsters, items and
    decorations are billboards that turn with the camera), every special (doors,
    lifts, flickering lights, scrolling walls), animated textures and grates.
*   The camera is free. Two short scripts in the same patch put the player
    anywhere, so paths are smooth curves with sideways, backward and vertical
    motion, independent of the engine's physics.
*   The camera is a pinhole. The engine looks up and down by shearing the
    picture and its pixels are 1.2 times as tall as wide. It therefore renders a
    wide level view, from which the picture is resampled by a homography: true
    pitch and roll, square pixels, centred principal point, antialiased. If the
    level view does not reach far enough up or down, it is sheared.
*   The depth is computed from the level's walls, floors and ceilings, because
    the engine's depth buffer has 8 bits and mixes kinds of distance. The sky
    has depth 0, unknown.

One scene unit is 64 map units, about two metres. z points up. Sector lights
and gamma are raised, because dark rooms are nearly black. Training and test
have different levels, not only different walks.
"""

import dataclasses
import importlib.util
import math
import zlib
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8

from xfactor.data import depth, images, sources
from xfactor.data.records import codec
from xfactor.data.worlds.doom import engine as engine_lib
from xfactor.data.worlds.doom import flight_path
from xfactor.data.worlds.doom import level as level_lib
from xfactor.errors import UserError
from xfactor.geometry import wander

TEST_LEVELS = (
  ('freedoom1', 'E1M5'),
  ('freedoom1', 'E2M3'),
  ('freedoom1', 'E3M6'),
  ('freedoom1', 'E4M2'),
  ('freedoom2', 'MAP07'),
  ('freedoom2', 'MAP13'),
  ('freedoom2', 'MAP20'),
  ('freedoom2', 'MAP26'),
)
LEVELS = tuple(
  ('freedoom1', f'E{episode}M{number}')
  for episode in range(1, 5)
  for number in range(1, 10)
) + tuple(('freedoom2', f'MAP{number:02d}') for number in range(1, 33))
TRAIN_LEVELS = tuple(level for level in LEVELS if level not in TEST_LEVELS)
_ROUNDING = 0.01  # Maximum error of stored cameras in map units.


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """Walks through Freedoom.

  Attributes:
    walks: Number of clips; an eighth of them are in the test levels.
    frames: Frames per clip.
    size: Width and height in pixels.
    seed: Random seed of all paths.
    quality: JPEG quality.
    with_depth: Whether clips have depth.
    paths: Comma-separated kinds of camera paths; each walk gets one at random.
      A kind is wandering degrees of freedom of `wander.FREEDOMS` joined by
      '+', as in 'pan+tilt,slide+push'. If empty, smooth walks and flights.
    turn: Turning speed of `paths`, degrees per frame, 0 to 10.
    move: Moving speed of `paths`, scene units per frame, 0 to 0.5.
  """

  name: ClassVar[str] = 'vizdoom'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = (
    "Camera flights through Freedoom's levels with exact cameras and depth."
  )

  walks: int = 256
  frames: int = 48
  size: int = 64
  seed: int = 0
  quality: int = 95
  with_depth: bool = True
  paths: str = ''
  turn: float = 2.0
  move: float = 0.05

  def __post_init__(self):
    for kind in self._kinds():
      if wander.parse(kind) is None:
        raise UserError(
          f'the vizdoom source has no paths of kind {kind!r}; join with + some '
          f'of {", ".join(wander.FREEDOMS)}'
        )
    for option, high in (('turn', 10), ('move', 0.5)):
      value = getattr(self, option)
      if not 0 <= value <= high:
        raise UserError(
          f'the vizdoom source needs {option} between 0 and {high}, not {value}'
        )

  def _kinds(self) -> list[str]:
    return self.paths.split(',') if self.paths else []

  def items(self) -> list[sources.Item]:
    """Lists one item per walk; see the base class."""
    for option in ('walks', 'frames', 'size'):
      if getattr(self, option) < 1:
        raise UserError(
          f'{option}={getattr(self, option)} is too small for the vizdoom '
          'source; give at least 1'
        )
    level_lib.game_folder()
    test = self.walks // 8
    out = []
    for split, levels, count in (
      ('train', TRAIN_LEVELS, self.walks - test),
      ('test', TEST_LEVELS, test),
    ):
      for i in range(count):
        wad, level = levels[i % len(levels)]
        number = i // len(levels)
        out.append(
          sources.Item(
            id=f'{wad}_{level.lower()}/{number:04d}',
            payload=(wad, level, number),
            split=split,
            size=self.frames * self.size**2,
          )
        )
    return sorted(out, key=lambda item: item.id)

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the one clip of a walk; see the base class."""
    wad, name, number = item.payload
    _, level = level_lib.load(wad, name)
    rng = np.random.default_rng(
      [self.seed, zlib.crc32(f'{wad}/{name}'.encode()), number]
    )
    path = self._plan(level, rng)
    frames, poses, depths = [], [], []
    with engine_lib.running(wad, name, self.size) as engine:
      for position, rgb, rotation in engine.views(path):
        frames.append(images.encode_jpeg(rgb, self.quality))
        translation = -rotation @ position / level_lib.UNITS
        poses.append(np.concatenate([rotation, translation[:, None]], 1))
        if self.with_depth:
          rays = level_lib.pixel_rays(self.size) @ rotation
          z = level_lib.cast(
            level, position, rays.reshape(-1, 3), 2 * self.size
          )
          depths.append(
            depth.encode_game_depth(z.reshape(self.size, -1) / level_lib.UNITS)
          )
    focal = 0.5 / math.tan(math.radians(level_lib.FIELD_OF_VIEW) / 2)
    yield sources.Clip(
      id=item.id,
      frames=frames,
      height=self.size,
      width=self.size,
      timestamps=np.arange(self.frames) / 35.0,
      intrinsics=np.tile(
        np.array([focal, focal, 0.5, 0.5], np.float32), (self.frames, 1)
      ),
      world_to_camera=np.stack(poses).astype(np.float32),
      depth=depths if self.with_depth else None,
    )

  def _plan(
    self, level: level_lib.Level, rng: np.random.Generator
  ) -> flight_path.Path:
    kinds = self._kinds()
    if not kinds:
      return flight_path.plan_path(level, rng, self.frames)
    return flight_path.plan_wander(
      level,
      rng,
      self.frames,
      wander.parse(kinds[rng.integers(len(kinds))]),
      turn=math.radians(self.turn),
      move=self.move * level_lib.UNITS,
    )

  @staticmethod
  def is_installed() -> bool:
    """Returns whether the ViZDoom package is installed."""
    return importlib.util.find_spec('vizdoom') is not None

  def is_free(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> Bool[np.ndarray, ' n']:
    """Returns which cameras `rerender` can render in the level of a clip.

    They keep clear of walls and look no further up or down than the engine can.
    """
    _, level = level_lib.load(*_level_of(clip))
    rotation, position = _cameras(world_to_camera)
    yaw, _, _ = wander.angles(rotation)
    looks = [
      engine_lib.look_of(*view) for view in zip(yaw, rotation, strict=True)
    ]
    return (
      flight_path.room(level, position, _ROUNDING)
      & (level_lib.clearance(level, position) >= flight_path.MIN_CLEARANCE)
      & np.array([look is not None for look in looks], bool)
    )

  def rerender(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> UInt8[np.ndarray, 'n s s 3']:
    """Renders the level of a clip from free cameras, without JPEG encoding.

    The engine stays open for the next call.

    Args:
      clip: Clip of a data set made by this source.
      world_to_camera: Free cameras in the clip's world, in scene units.
    """
    wad, name = _level_of(clip)
    _, level = level_lib.load(wad, name)
    rotation, position = _cameras(world_to_camera)
    sector = level_lib.sector_of(level, position[:, :2])
    # The engine refuses positions even slightly below the floor.
    position[:, 2] = position[:, 2].clip(
      level.floor[sector] + flight_path.VIEW_HEIGHT,
      level.ceiling[sector] - flight_path.HEAD_ROOM,
    )
    pictures = np.zeros((len(position), self.size, self.size, 3), np.uint8)
    path = flight_path.Path(position, *wander.angles(rotation))
    with engine_lib.running(wad, name, self.size) as engine:
      for i, (_, picture, _) in enumerate(engine.views(path)):
        pictures[i] = picture
    return pictures


def _level_of(clip: codec.Clip) -> tuple[str, str]:
  """Returns the WAD and the level of a clip's walk."""
  wad, level = clip.id.partition('/')[0].split('_')
  return wad, level.upper()


def _cameras(
  world_to_camera: Float[np.ndarray, 'n 3 4'],
) -> tuple[Float[np.ndarray, 'n 3 3'], Float[np.ndarray, 'n 3']]:
  """Returns rotations, and positions in map units."""
  pose = world_to_camera.astype(np.float64)
  rotation, translation = pose[:, :, :3], pose[:, :, 3]
  return rotation, -np.einsum(
    'nij,ni->nj', rotation, translation
  ) * level_lib.UNITS
