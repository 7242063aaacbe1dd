"""Samples the frames of a clip that make up one example: NumPy, no JAX.

A clip shows `num_frames` frames of one scene. An example takes `num_views` of
them from a window of consecutive frames: always the two ends of the window, and
random frames between them. The longest window grows over training, so that the
model sees small camera motions first.

Samples agree number for number with the official XFactor loader; tests/golden
holds its output.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64

from xfactor.errors import UserError


def frame_rng(seed: int, index: int) -> np.random.Generator:
  """Returns the generator of element `index`: a pure function of both numbers.

  The index is the top word of Philox's 256-bit counter, so the streams of two
  elements never overlap. Same construction as the official XFactor loader.

  Args:
    seed: Seed of the data stream, at least 0.
    index: Index of the element in the stream, at least 0.
  """
  return np.random.Generator(np.random.Philox(seed, counter=[0, 0, 0, index]))


def window_at(
  step: int, begin: int, end: int, ramp_steps: int, delay: int = 0
) -> int:
  """Returns the longest window allowed at a training step, in frames.

  It is `begin` up to step `delay`, then moves linearly, rounded down, and is
  `end` from step `delay + ramp_steps` on.

  Args:
    step: The training step; for a data pipeline, element index // batch size.
    begin: Frames in the longest window before the ramp.
    end: Frames in the longest window after it; may be less than `begin`.
    ramp_steps: Length of the ramp in steps; 0 jumps to `end` after `delay`.
    delay: Steps before the ramp starts.
  """
  if step - delay >= ramp_steps:
    return end
  # Integers, because a float fraction can land one frame below the true value.
  return begin + max(step - delay, 0) * (end - begin) // ramp_steps


def bump_weights(num_lengths: int) -> Float64[np.ndarray, '{num_lengths}']:
  """Returns the probabilities of window lengths, from shortest to longest.

  A Gaussian bump at 0.7 of the range on top of a floor: mostly long windows,
  seldom the longest. The official multi-view recipe samples windows this way.
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
  """Samples the frames of one example from a clip.

  The window's length is sampled from [min_window, max_window], its start
  uniformly, then the inner frames, then whether to reverse time. Windows never
  exceed the clip. Samples in the same order as the official XFactor loader.

  Args:
    rng: Generator of all random numbers.
    num_frames: Frames in the clip.
    num_views: Frames to choose, at least 2.
    max_window: Longest window, in frames, both ends counted.
    min_window: Shortest window; None means num_views.
    bump: Whether to weight lengths by `bump_weights` instead of uniformly.
    gap_sigma: If set, one inner frame lies in the central part of the window,
      this fraction of its length: a reference frame close to all others.
    inclusive: Whether inner frames may repeat the ends (an official option).
    equal: Whether inner frames are equally spaced, rounded down, not random.
    flip_prob: Probability of running backwards in time.

  Returns:
    Frame indices in [0, num_frames), sorted, or reverse-sorted when flipped;
    distinct unless `inclusive`.

  Raises:
    UserError: If the clip has fewer than num_views frames.
    ValueError: If the arguments contradict each other.
  """
  low = num_views if min_window is None else min_window
  _check(num_frames, num_views, low, max_window)
  if equal and (inclusive or gap_sigma is not None):
    raise ValueError('equal cannot be combined with inclusive or gap_sigma.')
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
  """Samples distinct frames in random order from a random window of a clip.

  Args:
    rng: Generator of all random numbers.
    num_frames: Frames in the clip.
    num_views: Frames to choose, at least 2.
    window: Consecutive frames to choose from; cut to the clip's length.

  Raises:
    UserError: If the clip has fewer than num_views frames.
    ValueError: If the window has fewer than num_views frames.
  """
  _check(num_frames, num_views, num_views, window)
  length = min(window, num_frames)
  start = int(rng.integers(0, num_frames - length + 1))
  return start + rng.choice(length, num_views, replace=False)


def eval_frames(
  num_frames: int, num_views: int, window: int
) -> Int64[np.ndarray, '{num_views}']:
  """Returns equally spaced frames of the clip's central window.

  Args:
    num_frames: Frames in the clip.
    num_views: Frames to return, at least 2.
    window: Frames from first to last, both counted; cut to the clip's length.

  Returns:
    Distinct frame indices in increasing order.

  Raises:
    UserError: If the clip has fewer than num_views frames.
    ValueError: If the window has fewer than num_views frames.
  """
  _check(num_frames, num_views, num_views, window)
  length = min(window, num_frames)
  return (num_frames - length) // 2 + _equally_spaced(length, num_views)


@dataclasses.dataclass(frozen=True)
class Views:
  """Samples examples from clips, with a curriculum of window lengths.

  Attributes:
    num_views: Frames in an example, at least 2.
    window: Longest window in frames, (at the start, at the end) of training.
    ramp_steps: Training steps over which the first becomes the second.
    delay: Training steps before the ramp starts.
    min_window: Shortest window in frames; None means num_views.
    bump: Whether to prefer long windows; see `bump_weights`.
    gap_sigma: Range of a central reference frame; see `choose_frames`.
    flip_prob: Probability of running backwards in time.

  Raises:
    UserError: If a window cannot hold num_views frames, or a value is out of
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
    """Samples the frames of one example in the order of `choose_frames`.

    Args:
      rng: Generator of the element; see `frame_rng`.
      num_frames: Frames in the clip.
      step: Training step of the element.

    Raises:
      UserError: If the clip has fewer than num_views frames.
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
  """Samples each example twice, the second possibly shifted in time.

  Two clips along one path would show the same motion; here the second shows
  another one with probability `prob` (arXiv 2510.13063, table 7).

  Attributes:
    views: Sampler of the unshifted examples.
    offset: Maximum shift in frames, at least 1; less at the ends of the clip.
    prob: Share of the examples that are shifted.

  Raises:
    UserError: If offset or prob is out of range.
  """

  views: Views
  offset: int
  prob: float

  def __post_init__(self):
    if self.offset < 1 or not 0.0 < self.prob <= 1.0:
      raise UserError(
        'wrong shift of second examples: set config.data.offset to at least '
        f'1 frame, not {self.offset}, and config.data.offset_prob to a share '
        f'up to 1, not {self.prob}.'
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
    """Samples the frames of one example, then those of its shifted second.

    Args:
      rng: Generator of the element; see `frame_rng`.
      num_frames: Frames in the clip.
      step: Training step of the element.

    Raises:
      UserError: If the clip has fewer frames than an example.
    """
    frames = self.views(rng, num_frames, step)
    size = int(rng.integers(1, self.offset + 1))
    offset = size * int(rng.choice([-1, 1])) * int(rng.random() < self.prob)
    room = -int(frames.min()), num_frames - 1 - int(frames.max())
    return np.concatenate([frames, frames + np.clip(offset, *room)])


@dataclasses.dataclass(frozen=True)
class SetViews:
  """Samples unordered examples from clips, for posed models.

  Any frames of the window, in any order: the first are a model's inputs, the
  others its targets, as in Scene Representation Transformers.

  Attributes:
    num_views: Frames in an example, at least 2.
    window: Frames to choose from, (at the start, at the end) of training.
    ramp_steps: Training steps over which the first becomes the second.

  Raises:
    UserError: If a window cannot hold num_views frames, or a value is out of
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
    """Samples the frames of one example; see `choose_set`.

    Args:
      rng: Generator of the element; see `frame_rng`.
      num_frames: Frames in the clip.
      step: Training step of the element.

    Raises:
      UserError: If the clip has fewer than num_views frames.
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
  """Samples a window length from [low, high]."""
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
  """Samples `count` distinct offsets inside a window, unsorted."""
  pool = np.arange(length) if inclusive else np.arange(1, length - 1)
  if gap_sigma is None or count == 0:
    return rng.choice(pool, count, replace=False)
  reference = _sample_central(rng, length, gap_sigma)
  others = rng.choice(pool[pool != reference], count - 1, replace=False)
  return np.append(others, reference)


def _sample_central(
  rng: np.random.Generator, length: int, fraction: float
) -> int:
  """Samples an offset from the central `fraction` of a window, without ends."""
  middle, reach = (length - 1) / 2, fraction * (length - 1) / 2
  first = max(int(np.ceil(middle - reach)), 1)
  last = min(int(np.floor(middle + reach)), length - 2)
  if first > last:  # A short window of even length has no central frame.
    return length // 2
  return int(rng.integers(first, last + 1))


def _equally_spaced(length: int, count: int) -> Int64[np.ndarray, '{count}']:
  """Returns `count` offsets from 0 to length - 1, rounded down."""
  return np.arange(count, dtype=np.int64) * (length - 1) // (count - 1)
