"""A model of latent poses, for inference."""

import copy
from collections.abc import Callable, Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, UInt8

from xfactor.data.images import centre_crop_resize
from xfactor.errors import UserError
from xfactor.inference import restore
from xfactor.nn import sharding
from xfactor.nn.functional import Params
from xfactor.nn.layers import to_float, to_uint8

# uint8 [n, H, W, 3] RGB, or n of [H, W, 3] whose sizes may differ.
Pictures = np.ndarray | Sequence[np.ndarray]


class Model:
  """A trained model; get one from `load`.

  Pictures of any size are cropped to their central square and resized to
  `image_size`; a warning says so once. Programs are compiled once for each
  number of contexts, however many frames there are.

  Attributes:
    config: The recipe it was trained with.
    step: Updates it was trained for.
    image_size: Pixels along a side.
    pose_dim: Channels of a latent pose.
    contexts: Most views of a scene that it takes.
    window: Frames of the longest windows in training; None if not known.
  """

  def __init__(self, restored: restore.Restored, *, batch: int, progress: bool):
    config, build = restored.config, restored.build
    self.config = config
    self.step = restored.step
    self.image_size = build.image_size
    self.pose_dim = build.model.pose_dim
    self.contexts = build.views - 1
    ends = [part.end for part in config.data.mix.values()]
    self.window = max(ends, default=None)
    self._params = restored.params
    self._relative = build.method.relative
    self._mesh = build.mesh
    ways = self._mesh.shape['data'] * self._mesh.shape['fsdp']
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
    """The model with the parameters of another step; compiles nothing."""
    other = copy.copy(self)
    other.step, other._params = step, params
    return other

  def telling(self, say: Callable[[str], None]) -> 'Model':
    """The model, with its warnings given to `say` and not to the log."""
    other = copy.copy(self)
    other._said, other._say = set(), say
    return other

  def encode_poses(
    self, frames: Pictures, reference: int = 0
  ) -> Float32[np.ndarray, 'n z']:
    """Latent poses relative to frames[reference], whose own is exactly zero.

    (Not RUST's, which are of the scene that the reference shows.)

    Args:
      frames: uint8, one or more of any size.
      reference: Index into them.

    Raises:
      UserError: If there is no such frame, or as `fit`.
    """
    frames = self.fit(frames, 'a frame')
    _check_index('reference', reference, len(frames))
    references = np.broadcast_to(frames[reference], frames.shape)
    poses = self._map('poses', self._encode, (), references, frames)
    if self._relative:
      poses[reference] = 0
    return poses

  def encode_pairs(
    self, references: Pictures, frames: Pictures
  ) -> Float32[np.ndarray, 'n z']:
    """Latent poses of frames, each relative to a reference of its own.

    Many short clips fill batches that `encode_poses` of each would not.

    Args:
      references: uint8, one for each of `frames`.
      frames: uint8, one or more of any size.

    Raises:
      UserError: If they are not as many, or as `fit`.
    """
    references = self.fit(references, 'a reference')
    frames = self.fit(frames, 'a frame')
    if len(references) != len(frames):
      raise UserError(
        f'{len(references)} references for {len(frames)} frames; give each '
        'frame its own'
      )
    return self._map('poses', self._encode, (), references, frames)

  def render(
    self,
    context: Pictures,
    context_poses: Float32[np.ndarray, 'c z'],
    target_poses: Float32[np.ndarray, 'n z'],
  ) -> UInt8[np.ndarray, 'n h w 3']:
    """Draws the scene of `context` from the target poses.

    Args:
      context: uint8, views of one scene, at most `contexts`.
      context_poses: Their poses, relative to one of them.
      target_poses: Poses to draw from, relative to that view, or to the one in
        another video whose role it takes.

    Raises:
      UserError: If there are too many views, poses do not fit, or as `fit`.
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
          'gives them'
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
    """Moves a scene's camera as that of another video: one picture a frame.

    The motion's poses are relative to its reference, those of the scene's views
    to the scene's, and the scene's reference takes the motion's reference's
    place: there, the picture is the scene as given.

    Args:
      motion: uint8 frames of a video, two or more.
      scene: uint8 views of one scene in the order of time, at most `contexts`.
      reference: Index into `motion`.
      scene_reference: Index into `scene`; the most central one if None.
      chain: Frames after which the picture drawn there becomes the scene and
        its frame the reference, for motions that leave their reference's sight.
        Each time, the errors of a drawing become part of the scene.
      interpolate: k > 1 adds k - 1 pictures between neighbouring frames, from
        interpolated latent poses; n frames become k * (n - 1) + 1 pictures.
      stride: Frames of the video from one of `motion` to the next; only used to
        warn of motions beyond the training windows.

    Raises:
      UserError: If options or counts make no sense, or as `fit`.
    """
    motion = self.fit(motion, 'a frame of the motion')
    if len(motion) < 2:
      raise UserError(
        'the motion has one frame, which moves nothing; give two or more'
      )
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

    context, poses = scene, self.encode_poses(scene, scene_reference)
    shape = (interpolate * (len(motion) - 1) + 1, *scene.shape[1:])
    out, done = np.empty(shape, np.uint8), np.zeros(shape[0], bool)
    for start, frames in pieces:
      if start != reference:
        context, poses = out[[start * interpolate]], poses[:1] * 0
      targets = _interpolate(
        self.encode_poses(motion[frames], start - frames.start), interpolate
      )
      places = frames.start * interpolate + np.arange(len(targets))
      # The frame where two pieces meet has been drawn with the first.
      new = ~done[places]
      out[places[new]] = self.render(context, poses, targets[new])
      done[places] = True
    return out

  def fit(
    self, pictures: Pictures, name: str = 'a picture'
  ) -> UInt8[np.ndarray, 'n h w 3']:
    """What the model sees of pictures: central squares at the training size.

    Args:
      pictures: uint8, one or more.
      name: What to call one of them in messages.

    Raises:
      UserError: If there are none, they are not uint8 [H, W, 3], too small, or
        so long that a square shows little of them.
    """
    if not len(pictures):
      raise UserError(f'there is not {name} to look at; give at least one')
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
        f'{shape} is too small for a model of {size} x {size}; give a larger '
        'picture'
      )
    if max(height, width) > 4 * min(height, width):
      raise UserError(
        f'{shape} is too long: the model sees only the central square; crop it '
        'to what matters'
      )
    cropped = 'cropped to its central square and ' * (height != width)
    self._say_once(f'{shape} is {cropped}resized to {size} x {size}')
    return centre_crop_resize(picture, size)

  def _map(
    self, name: str, program: Callable, given: tuple, *rows: np.ndarray
  ) -> np.ndarray:
    """Runs a program over rows, in batches of one shape (the last padded)."""
    count = len(rows[0])
    given = jax.device_put(given, NamedSharding(self._mesh, P()))
    place = NamedSharding(self._mesh, sharding.BATCH)
    out = []
    with (
      jax.set_mesh(self._mesh),
      tqdm.tqdm(
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
            'finite: its training diverged; take an older checkpoint'
          )
        out.append(got[: len(parts[0])])
        bar.update(len(parts[0]))
    return np.concatenate(out)

  def _check_contexts(self, count: int) -> None:
    if count > self.contexts:
      raise UserError(
        f'the scene has {count} views and this model takes '
        + (
          'one (it is a stereo model); give one view'
          if self.contexts == 1
          else f'at most {self.contexts}; give fewer'
        )
      )

  def _warn(self, count: int, pieces: list, stride: int) -> None:
    """Says where references change, and where frames are far from theirs."""
    if changes := sorted(start for start, _ in pieces[1:]):
      self._say_once(
        f'the reference changes at frames {", ".join(map(str, changes))} of '
        f'the {count} given; each time, errors of the drawing become part of '
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
        f'trained with at most {self.window - 1}; beyond, pictures are '
        f'guesses; take a shorter motion, {remedy}'
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
  """Divides a motion into pieces, each with a reference of its own.

  Args:
    count: Frames of the motion.
    reference: Of the first piece.
    chain: Frames from a piece's reference to its end.

  Returns:
    (reference, frames); every further piece begins, or, before the first
    reference, ends with a frame of a piece before it, which is its reference.
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
  """A Catmull-Rom curve through poses of one reference, `steps` points a pose.

  Nothing promises that latents between two poses are poses between them.
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
