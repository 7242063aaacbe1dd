"""Renders views of Doom levels with ViZDoom."""

import contextlib
import functools
import math
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from xfactor.data.worlds.doom import flight_path
from xfactor.data.worlds.doom import level as level_lib

_ENGINE_FIELD_OF_VIEW = (
  120.0  # Wide enough to resample pitched and rolled views.
)
_PIXEL_ASPECT = 1.2  # The engine stretches pictures vertically by this.
_MAX_LOOK = (
  -32.0,
  55.0,
)  # Range of the engine's pitch in degrees, up and down.
_SLACK = 0.01  # Margin of ray slopes at the border of the engine's picture.
_SUBSAMPLES = 4
# Brightens Freedoom's pictures, whose mean level is 47 of 255.
_GAMMA = np.rint(255 * (np.arange(256) / 255) ** (1 / 1.4)).astype(np.uint8)


class _Engine:
  """A running game in which only the camera moves."""

  def __init__(self, game: Any, size: int):
    self._game = game
    self._rays = level_lib.pixel_rays(size, _SUBSAMPLES).astype(np.float32)
    self._look = 0  # Pitch of the player in engine units; positive is down.

  def views(
    self, path: flight_path.Path
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields position [3], RGB [size, size, 3] and rotation [3, 3].

    Raises:
      ValueError: If a view is beyond the engine's field of view.
    """
    for position, yaw, pitch, roll in zip(
      path.position, path.yaw, path.pitch, path.roll, strict=True
    ):
      rotation = level_lib.rotation_of(yaw, pitch, roll)
      look = look_of(yaw, rotation)
      if look is None:
        raise ValueError(f'pitch {pitch} and roll {roll} are beyond the engine')
      seen, screen, engine_yaw = self._see(position, yaw, look)
      level = level_lib.rotation_of(engine_yaw, 0.0, 0.0)
      turn = (rotation @ level.T).astype(np.float32)
      rgb = _resample(screen, self._rays @ turn, look)
      yield seen, rgb, rotation

  def _see(
    self, position: np.ndarray, yaw: float, look: int
  ) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the camera's position, the screen and the engine's yaw."""
    turn = _engine_turn(yaw)
    x, y, z = (
      round(v * 65536) for v in position - [0, 0, flight_path.VIEW_HEIGHT]
    )
    self._game.send_game_command(f'puke 1 {x} {y} {z} {turn * 8}')
    if look != self._look:
      self._game.send_game_command(f'puke 2 {look * 8}')
      self._look = look
    wanted = np.array([*position, turn * 360 / 8192, look * 360 / 8192])
    # The script runs one tic after the command, and the engine smooths changes
    # of height over a few more tics.
    for _ in range(12):
      self._game.advance_action()
      state = self._game.get_state()
      *seen, fov = state.game_variables
      error = np.abs(seen - wanted)
      error[3] = min(error[3], 360 - error[3])
      if error.max() < 0.01 and abs(fov - _ENGINE_FIELD_OF_VIEW) < 0.01:
        return np.array(seen[:3]), state.screen_buffer, math.radians(seen[3])
    raise RuntimeError(f'ViZDoom put the camera at {seen} instead of {wanted}')


def _engine_turn(yaw: float) -> int:
  """Returns the nearest of the 8192 yaws of the renderer."""
  # The homography corrects the remainder.
  return round(yaw / (2 * math.pi) * 8192) % 8192


def look_of(yaw: float, rotation: np.ndarray) -> int | None:
  """Returns how far the engine must look down so that its picture holds a view.

  Args:
    yaw: Yaw of the engine in radians.
    rotation: World-to-camera rotation [3, 3].

  Returns:
    The smallest such pitch in 8192nds of a turn, mostly 0; None if there is
    none.
  """
  level = level_lib.rotation_of(
    _engine_turn(yaw) / 8192 * 2 * math.pi, 0.0, 0.0
  )
  # Rays to the corners suffice, since the picture is convex.
  edge = math.tan(math.radians(level_lib.FIELD_OF_VIEW) / 2)
  corners = np.array(
    [[x, y, 1.0] for x in (-edge, edge) for y in (-edge, edge)]
  )
  x, y, z = (corners @ rotation @ level.T).T
  right = math.tan(math.radians(_ENGINE_FIELD_OF_VIEW) / 2) - _SLACK
  if (z < 0.1).any() or (np.abs(x) > right * z).any():
    return None
  down = right * 3 / 4 / _PIXEL_ASPECT - _SLACK
  # A sheared picture reaches from `shift - down` to `shift + down`.
  low, high = (y / z).max() - down, (y / z).min() + down
  if low > high:
    return None
  look = round(math.atan(min(max(0.0, low), high)) / (2 * math.pi) * 8192)
  return look if _MAX_LOOK[0] < look * 360 / 8192 < _MAX_LOOK[1] else None


def _resample(screen: np.ndarray, rays: np.ndarray, look: int) -> np.ndarray:
  """Samples the engine's picture along rays of its level camera.

  Args:
    screen: uint8 [H, W, 3] picture of the engine.
    rays: [S * k, S * k, 3] rays; blocks of k x k are averaged to a pixel.
    look: How far the engine looks down, in 8192nds of a turn.

  Returns:
    uint8 [S, S, 3].
  """
  height, width, _ = screen.shape
  focal = width / 2 / math.tan(math.radians(_ENGINE_FIELD_OF_VIEW) / 2)
  horizon = height / 2
  horizon -= focal * _PIXEL_ASPECT * math.tan(look / 8192 * 2 * math.pi)
  u = width / 2 + focal * rays[..., 0] / rays[..., 2]
  v = horizon + focal * _PIXEL_ASPECT * rays[..., 1] / rays[..., 2]
  index = v.astype(np.intp) * width + u.astype(np.intp)
  samples = screen.reshape(-1, 3)[index]
  count = len(rays) // _SUBSAMPLES
  # Much faster than a sum over both axes at once.
  columns = samples.reshape(count, _SUBSAMPLES, -1).sum(1, dtype=np.uint16)
  total = columns.reshape(count, count, _SUBSAMPLES, 3).sum(2, dtype=np.uint16)
  return _GAMMA[(total + _SUBSAMPLES**2 // 2) // _SUBSAMPLES**2]


@contextlib.contextmanager
def running(wad: str, level: str, size: int) -> Iterator[_Engine]:
  """Yields the cached engine of a level, which stays open except on errors."""
  try:
    yield _engine(wad, level, size)
  except BaseException:
    # The state of the player is unknown now.
    _engine.cache_clear()
    raise


# A start takes as long as thirty views.
@functools.lru_cache(maxsize=2)
def _engine(wad: str, level: str, size: int) -> _Engine:
  """Starts ViZDoom on a frozen level, without window or sound."""
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(
      tempfile.TemporaryDirectory(prefix='xfactor_vizdoom_')
    )
    game = _game(wad, level, size, folder)
    # The engine creates folders in its working directory.
    with contextlib.chdir(folder):
      game.init()
    stack.callback(game.close)
    for command in ('noclip', 'notarget', 'god', 'sv_gravity 0'):
      game.send_game_command(command)
    game.send_game_command(f'fov {_ENGINE_FIELD_OF_VIEW:.0f}')
    for _ in range(15):
      game.advance_action()
    engine = _Engine(game, size)
    # Close the game when the cache drops it or the process ends.
    weakref.finalize(engine, stack.pop_all().close)
  return engine


def _game(wad: str, level: str, size: int, folder: str) -> Any:
  """Returns a configured ViZDoom game with its files in `folder`."""
  import vizdoom

  patch = os.path.join(folder, 'patch.wad')
  lumps, _ = level_lib.load(wad, level)
  level_lib.write_patch(patch, lumps)
  game = vizdoom.DoomGame()
  game.set_doom_game_path(os.path.join(level_lib.game_folder(), f'{wad}.wad'))
  game.set_doom_scenario_path(patch)
  game.set_doom_map(level)
  game.set_doom_config_path(os.path.join(folder, 'vizdoom.ini'))
  # At least twice the resolution of the picture, mostly four times.
  resolution = next(
    name
    for name, limit in (
      ('RES_640X480', 96),
      ('RES_1280X960', 192),
      ('RES_1600X1200', math.inf),
    )
    if size <= limit
  )
  game.set_screen_resolution(getattr(vizdoom.ScreenResolution, resolution))
  game.set_screen_format(vizdoom.ScreenFormat.RGB24)
  for part in (
    *('hud', 'crosshair', 'weapon', 'decals', 'particles', 'messages'),
    *('effects_sprites', 'corpses', 'screen_flashes'),
  ):
    getattr(game, f'set_render_{part}')(False)
  game.set_window_visible(False)
  game.set_sound_enabled(False)
  game.set_console_enabled(False)
  game.set_available_game_variables(
    [
      getattr(vizdoom.GameVariable, f'CAMERA_{variable}')
      for variable in (
        *('POSITION_X', 'POSITION_Y', 'POSITION_Z', 'ANGLE', 'PITCH', 'FOV'),
      )
    ]
  )
  for argument in ('+sv_cheats 1', '+cl_capfps 1', '+movebob 0'):
    game.add_game_args(argument)
  game.set_mode(vizdoom.Mode.PLAYER)
  game.set_seed(1)
  game.set_episode_timeout(0)
  return game
