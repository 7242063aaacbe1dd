"""Pose probe: how much of the camera's pose a frozen latent pose tells.

The paper's Table 2. A three-layer perceptron (the public code's `pose_probe`:
64 features, hence z -> 256 -> 64 -> 12) reads off the latent pose of a frame
its pose relative to the reference frame, of which the latent pose is relative
too: 3 numbers are the translation, 9 a matrix whose nearest rotation is the
rotation (Levinson et al. 2020, "An Analysis of SVD for Deep Rotation
Estimation"). How the authors trained it is not published: loss and schedule are
ours.

Beside the probe stand rows that say what its numbers mean:

  shuffled      a probe of latents dealt to the wrong frames of the train split:
                what is right on average, whatever the frame
  mean motion   the train split's mean pose at each place in the window, no
                latents asked: what is right where all cameras walk alike
"""

import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from xfactor import api
from xfactor.data import images, records, views
from xfactor.errors import UserError
from xfactor.evaluation import poses, tps
from xfactor.models.layers import gelu

ROWS = ('probe', 'shuffled', 'mean motion')
# Windows whose pictures are in memory at once.
_CHUNK = 64

# Weights and biases of each layer.
Params = list[tuple[Array, Array]]
# Singular values closer to opposite than this give no gradient.
_MIN_SUM = 1e-3
# Rotations of a data set whose camera hardly turns count as if by a degree.
_MIN_TURN = np.radians(1.0)


@dataclasses.dataclass(frozen=True)
class Config:
  """How a probe is trained: AdamW, warm-up, cosine decay to 0.

  Attributes:
    features: Width of the last hidden layer; the first has four times as many.
    steps: Of the optimizer.
    batch: Frames a step, drawn with replacement.
    learning_rate: After the warm-up.
    warmup_steps: From rate 0, linearly.
    weight_decay: Decoupled; times the learning rate.
    seed: Of weights and batches.
  """

  features: int = 64
  steps: int = 2000
  batch: int = 256
  learning_rate: float = 2e-3
  warmup_steps: int = 200
  weight_decay: float = 0.5
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Probe:
  """A trained probe.

  Attributes:
    params: Of the perceptron.
    mean: float32 [z], taken from the latents.
    deviation: float32 [z], by which they are divided thereafter.
    unit: Of the translations, in that of the data set.
    loss: Mean over the last tenth of the training.
  """

  params: Params
  mean: np.ndarray
  deviation: np.ndarray
  unit: float
  loss: float

  def predict(
    self, latents: Float[np.ndarray, '*b z']
  ) -> Float[np.ndarray, '*b 4 4']:
    """Returns poses float64, the reference's camera to the frame's."""
    rows = jnp.asarray(self._normalise(latents))
    rotation, translation = jax.device_get(_forward(self.params, rows))
    out = np.zeros((len(rows), 4, 4))
    out[:, :3, :3] = rotation
    out[:, :3, 3] = translation * self.unit
    out[:, 3, 3] = 1
    return out.reshape(*latents.shape[:-1], 4, 4)

  def _normalise(self, latents: np.ndarray) -> np.ndarray:
    rows = latents.reshape(-1, latents.shape[-1])
    return (np.float32(rows) - self.mean) / self.deviation


def training_rows(
  latents: Float[np.ndarray, 'b v z'],
  world_to_camera: Float[np.ndarray, 'b v 4 4'],
  *,
  reference: int = 0,
  ok: Bool[np.ndarray, 'b v'] | None = None,
) -> tuple[Float[np.ndarray, 'n z'], Float[np.ndarray, 'n 3 4']]:
  """Returns what `fit` takes of clips: all frames but the references.

  Args:
    latents: Of the frames, relative to the reference frame's.
    world_to_camera: As an oracle or the data set gives them.
    reference: The number of that frame.
    ok: Which frames have a pose; none of a clip counts whose reference has not.
  """
  if ok is None:
    ok = np.ones(latents.shape[:2], bool)
  use = ok & ok[:, reference, None]
  use[:, reference] = False
  clip, frame = np.nonzero(use)
  inverse = np.linalg.inv(world_to_camera[clip, reference])
  relative = world_to_camera[clip, frame] @ inverse
  return latents[clip, frame], relative[:, :3]


def fit(
  latents: Float[np.ndarray, 'n z'],
  relative: Float[np.ndarray, 'n 3 4'],
  config: Config | None = None,
) -> Probe:
  """Trains a probe; about 5 seconds on two cores.

  The loss of a frame is the squared Frobenius distance of the rotations plus
  the Huber loss of the distance of the translations. Rotations count in units
  of the set's root mean square distance from none, translations of their root
  mean square, so that neither drowns the other.

  Args:
    latents: Of frames, relative to a reference frame of each clip.
    relative: The reference's camera to the frame's, of one data set: all
      translations in the same unit.
    config: Of the training.

  Raises:
    UserError: If there is nothing to learn from, or it is not finite.
  """
  config = config or Config()
  if len(latents) < 2:
    raise UserError(
      'a pose probe needs at least 2 frames with poses to learn from; convert '
      'more clips of the train split, with cameras'
    )
  for what, x in (('latent poses', latents), ('camera poses', relative)):
    if not np.isfinite(x).all():
      raise UserError(f'some {what} of the train split are not finite')
  deviation = np.float32(latents.std(0))
  translation = relative[:, :, 3]
  unit = float(np.sqrt(np.mean(np.sum(translation**2, -1)))) or 1.0
  turn = np.mean(np.sum((relative[:, :, :3] - np.eye(3)) ** 2, (-2, -1)))
  probe = Probe(
    params=[],
    mean=np.float32(latents.mean(0)),
    # Entries that never change stay as they are.
    deviation=np.where(deviation > 0, deviation, 1),
    unit=unit,
    loss=np.nan,
  )
  params, losses = _train(
    jax.random.key(config.seed),
    jnp.asarray(probe._normalise(latents)),
    jnp.asarray(relative[:, :, :3], jnp.float32),
    jnp.asarray(translation / unit, jnp.float32),
    # A rotation by a is at sqrt(2) a from none.
    jnp.float32(1 / max(turn, 2 * _MIN_TURN**2)),
    config=config,
  )
  last = np.mean(losses[-max(config.steps // 10, 1) :])
  return dataclasses.replace(probe, params=params, loss=float(last))


def score(
  probe: Probe,
  latents: Float[np.ndarray, 'b v z'],
  world_to_camera: Float[np.ndarray, 'b v 4 4'],
  *,
  reference: int = 0,
  scene_distance: float = 1.0,
) -> poses.Scores:
  """Returns how near the probe's paths of held-out clips come to the true ones.

  All pairs of frames count, as everywhere; the reference's own pose is known.

  Args:
    probe: From `fit`.
    latents: As for `training_rows`.
    world_to_camera: The truth; may be NaN where there is none.
    reference: As for `training_rows`.
    scene_distance: As for `poses.score`.
  """
  prediction = probe.predict(latents)
  prediction[:, reference] = np.eye(4)
  return poses.score(world_to_camera, prediction, scene_distance)


# ==============================================================================
# Of a trained model
# ==============================================================================


@dataclasses.dataclass(frozen=True)
class Side:
  """What of a split a probe learns from or is tested on.

  Attributes:
    name: Data set and split.
    clips: Number of clips with cameras and frames enough.
    windows: Number of windows of frames in them.
    frames: Frames whose pose is to be told, the windows' references left out.
    without_cameras: Windows left out, since cameras of theirs are not known.
  """

  name: str
  clips: int
  windows: int
  frames: int
  without_cameras: int


@dataclasses.dataclass(frozen=True)
class Result:
  """A pose probe's test.

  Attributes:
    train: What the probe learnt from.
    test: What it was tested on; a window is a path.
    losses: `Probe.loss` of the rows that are probes.
    summaries: By row, see the module.
    scores: By row, of every path.
  """

  train: Side
  test: Side
  losses: dict[str, float]
  summaries: dict[str, poses.Summary]
  scores: dict[str, poses.Scores]


def evaluate(
  model: api.Model,
  train: records.FrameStore,
  test: records.FrameStore,
  *,
  targets: int,
  window: int,
  max_windows: int = 512,
  scene_distance: float = 1.0,
  config: Config | None = None,
  seed: int = 0,
) -> Result:
  """Fits a probe on the train split and scores it on the test split.

  Which windows is kept beside the clips in `probe_index-SPLIT.json`. Of the
  test split it is the middle one of every clip; of the train split, by the
  hashes of their ids, of each clip one or, where there are few, several that
  share no frame. A window's most central frame is its reference.

  Args:
    model: Whose latent poses are read; it learns nothing.
    train: The split to learn from.
    test: The split to be tested on.
    targets: Frames of a window, equally spaced from end to end.
    window: Frames that they are from.
    max_windows: Of the train split.
    scene_distance: As for `poses.score`.
    config: Of the training.
    seed: Of the bootstrap and of the shuffling.

  Raises:
    UserError: If fewer than two clips of a split have cameras and `window`
      frames, a frame cannot be read, or as `api.Model` and `fit`.
  """
  if not 2 <= targets <= window:
    raise UserError(
      f'a window of {window} frames cannot hold {targets} targets (at least '
      '2); change config.eval.targets or .window'
    )
  config = config or Config()
  reference = (targets - 1) // 2
  # The cheap part first: whether there are cameras.
  learnt, tested = (
    _posed_windows(store, targets, window, count)
    for store, count in ((train, max_windows), (test, None))
  )
  latents = _encode(model, train, learnt, reference)
  rows, relative = training_rows(
    latents, learnt.world_to_camera, reference=reference
  )
  dealt = np.random.default_rng(seed).permutation(rows)
  probes = {
    'probe': fit(rows, relative, config),
    'shuffled': fit(dealt, relative, config),
  }
  latents = _encode(model, test, tested, reference)
  scores = {
    row: score(
      probe,
      latents,
      tested.world_to_camera,
      reference=reference,
      scene_distance=scene_distance,
    )
    for row, probe in probes.items()
  }
  path = _mean_motion(learnt.world_to_camera, reference)
  scores['mean motion'] = poses.score(
    tested.world_to_camera,
    np.broadcast_to(path, tested.world_to_camera.shape),
    scene_distance,
  )
  everyone = np.ones(len(latents), bool)
  return Result(
    train=learnt.side(train),
    test=tested.side(test),
    losses={row: probe.loss for row, probe in probes.items()},
    summaries={
      row: poses.aggregate(scores[row], everyone, seed=seed) for row in ROWS
    },
    scores=scores,
  )


@dataclasses.dataclass(frozen=True)
class _Windows:
  """Windows of n clips, some of the same one, with all their cameras."""

  clips: Int[np.ndarray, ' n']
  frames: Int[np.ndarray, 'n t']
  world_to_camera: Float[np.ndarray, 'n t 4 4']
  without_cameras: int

  def side(self, store: records.FrameStore) -> Side:
    count, targets = self.frames.shape
    return Side(
      name=f'{store.name}/{store.split}',
      clips=len(np.unique(self.clips)),
      windows=count,
      frames=count * (targets - 1),
      without_cameras=self.without_cameras,
    )


def _posed_windows(
  store: records.FrameStore, targets: int, window: int, count: int | None
) -> _Windows:
  """Returns the fixed windows of a split whose cameras are known."""
  chosen, path = store.remember(
    'probe_index',
    f'targets={targets},window={window},windows={count or "one a clip"}',
    lambda: _choose(store, targets, window, count),
  )
  clips = store.rows_of([clip_id for clip_id, _ in chosen], path)
  frames = np.array([frames for _, frames in chosen], int).reshape(-1, targets)
  read = functools.lru_cache(maxsize=1)(store.clip)  # Windows of one in a row.
  world_to_camera = np.full((*frames.shape, 4, 4), np.nan)
  for i, (clip, places) in enumerate(zip(clips.tolist(), frames, strict=True)):
    known = read(clip).world_to_camera
    if known is not None:
      world_to_camera[i, :, :3] = known[places]
      world_to_camera[i, :, 3] = (0, 0, 0, 1)
  posed = np.isfinite(world_to_camera).all((1, 2, 3))
  what = f'{store.name}/{store.split}'
  if len(clips) and not posed.any():
    raise UserError(
      f'no cameras are known of the clips of {what}, and a pose probe learns '
      'and is scored by them; leave --probe out, or evaluate on a data set '
      'that was converted with its cameras'
    )
  if (n := len(np.unique(clips[posed]))) < 2:
    raise UserError(
      f'{n} clips of {what} have {window} frames and cameras, and a pose probe '
      'needs two that do; convert more, or give a smaller config.eval.window'
    )
  return _Windows(
    clips=clips[posed],
    frames=frames[posed],
    world_to_camera=world_to_camera[posed],
    without_cameras=int((~posed).sum()),
  )


def _choose(
  store: records.FrameStore, targets: int, window: int, count: int | None
) -> list[tuple[str, list[int]]]:
  """Returns (id, frames), at most `count`; one of every clip if None."""
  rows = [i for i, n in enumerate(store.num_frames) if n >= window]
  rows.sort(key=lambda i: (records.unit_hash(store.clip_id(i)), i))
  each = max(1, count // max(len(rows), 1)) if count else 1
  out = []
  for row in rows[:count]:
    length = int(store.num_frames[row])
    parts = min(each, length // window)
    edges = np.arange(parts + 1) * length // parts
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
      frames = begin + views.eval_frames(int(end - begin), targets, window)
      out.append((store.clip_id(row), frames.tolist()))
  return out


def _encode(
  model: api.Model,
  store: records.FrameStore,
  windows: _Windows,
  reference: int,
) -> Float[np.ndarray, 'n t z']:
  """Latent poses relative to the reference's, whose own is zero."""
  others = np.delete(np.arange(windows.frames.shape[1]), reference)
  out = []
  for start in range(0, len(windows.clips), _CHUNK):
    part = slice(start, start + _CHUNK)
    pictures = np.stack(
      [
        model.fit(
          [images.decode(data) for data in store.clip_frames(clip, frames)],
          f'a frame of {store.clip_id(clip)}',
        )
        for clip, frames in zip(
          windows.clips[part].tolist(), windows.frames[part], strict=True
        )
      ]
    )
    latents = model.encode_pairs(
      np.repeat(pictures[:, reference], len(others), axis=0),
      einops.rearrange(pictures[:, others], 'n t h w c -> (n t) h w c'),
    )
    latents = einops.rearrange(latents, '(n t) z -> n t z', t=len(others))
    out.append(np.insert(latents, reference, 0, axis=1))
  return np.concatenate(out)


def _mean_motion(
  world_to_camera: Float[np.ndarray, 'n t 4 4'], reference: int
) -> Float[np.ndarray, 't 4 4']:
  """The mean pose relative to the reference at each place in the window."""
  inverse = np.linalg.inv(world_to_camera[:, reference, None])
  mean = np.mean(world_to_camera @ inverse, axis=0)
  rotation = jnp.asarray(mean[:, :3, :3], jnp.float32)
  mean[:, :3, :3] = nearest_rotation(rotation)
  return mean


def write(path: epath.PathLike, result: Result) -> None:
  """Writes the numbers of a test, with those of every path."""
  records.write_json(
    path,
    {
      'train': dataclasses.asdict(result.train),
      'test': dataclasses.asdict(result.test),
      'losses': result.losses,
      'rows': {
        row: tps.as_json(summary, result.scores[row])
        for row, summary in result.summaries.items()
      },
    },
  )


def table(name: str, result: Result) -> str:
  """The means as lines of text: percent, with 95 % intervals of AUC@20."""
  train, test = result.train, result.test
  still = result.summaries['probe'].num_without_translation
  lines = [
    f'{name}: pose probe of {train.frames} frames of {train.clips} clips, '
    f'tested on {test.windows} paths of other clips, in %; loss '
    + ', '.join(f'{loss:.3f} {row}' for row, loss in result.losses.items())
    + f'; {still} paths of a still camera count for RRA only' * bool(still),
    ' ' * 16 + ''.join(f'{c.upper():>12}' for c in (*tps.COLUMNS, '95 %')),
  ]
  for row, summary in result.summaries.items():
    main = summary.means['auc@20']
    cells = [tps.percent(summary.means[c].value) for c in tps.COLUMNS]
    cells += [f'{tps.percent(main.low)}..{tps.percent(main.high)}']
    lines.append(f'  {row:14}' + ''.join(f'{c:>12}' for c in cells))
  return '\n'.join(lines)


# ==============================================================================
# Training
# ==============================================================================


@functools.partial(jax.jit, static_argnames='config')
def _train(
  key: PRNGKeyArray,
  latents: Float[Array, 'n z'],
  rotation: Float[Array, 'n 3 3'],
  translation: Float[Array, 'n 3'],
  rotation_weight: Float[Array, ''],
  *,
  config: Config,
) -> tuple[Params, Float[Array, ' steps']]:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup_steps, config.steps
  )
  tx = optax.adamw(schedule, weight_decay=config.weight_decay)
  init_key, batch_key = jax.random.split(key)
  params = _init(init_key, latents.shape[1], config.features)

  def loss_fn(params, rows):
    guess_rotation, guess_translation = _forward(params, latents[rows])
    turn = jnp.sum((guess_rotation - rotation[rows]) ** 2, (-2, -1))
    # The root's slope is infinite at 0.
    shift = jnp.sum((guess_translation - translation[rows]) ** 2, -1)
    shift = jnp.where(shift < 1, shift / 2, jnp.sqrt(shift.clip(1)) - 0.5)
    return jnp.mean(rotation_weight * turn + shift)

  def step(carry, key):
    params, state = carry
    rows = jax.random.randint(key, (config.batch,), 0, len(latents))
    loss, grads = jax.value_and_grad(loss_fn)(params, rows)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  keys = jax.random.split(batch_key, config.steps)
  (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
  return params, losses


def _init(key: PRNGKeyArray, width: int, features: int) -> Params:
  sizes = (width, 4 * features, features, 12)
  xavier = jax.nn.initializers.xavier_uniform()
  return [
    (xavier(k, (din, dout), jnp.float32), jnp.zeros(dout))
    for k, din, dout in zip(
      jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True
    )
  ]


@jax.jit
def _forward(
  params: Params, latents: Float[Array, 'n z']
) -> tuple[Float[Array, 'n 3 3'], Float[Array, 'n 3']]:
  """Rotations, and translations in the probe's unit."""
  x = latents
  for i, (kernel, bias) in enumerate(params):
    x = gelu(x) if i else x
    x = jnp.matmul(x, kernel, precision='highest') + bias[None]
  return nearest_rotation(x[:, 3:].reshape(-1, 3, 3)), x[:, :3]


@jax.custom_jvp
def nearest_rotation(matrix: Float[Array, 'n 3 3']) -> Float[Array, 'n 3 3']:
  """Returns the rotation at the least Frobenius distance from each matrix.

  Its derivative is that of the rotation alone: finite where the singular
  vectors' is not, as for equal singular values.
  """
  u, _, vh = _special_svd(matrix)
  return jnp.matmul(u, vh, precision='highest')


@nearest_rotation.defjvp
def _nearest_rotation_jvp(primals, tangents):
  matmul = functools.partial(jnp.matmul, precision='highest')
  u, s, vh = _special_svd(*primals)
  inner = matmul(matmul(u.mT, *tangents), vh.mT)
  sums = s[..., :, None] + s[..., None, :]
  turn = (inner - inner.mT) / jnp.maximum(sums, _MIN_SUM)
  return matmul(u, vh), matmul(matmul(u, turn), vh)


def _special_svd(matrix: Array) -> tuple[Array, Array, Array]:
  """Singular vectors whose product has determinant 1; the last value's sign."""
  u, s, vh = jnp.linalg.svd(matrix)
  sign = jnp.sign(jnp.linalg.det(u) * jnp.linalg.det(vh))
  signs = jnp.ones_like(s).at[..., 2].set(sign)
  return u, s * signs, vh * signs[..., None]
