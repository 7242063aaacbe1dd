"""Which frames of a clip make up one example: pure NumPy, no JAX.

A clip shows `num_frames` frames of one scene. An example takes `num_views` of
them from a window of consecutive frames: the window's two ends always, the
frames between them at random. How long the window may be grows over training,
so that the model meets small camera motions first.

Draws agree number for number with the official XFactor loader; tests/golden
holds its output.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64

from xfactor.errors import UserError


def frame_rng(seed: int, index: int) -> np.random.Generator:
  """Returns element `index`'s own generator: a pure function of both numbers.

  The index is the top word of Philox's 256-bit counter, so the streams of two
  elements never overlap. Same construction as the official XFactor loader.

  Args:
    seed: of the whole data stream, at least 0.
    index: of the element in the stream, at least 0.
  """
  return np.random.Generator(np.random.Philox(seed, counter=[0, 0, 0, index]))


def window_at(
  step: int, begin: int, end: int, ramp_steps: int, delay: int = 0
) -> int:
  """Returns the longest window allowed at a training step, in frames.

  It is `begin` up to step `delay`, then moves linearly, rounded down, and is
  `end` from step `delay + ramp_steps` on.

  Args:
    step: the training step; for a data pipeline, element index // batch size.
    begin: frames in the longest window before the ramp.
    end: frames in the longest window after it; may be less than `begin`.
    ramp_steps: length of the ramp in steps; 0 jumps to `end` after `delay`.
    delay: steps before the ramp starts.
  """
  if step - delay >= ramp_steps:
    return end
  # Integers, because a float fraction can land one frame below the true value.
  return begin + max(step - delay, 0) * (end - begin) // ramp_steps


def bump_weights(num_lengths: int) -> Float64[np.ndarray, '{num_lengths}']:
  """Returns the probabilities of window lengths, from shortest to longest.

  A Gaussian bump 0.7 of the way up over a floor: mostly long windows, seldom
  the longest. The official multi-view recipe draws its windows so.
  """
  u = np.linspace(0.0, 1.0, num_lengths)
  weights = 0.8 * np.exp(-(((u - 0.7) / 0.25) ** 2)) + 0.2
  return weights / weights.sum()


def choose_frames(
  rng: np.random.Generator,
  num_frames: int,
  num_views: int,
  max_window: int,
  *,
  min_window: int | None = None,
  bump: bool = False,
  gap_sigma: float | None = None,
  inclusive: bool = False,
  equal: bool = False,
  flip_prob: float = 0.5,
) -> Int64[np.ndarray, '{num_views}']:
  """Draws the frames of one example from a clip.

  The window's length is drawn from [min_window, max_window], its start
  uniformly, then the frames inside, then whether to reverse time. Windows
  never exceed the clip. Follows the official XFactor loader draw for draw.

  Args:
    rng: source of every draw.
    num_frames: frames in the clip.
    num_views: frames to choose, at least 2.
    max_window: longest window, in frames, both ends counted.
    min_window: shortest window; None means num_views.
    bump: weigh the lengths by `bump_weights` instead of evenly.
    gap_sigma: if set, one inner frame lies in the central part of the window
      that is this fraction of it long: a reference frame close to all others.
    inclusive: inner frames may repeat the ends (the official option).
    equal: inner frames are equally spaced, rounded down, instead of random.
    flip_prob: probability of running backwards in time.

  Returns:
    Frame indices in [0, num_frames), sorted, or reverse-sorted when flipped;
    distinct unless `inclusive`.

  Raises:
    UserError: the clip has fewer than num_views frames.
    ValueError: the arguments contradict each other.
  """
  low = num_views if min_window is None else min_window
  _check(num_frames, num_views, low, max_window)
  if equal and (inclusive or gap_sigma is not None):
    raise ValueError('equal leaves no choice for inclusive or gap_sigma.')
  high = min(max_window, num_frames)
  length = _sample_length(rng, min(low, high), high, bump)
  start = int(rng.integers(0, num_frames - length + 1))
  if equal:
    offsets = _equally_spaced(length, num_views)
  else:
    inner = _sample_inner(rng, length, num_views - 2, inclusive, gap_sigma)
    offsets = np.concatenate([[0], np.sort(inner), [length - 1]])
  frames = start + offsets.astype(np.int64)
  return frames[::-1] if rng.random() >= 1.0 - flip_prob else frames


def choose_set(
  rng: np.random.Generator, num_frames: int, num_views: int, window: int
) -> Int64[np.ndarray, '{num_views}']:
  """Draws distinct frames in random order from a random window of a clip.

  Args:
    rng: source of every draw.
    num_frames: frames in the clip.
    num_views: frames to choose, at least 2.
    window: consecutive frames to choose from; cut to the clip's length.

  Raises:
    UserError: the clip has fewer than num_views frames.
    ValueError: the window has fewer than num_views frames.
  """
  _check(num_frames, num_views, num_views, window)
  length = min(window, num_frames)
  start = int(rng.integers(0, num_frames - length + 1))
  return start + rng.choice(length, num_views, replace=False)


def eval_frames(
  num_frames: int, num_views: int, window: int
) -> Int64[np.ndarray, '{num_views}']:
  """Returns equally spaced frames of the clip's central window; no chance.

  Args:
    num_frames: frames in the clip.
    num_views: frames to return, at least 2.
    window: frames from first to last, both counted; cut to the clip's length.

  Returns:
    Distinct frame indices in increasing order.

  Raises:
    UserError: the clip has fewer than num_views frames.
    ValueError: the window has fewer than num_views frames.
  """
  _check(num_frames, num_views, num_views, window)
  length = min(window, num_frames)
  return (num_frames - length) // 2 + _equally_spaced(length, num_views)


@dataclasses.dataclass(frozen=True)
class Views:
  """How examples are cut from clips, curriculum included.

  Attributes:
    num_views: frames in an example, at least 2.
    window: longest window in frames, (at the start, at the end) of training.
    ramp_steps: training steps in which the first becomes the second.
    delay: training steps before the ramp starts.
    min_window: shortest window in frames; None means num_views.
    bump: prefer long windows, see `bump_weights`.
    gap_sigma: central reference frame, see `choose_frames`.
    flip_prob: probability of running backwards in time.

  Raises:
    UserError: a window cannot hold num_views frames, or a value is out of
      range.
  """

  num_views: int
  window: tuple[int, int]
  ramp_steps: int = 50_000
  delay: int = 0
  min_window: int | None = None
  bump: bool = False
  gap_sigma: float | None = None
  flip_prob: float = 0.5

  def __post_init__(self):
    low = self.num_views if self.min_window is None else self.min_window
    if not 2 <= self.num_views <= low <= min(self.window):
      raise UserError(
        f'wrong number of views: {self.num_views} of windows of {low} to '
        f'{min(self.window)} frames; lower config.data.contexts (at least 1; '
        'the target is one more), or raise begin and end of config.data.mix.'
      )
    if self.ramp_steps < 0 or self.delay < 0:
      raise UserError(
        'Views need ramp_steps and delay of at least 0, not '
        f'{self.ramp_steps} and {self.delay}.'
      )
    if not 0.0 <= self.flip_prob <= 1.0:
      raise UserError(f'flip_prob is {self.flip_prob}; give it 0 to 1.')
    if self.gap_sigma is not None and not 0.0 <= self.gap_sigma <= 1.0:
      raise UserError(f'gap_sigma is {self.gap_sigma}; give it 0 to 1.')

  def max_window(self, step: int) -> int:
    """Returns the longest window allowed at a training step, in frames."""
    return window_at(step, *self.window, self.ramp_steps, self.delay)

  def __call__(
    self, rng: np.random.Generator, num_frames: int, step: int
  ) -> Int64[np.ndarray, 'views']:
    """Draws one example's frames; see `choose_frames` for the order of draws.

    Args:
      rng: the element's own generator, see `frame_rng`.
      num_frames: frames in the clip.
      step: the training step that the element belongs to.

    Raises:
      UserError: the clip has fewer than num_views frames.
    """
    return choose_frames(
      rng,
      num_frames,
      self.num_views,
      self.max_window(step),
      min_window=self.min_window,
      bump=self.bump,
      gap_sigma=self.gap_sigma,
      flip_prob=self.flip_prob,
    )


@dataclasses.dataclass(frozen=True)
class Shifted:
  """Every example twice: as it is, and as of a moment that may be another.

  Two clips along one path would show the same motion; here the second's is
  another one with probability `prob` (arXiv 2510.13063, table 7).

  Attributes:
    views: how examples are cut.
    offset: most frames between the moments, at least 1; less where the clip
      ends before.
    prob: share of the examples whose second moment is another.

  Raises:
    UserError: offset or prob is out of range.
  """

  views: Views
  offset: int
  prob: float

  def __post_init__(self):
    if self.offset < 1 or not 0.0 < self.prob <= 1.0:
      raise UserError(
        'wrong shift between examples and their seconds: give '
        'config.data.offset at least 1 frame, not '
        f'{self.offset}, and config.data.offset_prob a share up to 1, not '
        f'{self.prob}.'
      )

  @property
  def num_views(self) -> int:
    return 2 * self.views.num_views

  @property
  def window(self) -> tuple[int, int]:
    return self.views.window

  def __call__(
    self, rng: np.random.Generator, num_frames: int, step: int
  ) -> Int64[np.ndarray, 'views']:
    """Draws one example's frames, then those of its second.

    Args:
      rng: the element's own generator, see `frame_rng`.
      num_frames: frames in the clip.
      step: the training step that the element belongs to.

    Raises:
      UserError: the clip has fewer frames than an example.
    """
    frames = self.views(rng, num_frames, step)
    size = int(rng.integers(1, self.offset + 1))
    offset = size * int(rng.choice([-1, 1])) * int(rng.random() < self.prob)
    room = -int(frames.min()), num_frames - 1 - int(frames.max())
    return np.concatenate([frames, frames + np.clip(offset, *room)])


@dataclasses.dataclass(frozen=True)
class SetViews:
  """How unordered examples are cut from clips, for posed models.

  Any frames of the window, in any order: the first are a model's inputs, the
  others its targets, as with Scene Representation Transformers.

  Attributes:
    num_views: frames in an example, at least 2.
    window: frames to choose from, (at the start, at the end) of training.
    ramp_steps: training steps in which the first becomes the second.

  Raises:
    UserError: a window cannot hold num_views frames, or a value is out of
      range.
  """

  num_views: int
  window: tuple[int, int]
  ramp_steps: int = 0

  def __post_init__(self):
    if not 2 <= self.num_views <= min(self.window):
      raise UserError(
        f'wrong number of views: {self.num_views} of a window of '
        f'{min(self.window)} frames; lower config.data.contexts + '
        'config.data.targets (together at least 2), or raise begin and end of '
        'config.data.mix.'
      )
    if self.ramp_steps < 0:
      raise UserError(f'ramp_steps is {self.ramp_steps}; give it at least 0.')

  def __call__(
    self, rng: np.random.Generator, num_frames: int, step: int
  ) -> Int64[np.ndarray, 'views']:
    """Draws one example's frames; see `choose_set`.

    Args:
      rng: the element's own generator, see `frame_rng`.
      num_frames: frames in the clip.
      step: the training step that the element belongs to.

    Raises:
      UserError: the clip has fewer than num_views frames.
    """
    window = window_at(step, *self.window, self.ramp_steps)
    return choose_set(rng, num_frames, self.num_views, window)


def _check(num_frames: int, num_views: int, low: int, high: int) -> None:
  """Raises unless `num_views` frames fit into the windows and the clip."""
  if not 2 <= num_views <= low <= high:
    raise ValueError(
      'Need 2 <= num_views <= shortest window <= longest window, got '
      f'{num_views}, {low}, {high}.'
    )
  if num_frames < num_views:
    raise UserError(
      f'A clip has {num_frames} frames but an example takes {num_views}: '
      'drop clips that short when converting the data, or ask for fewer '
      'views.'
    )


def _sample_length(
  rng: np.random.Generator, low: int, high: int, bump: bool
) -> int:
  """Draws a window length from [low, high]."""
  if bump:
    lengths = np.arange(low, high + 1)
    return int(rng.choice(lengths, p=bump_weights(len(lengths))))
  return int(rng.integers(low, high + 1))


def _sample_inner(
  rng: np.random.Generator,
  length: int,
  count: int,
  inclusive: bool,
  gap_sigma: float | None,
) -> Int64[np.ndarray, '{count}']:
  """Draws `count` distinct offsets inside a window, in no order."""
  pool = np.arange(length) if inclusive else np.arange(1, length - 1)
  if gap_sigma is None or count == 0:
    return rng.choice(pool, count, replace=False)
  reference = _sample_central(rng, length, gap_sigma)
  others = rng.choice(pool[pool != reference], count - 1, replace=False)
  return np.append(others, reference)


def _sample_central(
  rng: np.random.Generator, length: int, fraction: float
) -> int:
  """Draws an offset from the central `fraction` of a window, ends excluded."""
  middle, reach = (length - 1) / 2, fraction * (length - 1) / 2
  first = max(int(np.ceil(middle - reach)), 1)
  last = min(int(np.floor(middle + reach)), length - 2)
  if first > last:  # A short window of even length has no central frame.
    return length // 2
  return int(rng.integers(first, last + 1))


def _equally_spaced(length: int, count: int) -> Int64[np.ndarray, '{count}']:
  """Returns `count` offsets from 0 to length - 1, rounded down."""
  return np.arange(count, dtype=np.int64) * (length - 1) // (count - 1)
