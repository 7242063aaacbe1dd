"""Procedural rooms with exact cameras and depth; needs no download.

Scene i is a pure function of (seed, i): a furnished, lit room and a smooth
camera path through its free space. `worlds.raycaster` renders it.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import simplejpeg
from jaxtyping import Bool, Float, UInt8

from xfactor.data import depth as depth_lib
from xfactor.data import sources
from xfactor.data.records import codec
from xfactor.data.worlds.raycaster import lighting, render
from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.data.worlds.rooms import camera_path, room, textures
from xfactor.data.worlds.rooms import movers as movers_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras, trajectories, wander


def wander_in_room(
  scene: scene_lib.Scene,
  rng: textures.Rng,
  frames: int,
  freedoms: Sequence[str],
  *,
  turn: float,
  move: float,
) -> wander.Path:
  """Samples a wandering path that keeps `camera_path.MARGIN` to all surfaces.

  If the room has too little space, the camera moves less far.

  Args:
    scene: Room of the path.
    rng: Random number generator.
    frames: Number of frames.
    freedoms: Degrees of freedom that wander.
    turn: Root mean square turning speed, see `wander.wander`.
    move: Root mean square speed, see `wander.wander`.
  """
  low = scene.centre[0] - scene.half[0] + camera_path.MARGIN
  high = scene.centre[0] + scene.half[0] - camera_path.MARGIN
  starts = rng.uniform(low, high, (512, 3))
  starts[:, 2] = rng.uniform(0.9, min(1.8, high[2]), 512)
  free = render.clearance(scene, starts)
  starts = starts[np.argsort(-free)]
  roomy = max(int((free > camera_path.MARGIN + 0.15).sum()), 1)
  best, best_score = None, -np.inf
  tried = 0
  for attempt in range(64):
    path = wander.wander(
      rng,
      frames,
      freedoms,
      eye=starts[rng.integers(roomy)],
      yaw=rng.uniform(0, 2 * np.pi),
      turn=turn,
      move=move * 0.95**attempt,
    )
    eyes = np.unique(path.eyes, axis=0)
    if render.clearance(scene, eyes).min() < camera_path.MARGIN:
      continue
    score = -_too_near(scene, path)
    if score > best_score:
      best, best_score = path, score
    tried += 1
    if tried == 4:
      break
  if best is None:
    best = wander.wander(
      rng, frames, freedoms, eye=starts[0], yaw=0.0, turn=turn, move=0.0
    )
  return best


def _too_near(scene: scene_lib.Scene, path: wander.Path) -> float:
  """Returns the fraction of rays, at eight times, that end within a metre."""
  moments = np.linspace(0, len(path.yaw) - 1, 8).astype(int)
  pose = path.world_to_camera()[moments]
  intrinsics = np.tile([0.8, 0.8, 0.5, 0.5], (8, 1))
  origins, rays = cameras.pixel_rays(intrinsics, pose, 4, 4)
  t, _ = render.first_seen(scene, origins.reshape(-1, 3), rays.reshape(-1, 3))
  return float(np.mean(t < 1.0))


def _fraction(index: int) -> float:
  """Returns a fixed number in 0..1 for a scene."""
  digest = hashlib.sha256(f'{index:06d}'.encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


# The first ten scenes always include a scene of each split that is asked for.
_ALWAYS_TEST = min(range(10), key=_fraction)
_ALWAYS_VAL = max(range(10), key=_fraction)


# Minimum metres to the nearest surface; closer views show little.
_MIN_CLEARANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Rendered(sources.Source):
  """Base class of sources that render scenes.

  Attributes:
    scenes: Number of scenes.
    frames: Frames per clip, at least 2.
    size: Height and width in pixels, at least 8.
    seed: Random seed; scene i depends only on it and i.
    quality: JPEG quality, 1 to 100.
    test_fraction: Fraction of scenes in the split `test`, 0 to 1; a scene keeps
      its split when scenes are added.
    val_fraction: Fraction of scenes in the split `val`, 0 to 1.
    with_depth: Whether clips have depth.
  """

  limits: ClassVar[dict[str, tuple[float, float]]] = {
    'scenes': (1, 10**6),
    'frames': (2, 10**5),
    'size': (8, 4096),
    'seed': (0, 2**63),
    'quality': (1, 100),
    'test_fraction': (0, 1),
    'val_fraction': (0, 1),
  }

  scenes: int = 256
  frames: int = 24
  size: int = 64
  seed: int = 0
  quality: int = 95
  test_fraction: float = 0.1
  with_depth: bool = True
  val_fraction: float = 0.0

  def __post_init__(self):
    for option, (low, high) in self.limits.items():
      value = getattr(self, option)
      if not low <= value <= high:
        raise UserError(
          f'the {self.name} source needs {option} between {low} and {high}, '
          f'not {value}'
        )
    if self.test_fraction + self.val_fraction > 1:
      raise UserError(
        f'the {self.name} source needs test_fraction and val_fraction whose '
        f'sum is at most 1, not {self.test_fraction} and {self.val_fraction}'
      )

  @staticmethod
  def is_installed() -> bool:
    """Returns True: these scenes can always be rendered."""
    return True

  def items(self) -> list[sources.Item]:
    return [
      sources.Item(
        id=f'{index:06d}',
        payload=index,
        split=self._split(index),
        size=self.frames * self.size**2,
      )
      for index in range(self.scenes)
    ]

  def _split(self, index: int) -> str:
    if self.test_fraction and index == _ALWAYS_TEST:
      return 'test'
    if self.val_fraction and index == _ALWAYS_VAL:
      return 'val'
    share = _fraction(index)
    if share < self.test_fraction:
      return 'test'
    return 'val' if share >= 1 - self.val_fraction else 'train'

  def render(
    self,
    clip_id: str,
    baked: Sequence[scene_lib.Baked],
    intrinsics: np.ndarray,
    poses: np.ndarray,
    timestamps: np.ndarray | None = None,
  ) -> sources.Clip:
    """Renders the clip of a scene.

    Args:
      clip_id: Id of the clip.
      baked: The lit scene, one for all frames or one for each.
      intrinsics: As in `sources.Clip`, as all arrays.
      poses: World to camera.
      timestamps: Times of the frames.
    """
    share = len(poses) // len(baked)
    views = (
      view
      for i, lit in enumerate(baked)
      for some in [slice(i * share, (i + 1) * share)]
      for view in render.render(lit, intrinsics[some], poses[some], self.size)
    )
    return self.encode(clip_id, views, intrinsics, poses, timestamps)

  def encode(
    self,
    clip_id: str,
    views: Iterable[tuple[np.ndarray, np.ndarray]],
    intrinsics: np.ndarray,
    poses: np.ndarray,
    timestamps: np.ndarray | None = None,
  ) -> sources.Clip:
    """Encodes pictures and depths as a clip; see `render` for the arguments."""
    images, depths = [], []
    for image, depth in views:
      images.append(
        simplejpeg.encode_jpeg(
          image, quality=self.quality, colorsubsampling='444'
        )
      )
      if self.with_depth:
        depths.append(depth_lib.encode_depth(depth))
    return sources.Clip(
      id=clip_id,
      frames=images,
      height=self.size,
      width=self.size,
      timestamps=timestamps,
      intrinsics=intrinsics,
      world_to_camera=poses,
      depth=depths if self.with_depth else None,
    )


@dataclasses.dataclass(frozen=True)
class Source(Rendered):
  """Procedural rooms; see the module docstring.

  Attributes:
    paths: Comma-separated kinds of camera paths; each clip gets one at random.
      A kind is a key of `trajectories.KINDS`, or degrees of freedom of
      `wander.FREEDOMS` joined by `+`, as in 'pan+tilt'. If empty, all kinds of
      `trajectories.KINDS`.
    walks: Clips per room, each with its own path.
    field_of_view: Degrees across a picture; 0 samples 50 to 75 for each room.
    turn: Root mean square speed of wandering turns, degrees per frame.
    move: Root mean square speed of wandering moves, metres per frame.
    movers: Solids that move by themselves in each clip. `rerender` shows them
      as they are in the middle frame.
  """

  limits: ClassVar[dict[str, tuple[float, float]]] = Rendered.limits | {
    'walks': (1, 1000),
    'field_of_view': (0, 120),
    'turn': (0, 30),
    'move': (0, 1),
    'movers': (0, 100),
  }

  name: ClassVar[str] = 'synthetic'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = (
    'Procedural furnished rooms with exact cameras and depth.'
  )

  paths: str = ''
  walks: int = 1
  field_of_view: float = 0.0
  turn: float = 2.0
  move: float = 0.05
  movers: int = 0

  def __post_init__(self):
    super().__post_init__()
    for kind in self._kinds():
      if kind not in trajectories.KINDS and wander.parse(kind) is None:
        raise UserError(
          f'the {self.name} source has no paths of kind {kind!r}; choose from '
          f'{", ".join(trajectories.KINDS)}, or join some of '
          f'{", ".join(wander.FREEDOMS)} by +'
        )

  def _kinds(self) -> list[str]:
    return self.paths.split(',') if self.paths else list(trajectories.KINDS)

  def items(self) -> list[sources.Item]:
    items = super().items()
    return [
      dataclasses.replace(item, size=item.size * self.walks) for item in items
    ]

  def scene(self, index: int) -> tuple[scene_lib.Scene, list[np.ndarray]]:
    """Returns scene `index` with textures as fine as the frames can show."""
    # A texel covers about a pixel at arm's length.
    resolution = np.clip(2 ** np.ceil(np.log2(self.size * 2)), 64, 512)
    return room.build_scene(self.seed, index, int(resolution))

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    index = item.payload
    scene, focuses = self.scene(index)
    baked = lighting.bake(scene)
    for walk in range(self.walks):
      # A separate stream: the path does not depend on the samples of the room.
      rng = np.random.default_rng([self.seed, index, 1] + [walk] * (walk > 0))
      angle = rng.uniform(50, 75)
      half_view = np.tan(np.radians(self.field_of_view or angle) / 2)
      poses = self._path(scene, focuses, rng, half_view).astype(np.float32)
      focal = 0.5 / half_view
      intrinsics = np.tile(
        np.array([focal, focal, 0.5, 0.5], np.float32), (self.frames, 1)
      )
      timestamps = np.arange(self.frames) / 10
      clip_id = f'{item.id}-{walk}' if walk else item.id
      frames = [baked]
      if self.movers:
        moving = self._movers(scene, index, walk, poses)
        frames = [moving.at(baked, i) for i in range(self.frames)]
      yield self.render(clip_id, frames, intrinsics, poses, timestamps)

  def is_free(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> Bool[np.ndarray, ' n']:
    """Returns which cameras keep clear of walls and furniture."""
    rotation, translation = world_to_camera[..., :3], world_to_camera[..., 3]
    eyes = -np.linalg.solve(rotation, translation[..., None])[..., 0]
    return render.clearance(self._lit(clip).scene, eyes) >= _MIN_CLEARANCE

  def rerender(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> UInt8[np.ndarray, 'n s s 3']:
    """Renders the room of a clip from free cameras, without JPEG encoding."""
    # All frames of a clip have the same intrinsics.
    intrinsics = np.repeat(clip.intrinsics[:1], len(world_to_camera), 0)
    poses = world_to_camera.astype(np.float32)
    rendered = render.render(self._lit(clip), intrinsics, poses, self.size)
    pictures = np.zeros((len(poses), self.size, self.size, 3), np.uint8)
    for i, (picture, _) in enumerate(rendered):
      pictures[i] = picture
    return pictures

  def _lit(self, clip: codec.Clip) -> scene_lib.Baked:
    # The walks of a room are named 000003, 000003-1 and so on.
    index, _, walk = clip.id.partition('-')
    baked = _baked(self, int(index))
    if not self.movers:
      return baked
    poses = clip.world_to_camera
    moving = self._movers(baked.scene, int(index), int(walk or 0), poses)
    return moving.at(baked, (self.frames - 1) // 2)

  def _movers(
    self, scene: scene_lib.Scene, index: int, walk: int, poses: np.ndarray
  ) -> movers_lib.Movers:
    rng = np.random.default_rng([self.seed, index, 2, walk])
    return movers_lib.sample(rng, scene, poses, self.movers)

  def _path(
    self,
    scene: scene_lib.Scene,
    focuses: list[np.ndarray],
    rng: textures.Rng,
    half_view: float,
  ) -> np.ndarray:
    """Returns world-to-camera poses [frames, 3, 4] of a random kind."""
    wandering = [kind for kind in self._kinds() if wander.parse(kind)]
    others = [kind for kind in self._kinds() if kind not in wandering]
    # `choose_path` selects among the other kinds by what fits the room.
    if wandering and rng.uniform() * len(self._kinds()) < len(wandering):
      return wander_in_room(
        scene,
        rng,
        self.frames,
        wander.parse(str(rng.choice(wandering))),
        turn=np.radians(self.turn),
        move=self.move,
      ).world_to_camera()
    path = camera_path.choose_path(scene, focuses, rng, half_view, others)
    roll = np.array([rng.normal() * 0.02, rng.normal() * 0.02, 1.0])
    eyes, targets = path(np.linspace(0, 1, self.frames))
    return cameras.look_at(eyes, targets, roll)


# Baking takes a second, rendering a frame of 128 pixels a thirtieth.
@functools.lru_cache(maxsize=4)
def _baked(source: Source, index: int) -> scene_lib.Baked:
  return lighting.bake(source.scene(index)[0])
