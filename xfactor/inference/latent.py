"""Inference with models of latent poses."""

import copy
from collections.abc import Callable, Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, UInt8

from xfactor import streams
from xfactor.data.formats import camera_files
from xfactor.data.images import centre_crop_resize
from xfactor.errors import UserError
from xfactor.geometry import cameras as geometry
from xfactor.inference import calibration as calibrations
from xfactor.inference import restore
from xfactor.nn import sharding
from xfactor.nn.functional import Params
from xfactor.nn.layers import to_float, to_uint8

# uint8 [n, H, W, 3] RGB, or n of [H, W, 3] whose sizes may differ.
Pictures = np.ndarray | Sequence[np.ndarray]


class Model:
  """A trained model of latent poses, returned by `xfactor.load`.

  Pictures of any size are cropped to their central square and resized to
  `image_size`, with one warning. Functions are compiled once for each number of
  context views, whatever the number of frames.

  Attributes:
    config: Recipe of the training run.
    step: Number of training updates.
    image_size: Height and width of the pictures in pixels.
    pose_dim: Channels of a latent pose.
    contexts: Largest number of views of a scene.
    window: Longest window in training, in frames; None if unknown.
    relative: Whether poses are relative to a view, whose own pose is zero.
    workdir: Folder of the run; None if the model was not read from one.
  """

  def __init__(self, restored: restore.Restored, *, batch: int, progress: bool):
    config, build = restored.config, restored.build
    self.config = config
    self.step = restored.step
    self.image_size = build.image_size
    self.pose_dim = build.model.pose_dim
    self.contexts = build.views - 1
    self.window = restored.window
    self.workdir = restored.workdir
    self._calibration: calibrations.Calibration | None = None
    self._params = restored.params
    self.relative = build.method.relative
    self._mesh = build.mesh
    ways = sharding.batch_ways(self._mesh)
    self._batch = -(-batch // ways) * ways
    self._progress = progress
    self._said: set[str] = set()
    self._say: Callable[[str], None] = lambda text: logging.warning('%s', text)
    bind = build.functional.bind

    def encode(params, references, frames):
      pairs = to_float(jnp.stack([references, frames], 1))
      poses = bind(params).encode(pairs)[:, 1]
      return poses, _are_finite(poses)

    def draw(params, context, context_poses, poses):
      def repeat(x):
        return jnp.broadcast_to(x, (len(poses), *x.shape))

      poses = jnp.concatenate([repeat(context_poses), poses[:, None]], axis=1)
      pictures = bind(params).render(repeat(to_float(context)), poses)
      return to_uint8(pictures), _are_finite(pictures)

    everywhere = NamedSharding(self._mesh, P())
    self._encode = jax.jit(encode, out_shardings=everywhere)
    self._draw = jax.jit(draw, out_shardings=everywhere)

  def at(self, step: int, params: Params) -> 'Model':
    """Returns the model with other parameters, without a new compilation."""
    other = copy.copy(self)
    other.step, other._params, other._calibration = step, params, None
    return other

  def calibrated(self, calibration: calibrations.Calibration) -> 'Model':
    """Returns the model with a calibration of its latent poses.

    Raises:
      UserError: If it is of another checkpoint or another kind of poses.
    """
    width = len(calibration.to_motions.scale)
    if calibration.step != self.step or width != self.pose_dim:
      raise UserError(
        f'the calibration is of step {calibration.step} and poses of {width} '
        f'channels, and the model of step {self.step} and {self.pose_dim} '
        'channels; make one for this checkpoint: python -m xfactor.calibrate'
      )
    other = copy.copy(self)
    other._calibration = calibration
    return other

  @property
  def calibration(self) -> calibrations.Calibration:
    """What camera motions the latent poses are; see `xfactor.calibrate`.

    Raises:
      UserError: If none has been made.
    """
    if self._calibration is None:
      raise UserError(
        f'the model of step {self.step} has no calibration, which camera paths '
        'need; make it from clips with cameras: python -m xfactor.calibrate '
        f'--workdir={self.workdir or "RUN"}'
      )
    return self._calibration

  def telling(self, say: Callable[[str], None]) -> 'Model':
    """Returns the model with its warnings passed to `say`, not to the log."""
    other = copy.copy(self)
    other._said, other._say = set(), say
    return other

  def one_by_one(self) -> 'Model':
    """Returns the model with the smallest batch and without progress bars.

    Parameters are shared. Batches are padded, so this is the fastest model of
    single pictures.
    """
    other = copy.copy(self)
    other._batch, other._progress = sharding.batch_ways(self._mesh), False
    return other

  def encode_poses(
    self, frames: Pictures, reference: int = 0
  ) -> Float32[np.ndarray, 'n z']:
    """Returns latent poses relative to frames[reference], whose pose is zero.

    (Except for RUST, whose poses are relative to the scene, not to a view.)

    Args:
      frames: uint8, one or more of any size.
      reference: Index into `frames`.

    Raises:
      UserError: If `reference` is out of range, or `fit` raises.
    """
    frames = self.fit(frames, 'a frame')
    _check_index('reference', reference, len(frames))
    references = np.broadcast_to(frames[reference], frames.shape)
    poses = self._map('poses', self._encode, (), references, frames)
    if self.relative:
      poses[reference] = 0
    return poses

  def encode_pairs(
    self, references: Pictures, frames: Pictures
  ) -> Float32[np.ndarray, 'n z']:
    """Returns latent poses of frames, each relative to its own reference.

    Batches many short clips, which `encode_poses` would encode one by one.

    Args:
      references: uint8, one for each of `frames`.
      frames: uint8, one or more of any size.

    Raises:
      UserError: If the counts differ, or `fit` raises.
    """
    references = self.fit(references, 'a reference')
    frames = self.fit(frames, 'a frame')
    if len(references) != len(frames):
      raise UserError(
        f'{len(references)} references for {len(frames)} frames; pass one '
        'reference per frame'
      )
    return self._map('poses', self._encode, (), references, frames)

  def render(
    self,
    context: Pictures,
    context_poses: Float32[np.ndarray, 'c z'],
    target_poses: Float32[np.ndarray, 'n z'],
  ) -> UInt8[np.ndarray, 'n h w 3']:
    """Renders the scene of `context` from the target poses.

    Args:
      context: uint8, views of one scene, at most `contexts`.
      context_poses: Poses of the views, relative to one of them.
      target_poses: Poses to render, relative to that view, or to the frame of
        another video that it corresponds to.

    Raises:
      UserError: If there are too many views, poses have a wrong shape, or `fit`
        raises.
    """
    context = self.fit(context, 'a view of the scene')
    self._check_contexts(len(context))
    for name, poses, count in (
      ('context_poses', context_poses, len(context)),
      ('target_poses', target_poses, len(target_poses)),
    ):
      if poses.shape != (count, self.pose_dim):
        raise UserError(
          f'{name} of shape {poses.shape} must have the shape '
          f'{(count, self.pose_dim)}: a row for each view, as encode_poses '
          'returns them'
        )
    return self._map(
      'pictures', self._draw, (context, context_poses), target_poses
    )

  def transfer(
    self,
    motion: Pictures,
    scene: Pictures,
    *,
    reference: int = 0,
    scene_reference: int | None = None,
    chain: int | None = None,
    interpolate: int = 1,
    stride: int = 1,
  ) -> UInt8[np.ndarray, 'n h w 3']:
    """Renders a scene with the camera motion of a video, a picture per frame.

    Poses of the motion are relative to its reference, poses of the scene's
    views to the scene's reference, and the two references correspond: at the
    motion's reference, the picture shows the scene's reference view.

    Args:
      motion: uint8 frames of a video, two or more.
      scene: uint8 views of one scene in temporal order, at most `contexts`.
      reference: Index into `motion`.
      scene_reference: Index into `scene`; the middle one if None.
      chain: Frames after which the picture rendered there becomes the scene and
        its frame the reference, for motions that leave the reference's field of
        view. Each time, rendering errors become part of the scene.
      interpolate: k > 1 adds k - 1 pictures between neighbouring frames, from
        interpolated latent poses; n frames become k * (n - 1) + 1 pictures.
      stride: Frames of the video from one of `motion` to the next; only used to
        warn of motions beyond the training windows.

    Raises:
      UserError: If options or counts are invalid, or `fit` raises.
    """
    motion = self.fit(motion, 'a frame of the motion')
    if len(motion) < 2:
      raise UserError('the motion has only one frame; pass two or more')
    scene = self.fit(scene, 'a view of the scene')
    self._check_contexts(len(scene))
    if scene_reference is None:
      scene_reference = (len(scene) - 1) // 2
    _check_index('reference', reference, len(motion))
    _check_index('scene_reference', scene_reference, len(scene))
    for name, value in (('chain', chain), ('interpolate', interpolate)):
      if value is not None and value < 1:
        raise UserError(f'{name}={value} must be at least 1')
    pieces = segments(len(motion), reference, chain)
    self._warn(len(motion), pieces, stride)

    def targets(start: int, frames: slice) -> np.ndarray:
      poses = self.encode_poses(motion[frames], start - frames.start)
      return _interpolate(poses, interpolate)

    return self._follow(
      scene, scene_reference, reference, pieces, targets, interpolate
    )

  def render_path(
    self,
    scene: Pictures,
    cameras: Float[np.ndarray, 'n 3 4'] | camera_files.Cameras,
    *,
    focal: float | Float[np.ndarray, ' n'] | None = None,
    reference: int = 0,
    scene_reference: int | None = None,
    chain: int | None = None,
    by: str | None = None,
  ) -> UInt8[np.ndarray, 'n h w 3']:
    """Renders a scene from cameras; needs a calibration.

    Warns if a motion is further from those of the calibration than 99 % of
    these.

    Args:
      scene: uint8 views of one scene in temporal order, at most `contexts`.
      cameras: World-to-camera poses [R|t] (OpenCV) in any world, in the unit of
        the calibration, or cameras of a file, whose focal lengths are used.
      focal: Focal length of the central square, divided by its side; that of
        the calibration if None.
      reference: Index of the camera that took the scene's reference view.
      scene_reference: Index into `scene`; the middle one if None.
      chain: As for `transfer`: cameras after which the picture rendered there
        becomes the scene.
      by: 'ridge' or 'network', as for `Calibration.poses`.

    Raises:
      UserError: If there is no calibration, options or counts are invalid, or
        `fit` raises.
    """
    calibration = self.calibration
    if isinstance(cameras, camera_files.Cameras):
      focal = cameras.focal if focal is None else focal
      cameras = cameras.world_to_camera
    scene = self.fit(scene, 'a view of the scene')
    self._check_contexts(len(scene))
    if scene_reference is None:
      scene_reference = (len(scene) - 1) // 2
    count = len(cameras)
    _check_index('reference', reference, count)
    _check_index('scene_reference', scene_reference, len(scene))
    if chain is not None and chain < 1:
      raise UserError(f'chain={chain} must be at least 1')
    focal = np.broadcast_to(
      calibration.focal if focal is None else np.asarray(focal, float), count
    )

    def farthest(chain: int | None) -> tuple[float, int]:
      distances = self.path_distances(cameras, focal, reference, chain)
      return float(distances.max()), int(distances.argmax())

    distance, at = farthest(chain)
    limit = calibration.motions.limit
    if distance > limit:
      shorter = range(1, chain or count)
      fits = [x for x in shorter if farthest(x)[0] <= limit]
      remedy = f', or give chain={fits[-1]}' if fits else ''
      self._say_once(
        f'camera {at} of the path is {distance:.1f} standard deviations from '
        f'the motions of the calibration, of which 99 % are within {limit:.1f};'
        f' pictures there are unreliable; use a smaller motion{remedy}'
      )

    def targets(start: int, frames: slice) -> np.ndarray:
      motions = geometry.relative_to(cameras[frames], cameras[start])
      return calibration.poses(motions, focal[frames], by).poses

    pieces = segments(count, reference, chain)
    return self._follow(scene, scene_reference, reference, pieces, targets)

  def path_distances(
    self,
    cameras: Float[np.ndarray, 'n 3 4'],
    focal: float | Float[np.ndarray, ' n'],
    reference: int = 0,
    chain: int | None = None,
  ) -> Float[np.ndarray, ' n']:
    """Returns how far cameras are from the motions of the calibration.

    In standard deviations, each relative to the camera that it is rendered
    from; arguments are those of `render_path`.
    """
    focal = np.broadcast_to(focal, len(cameras))
    out = np.zeros(len(cameras))
    for start, frames in segments(len(cameras), reference, chain):
      motions = geometry.relative_to(cameras[frames], cameras[start])
      far = self.calibration.distance(motions, focal[frames])
      out[frames] = np.maximum(out[frames], far)
    return out

  def cameras(
    self,
    frames: Pictures,
    reference: int = 0,
    *,
    chain: int | None = None,
    by: str | None = None,
  ) -> calibrations.CameraPath:
    """Returns the cameras of a video's frames; needs a calibration.

    Args:
      frames: uint8, two or more of any size, in temporal order.
      reference: Index of the frame whose camera is the identity.
      chain: Frames after which the pose is read relative to the frame there,
        not to the reference, and composed with that frame's; one less than the
        calibration's window if None.
      by: 'ridge' or 'network', as for `Calibration.poses`.

    Raises:
      UserError: If there is no calibration, an option is invalid, or `fit`
        raises.
    """
    calibration = self.calibration
    frames = self.fit(frames, 'a frame')
    _check_index('reference', reference, len(frames))
    chain = calibration.window - 1 if chain is None else chain
    if chain < 1:
      raise UserError(f'chain={chain} must be at least 1')
    poses = np.tile(np.eye(3, 4), (len(frames), 1, 1))
    numbers = np.zeros((3, len(frames)))
    for start, part in segments(len(frames), reference, chain):
      latents = self.encode_poses(frames[part], start - part.start)
      found = calibration.cameras(latents, by)
      origin = np.broadcast_to(poses[start], found.world_to_camera.shape)
      new = np.arange(part.start, part.stop) != start
      poses[part][new] = geometry.compose(found.world_to_camera, origin)[new]
      read = np.stack([found.degrees, found.move, found.distance])
      numbers[:, part][:, new] = read[:, new]
    return calibrations.CameraPath(poses, *numbers)

  def _follow(
    self,
    scene: UInt8[np.ndarray, 'c h w 3'],
    scene_reference: int,
    reference: int,
    pieces: Sequence[tuple[int, slice]],
    targets_of: Callable[[int, slice], np.ndarray],
    interpolate: int = 1,
  ) -> UInt8[np.ndarray, 'n h w 3']:
    """Renders the pieces of a motion, each from the picture at its reference.

    Args:
      scene: Views of the scene.
      scene_reference: Index into the views.
      reference: Frame of the motion that corresponds to it.
      pieces: Result of `segments`.
      targets_of: Returns the latent poses of a piece, see `_interpolate`.
      interpolate: Pictures per frame.
    """
    count = max(frames.stop for _, frames in pieces)
    context, poses = scene, self.encode_poses(scene, scene_reference)
    shape = (interpolate * (count - 1) + 1, *scene.shape[1:])
    out, done = np.empty(shape, np.uint8), np.zeros(shape[0], bool)
    for start, frames in pieces:
      if start != reference:
        context, poses = out[[start * interpolate]], poses[:1] * 0
      targets = targets_of(start, frames)
      places = frames.start * interpolate + np.arange(len(targets))
      # The frame shared by two pieces was rendered with the first one.
      new = ~done[places]
      out[places[new]] = self.render(context, poses, targets[new])
      done[places] = True
    return out

  def fit(
    self, pictures: Pictures, name: str = 'a picture'
  ) -> UInt8[np.ndarray, 'n h w 3']:
    """Crops pictures to central squares and resizes them to the training size.

    Args:
      pictures: uint8, one or more.
      name: Name of one picture in messages.

    Raises:
      UserError: If there are none, or one is not uint8 [H, W, 3], too small or
        too elongated for a central square.
    """
    if not len(pictures):
      raise UserError(f'no pictures were given ({name}); pass at least one')
    return np.stack([self._fit(np.asarray(x), name) for x in pictures])

  def _fit(self, picture: np.ndarray, name: str) -> np.ndarray:
    size = self.image_size
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,):
      raise UserError(
        f'{name} is {picture.dtype} of shape {picture.shape}; give uint8 RGB '
        'of shape (height, width, 3)'
      )
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
      return picture
    shape = f'{name} of {width} x {height} pixels'
    if 4 * min(height, width) < size:
      raise UserError(
        f'{shape} is too small for a model of {size} x {size}; pass a larger '
        'picture'
      )
    if max(height, width) > 4 * min(height, width):
      raise UserError(
        f'{shape} is too long: the model sees only the central square; crop it '
        'to the relevant part'
      )
    cropped = 'cropped to its central square and ' * (height != width)
    self._say_once(f'{shape} is {cropped}resized to {size} x {size}')
    return centre_crop_resize(picture, size)

  def _map(
    self, name: str, program: Callable, given: tuple, *rows: np.ndarray
  ) -> np.ndarray:
    """Runs a compiled function over rows in batches, the last one padded."""
    count = len(rows[0])
    given = jax.device_put(given, NamedSharding(self._mesh, P()))
    place = NamedSharding(self._mesh, sharding.BATCH)
    out = []
    with (
      jax.set_mesh(self._mesh),
      streams.progress(
        total=count, desc=name, leave=False, disable=not self._progress
      ) as bar,
    ):
      for start in range(0, count, self._batch):
        parts = [x[start : start + self._batch] for x in rows]
        padded = [np.resize(x, (self._batch, *x.shape[1:])) for x in parts]
        got, finite = jax.device_get(
          program(self._params, *given, *jax.device_put(padded, place))
        )
        if not finite.all():
          raise UserError(
            f'the {name} that the model of step {self.step} gives are not '
            'finite: its training diverged; use an older checkpoint'
          )
        out.append(got[: len(parts[0])])
        bar.update(len(parts[0]))
    return np.concatenate(out)

  def _check_contexts(self, count: int) -> None:
    if count > self.contexts:
      raise UserError(
        f'the scene has {count} views and this model takes '
        + (
          'one (it is a stereo model); pass one view'
          if self.contexts == 1
          else f'at most {self.contexts}; pass fewer'
        )
      )

  def _warn(self, count: int, pieces: list, stride: int) -> None:
    """Warns of changes of the reference and of frames far from theirs."""
    if changes := sorted(start for start, _ in pieces[1:]):
      self._say_once(
        f'the reference changes at frames {", ".join(map(str, changes))} of '
        f'the {count} given; each time, rendering errors become part of '
        'the scene'
      )
    far = max(
      max(start - frames.start, frames.stop - 1 - start) * stride
      for start, frames in pieces
    )
    if self.window and far > self.window - 1:
      chain = (self.window - 1) // stride
      remedy = f'or give chain={chain}' if chain else 'or a smaller stride'
      self._say_once(
        f'the motion goes {far} frames from its reference and the model was '
        f'trained with at most {self.window - 1}; pictures beyond that are '
        f'unreliable; use a shorter motion, {remedy}'
      )

  def _say_once(self, text: str) -> None:
    if text not in self._said:
      self._said.add(text)
      self._say(text)


def _are_finite(rows: Float[Array, 'n ...']) -> Bool[Array, ' n']:
  return jnp.isfinite(rows).all(tuple(range(1, rows.ndim)))


def segments(
  count: int, reference: int, chain: int | None
) -> list[tuple[int, slice]]:
  """Divides a motion into pieces, each with its own reference.

  Args:
    count: Number of frames of the motion.
    reference: Reference of the first piece.
    chain: Frames from a piece's reference to its end.

  Returns:
    (reference, frames) of each piece. The reference of a further piece is its
    first frame, or its last one before the first reference, and is also a frame
    of an earlier piece.
  """
  chain = chain or count
  first = slice(max(reference - chain, 0), min(reference + chain + 1, count))
  return [
    (reference, first),
    *(
      (i, slice(i, min(i + chain + 1, count)))
      for i in range(first.stop - 1, count - 1, chain)
    ),
    *(
      (i, slice(max(i - chain, 0), i + 1))
      for i in range(first.start, 0, -chain)
    ),
  ]


def _interpolate(
  poses: Float32[np.ndarray, 'n z'], steps: int
) -> Float32[np.ndarray, 'm z']:
  """Samples a Catmull-Rom spline through poses, `steps` points per pose.

  Interpolated latents are not guaranteed to be poses in between.
  """
  before, after = 2 * poses[:1] - poses[1:2], 2 * poses[-1:] - poses[-2:-1]
  padded = np.concatenate([before, poses, after])
  a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
  t = (np.arange(steps, dtype=np.float32) / steps)[:, None, None]
  curve = b + t / 2 * (
    c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))
  )
  curve = einops.rearrange(curve, 't n z -> (n t) z')
  return np.concatenate([curve, poses[-1:]])


def _check_index(name: str, value: int, count: int) -> None:
  if not 0 <= value < count:
    raise UserError(f'{name}={value} must be from 0 to {count - 1}')
