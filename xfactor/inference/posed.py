"""Inference with posed models: renders a scene from a few views with cameras.

  >>> import xfactor
  >>> model = xfactor.load('runs/srt_nmr')
  >>> scene = model.encode(images, intrinsics, world_to_camera)
  >>> drawn = model.render(scene, other_intrinsics, other_poses, 128, 128)
  >>> drawn.pictures.shape == (len(other_poses), 128, 128, 3)
  True

Cameras have OpenCV axes; poses are world-to-camera [R|t] in any world frame
shared by the views, in the unit of length of the training data; intrinsics are
(fx, fy, cx, cy) divided by width and height.
"""

import dataclasses
import math

import einops
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, UInt8

from xfactor import streams
from xfactor.errors import UserError
from xfactor.geometry import cameras
from xfactor.inference import restore
from xfactor.methods.srt import network as srt_network
from xfactor.methods.srt import objective as srt_objective
from xfactor.nn import sharding


@dataclasses.dataclass(frozen=True)
class Scene:
  """An encoded scene, returned by `PosedModel.encode`.

  Attributes:
    tokens: Scene tokens, one copy for each data-parallel device.
    first: World-to-camera pose of the first view.
  """

  tokens: Float[Array, 'd t c']
  first: Float32[np.ndarray, '3 4']


@dataclasses.dataclass(frozen=True)
class Rendered:
  """Pictures of a scene from given cameras.

  Attributes:
    pictures: Rendered pictures, one for each camera.
    depth: Expected distance along each pixel's ray; None for models without a
      volume.
  """

  pictures: UInt8[np.ndarray, 'n h w 3']
  depth: Float32[np.ndarray, 'n h w'] | None


class PosedModel:
  """A trained posed model, returned by `xfactor.load`.

  Attributes:
    config: Recipe of the training run.
    step: Number of training updates.
    contexts: Views of a scene in training; other numbers also work.
    image_shape: Height and width of the views in training.
    span: Start and end of the rays, in units of the world; None for light
      fields, which have no depth.
  """

  def __init__(self, restored: restore.Restored, *, progress: bool = False):
    config, build = restored.config, restored.build
    self.config = config
    self.step = restored.step
    self.contexts = config.data.contexts
    self.image_shape = build.image_size, build.image_width
    volume = build.objective.volume
    self.span = volume and (volume.min_dist, volume.max_dist)
    self._params = restored.params
    self._build = build
    self._ways = sharding.batch_ways(build.mesh)
    self._progress = progress
    bind, objective = build.functional.bind, build.objective

    def encode(params, images, intrinsics, poses):
      def repeat(x):
        return jnp.broadcast_to(x, (self._ways, *x.shape))

      poses = srt_objective.poses_of(poses[None], objective)[0]
      views = (repeat(x) for x in (images, intrinsics, poses))
      return srt_objective.encode(bind(params), *views, objective)

    def draw(params, tokens, first, intrinsics, poses, height, width, parts):
      poses = jnp.concatenate([first[None], poses])[None]
      poses = srt_objective.poses_of(poses, objective)[0, 1:]
      count = len(poses) * height * width
      every = -(-count // (parts * self._ways))

      def divide(x):
        x = einops.rearrange(x, 'n h w c -> (n h w) c')
        missing = parts * self._ways * every - count
        x = jnp.pad(x, [(0, missing), (0, 0)], mode='edge')
        x = einops.rearrange(x, '(p d r) c -> p d r c', p=parts, d=self._ways)
        place = NamedSharding(build.mesh, P(None, *sharding.BATCH))
        return jax.lax.with_sharding_constraint(x, place)

      def join(x):
        x = einops.rearrange(x, 'p d r ... -> (p d r) ...')[:count]
        return x.reshape(-1, height, width, *x.shape[1:])

      def decode(part):
        drawn = bind(params).decode(tokens, *part)
        return drawn.color, drawn.depth

      pixels = cameras.pixel_rays(intrinsics, poses, height, width, jnp)
      drawn = jax.lax.map(decode, tuple(divide(x) for x in pixels))
      colors, depth = jax.tree.map(join, drawn)
      pictures = jnp.round(255 * jnp.clip(colors, 0, 1)).astype(jnp.uint8)
      return pictures, depth, jnp.isfinite(colors).all()

    self._encode = jax.jit(
      encode, out_shardings=NamedSharding(build.mesh, sharding.BATCH)
    )
    self._draw = jax.jit(
      draw,
      static_argnums=(5, 6, 7),
      out_shardings=NamedSharding(build.mesh, P()),
    )

  def encode(
    self,
    images: UInt8[np.ndarray, 'v h w 3'] | Float[np.ndarray, 'v h w 3'],
    intrinsics: Float[np.ndarray, 'i 4'],
    world_to_camera: Float[np.ndarray, 'p 3 4'],
  ) -> Scene:
    """Encodes views of a scene.

    Args:
      images: uint8, or floats in [0, 1], which are rounded to 256 levels; of
        the size of the training views, or of another size with the same number
        of pixels per degree.
      intrinsics: Normalised intrinsics of each view.
      world_to_camera: Poses; the first one is the canonical pose.

    Raises:
      UserError: If counts differ, cameras are not finite, or views are larger
        than the model can take.
    """
    views = len(images)
    _check(intrinsics, world_to_camera)
    if views != len(intrinsics):
      raise UserError(
        f'{views} views have {len(intrinsics)} cameras; pass one for each view'
      )
    stride = self._build.objective.input_stride
    srt_network.check_size(
      self._build.model,
      *(srt_objective.strided(n, stride) for n in images.shape[1:3]),
    )
    if views != self.contexts:
      logging.log_first_n(
        logging.WARNING,
        'The scene has %d views; the model was trained with %d.',
        1,
        views,
        self.contexts,
      )
    if images.dtype != np.uint8:
      images = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    given = images, _single(intrinsics), _single(world_to_camera)
    with jax.set_mesh(self._build.mesh):
      tokens = self._encode(self._params, *given)
    return Scene(tokens, _single(world_to_camera[0]))

  def render(
    self,
    scene: Scene,
    intrinsics: Float[np.ndarray, 'i 4'],
    world_to_camera: Float[np.ndarray, 'p 3 4'],
    height: int,
    width: int,
  ) -> Rendered:
    """Renders a scene from other cameras, in batches of rays.

    The batch size depends on the model's sizes, so that memory hardly depends
    on the size of the pictures, and not on their number. The rays are divided
    over all devices.

    Args:
      scene: Scene returned by `encode`.
      intrinsics: Normalised intrinsics of each picture.
      world_to_camera: Poses in the world of the scene's views.
      height: Height of the pictures in pixels.
      width: Width of the pictures in pixels.

    Raises:
      UserError: If counts differ, or cameras or the pictures are not finite.
    """
    _check(intrinsics, world_to_camera)
    count, pixels = len(world_to_camera), height * width
    most = self._ways * srt_objective.at_once(
      self._build.model, scene.tokens.shape[1]
    )
    # Render several small pictures at once, and large ones in parts.
    calls = math.ceil(count / max(1, most // pixels))
    group = math.ceil(count / calls)
    parts = math.ceil(group * pixels / most)
    pictures, depths = [], []
    with (
      jax.set_mesh(self._build.mesh),
      streams.progress(
        total=count, desc='pictures', leave=False, disable=not self._progress
      ) as bar,
    ):
      for start in range(0, count, group):
        some = slice(start, start + group)
        padded = (
          _single(np.resize(x[some], (group, *x.shape[1:])))
          for x in (intrinsics, world_to_camera)
        )
        drawn, depth, finite = jax.device_get(
          self._draw(
            self._params,
            *(scene.tokens, scene.first, *padded),
            *(height, width, parts),
          )
        )
        if not finite:
          raise UserError(
            f'the pictures that the model of step {self.step} gives are not '
            'finite: its training diverged; use an older checkpoint'
          )
        pictures.append(drawn[: count - start])
        depths.append(None if depth is None else depth[: count - start])
        bar.update(len(pictures[-1]))
    return Rendered(
      np.concatenate(pictures),
      None if self.span is None else np.concatenate(depths),
    )


def _single(x: np.ndarray) -> np.ndarray:
  return np.asarray(x, np.float32)


def _check(intrinsics: np.ndarray, poses: np.ndarray) -> None:
  if not len(intrinsics) == len(poses) > 0:
    raise UserError(
      f'cameras have {len(intrinsics)} intrinsics and {len(poses)} poses; pass '
      'at least one of each, in equal numbers'
    )
  if not (np.isfinite(intrinsics).all() and np.isfinite(poses).all()):
    raise UserError(
      'a camera has values that are not finite; pass only views with '
      'known cameras'
    )
