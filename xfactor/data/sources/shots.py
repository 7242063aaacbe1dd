"""Finds cuts between shots of a video."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

THUMBNAIL = 32  # Pixels; enough to distinguish scenes.
_REACH = 8  # Maximum shift by a pan per frame, in thumbnail pixels.
_NEIGHBOURS = 3  # Changes on each side that a cut must exceed.
_DARK = 0.05  # Mean brightness of a frame that shows nothing.
_UNRELATED = 0.4  # Least `displacement_error` across a fade between scenes.


@dataclasses.dataclass(frozen=True)
class Frame:
  """A decoded frame, before the split into shots.

  Attributes:
    time: Seconds from the first frame, or None if unknown.
    jpeg: Converted picture; None if the frame is only used to find cuts.
    thumbnail: Result of `thumbnail`.
    replaced: Whether a neighbour replaces the frame.
    after_hole: Whether a new shot begins because too many frames are missing
      before it.
    changes: What was done to its pixels and its time, in words.
  """

  time: float | None
  jpeg: bytes | None
  thumbnail: np.ndarray
  replaced: bool
  after_hole: bool = False
  changes: tuple[str, ...] = ()


def thumbnail(rgb: np.ndarray) -> np.ndarray:
  """Returns a thumbnail to find cuts with, float32 [32, 32, 3] in [0, 1]."""
  small = Image.fromarray(rgb).resize(
    (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX
  )
  return np.asarray(small, np.float32) / 255


@functools.cache
def _overlap() -> tuple[np.ndarray, np.ndarray]:
  """Returns the spectrum of a full picture and the size of each overlap."""
  spectrum = _spectrum(np.ones((THUMBNAIL, THUMBNAIL, 1)))
  return spectrum, 3 * _at_shifts(spectrum, spectrum)


def _spectrum(picture: np.ndarray) -> np.ndarray:
  """Returns the padded Fourier transform of [32, 32, C]."""
  side = THUMBNAIL + _REACH
  return np.fft.rfft2(picture, (side, side), axes=(0, 1))


def _at_shifts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the inner products of two pictures at all [17, 17] shifts."""
  side = (THUMBNAIL + _REACH,) * 2
  sums = np.fft.irfft2((a * b.conj()).sum(-1), side)
  wanted = 2 * _REACH + 1
  return np.roll(sums, (_REACH, _REACH), (0, 1))[:wanted, :wanted]


def displacement_error(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the difference of two thumbnails up to a shift and exposure.

  The difference is one minus the correlation of the overlap at the best shift;
  correlation is invariant to brightness and contrast.

  Args:
    a: float [32, 32, 3].
    b: float [32, 32, 3].

  Returns:
    0 for the same scene up to a pan and light, near 1 for unrelated scenes.
  """
  middle = (a.mean() + b.mean()) / 2
  a, b = a - middle, b - middle
  # Sums over the overlap at every shift are products of Fourier transforms.
  full, count = _overlap()
  of_a, of_b = _spectrum(a), _spectrum(b)
  mean_a = _at_shifts(of_a, full) / count
  mean_b = _at_shifts(full, of_b) / count
  variance_a = _at_shifts(_spectrum(a**2), full) / count - mean_a**2
  variance_b = _at_shifts(full, _spectrum(b**2)) / count - mean_b**2
  covariance = _at_shifts(of_a, of_b) / count - mean_a * mean_b
  # Flat pictures are similar; their noise must not count.
  floor = 1e-4
  correlation = (covariance + floor) / np.sqrt(
    (variance_a + floor) * (variance_b + floor)
  )
  return max(0.0, float(1 - correlation.max()))


def palette_error(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the fraction of colours, 0 to 1, in only one of two thumbnails."""
  counts = [
    np.bincount((x * 7.999).astype(int).reshape(-1, 3) @ [64, 8, 1], None, 512)
    for x in (a, b)
  ]
  return float(np.abs(counts[0] - counts[1]).sum() / (2 * THUMBNAIL**2))


def change(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the score of a cut between two thumbnails, 0 to about 1.

  The score is the geometric mean of two errors, because a cut raises both:
  exposure changes only the palette, passing objects only the picture.
  """
  return math.sqrt(displacement_error(a, b) * palette_error(a, b))


def _changes(frames: Iterable[Frame]) -> Iterator[tuple[Frame, float]]:
  """Yields each frame with its change from the two frames before it.

  The change is the smallest of comparing this and the next frame with the two
  before, so that a single odd frame, such as a flash, has no effect. It is NaN
  for the first frame, and infinite after a fade to black: where a bright frame
  follows dark ones and shows another scene than the last bright one.
  """
  before: list[np.ndarray] = []
  bright, faded = None, False
  for frame, after in itertools.pairwise(itertools.chain(frames, [None])):
    now = [frame.thumbnail] + ([after.thumbnail] if after else [])
    score = change(before[0], now[0]) if before else math.nan
    # Skips the other comparisons for most frames, which hardly change.
    if score > 0.1:
      pairs = list(itertools.product(before, now))[1:]
      score = min([score] + [change(a, b) for a, b in pairs])
    if frame.thumbnail.mean() < _DARK:
      faded = bright is not None
    else:
      if faded and displacement_error(bright, frame.thumbnail) > _UNRELATED:
        score = math.inf
      bright, faded = frame.thumbnail, False
    yield frame, score
    before = [frame.thumbnail, *before[:1]]


def mark_cuts(
  frames: Iterable[Frame], threshold: float
) -> Iterator[tuple[Frame, bool]]:
  """Yields each frame and whether a new shot begins with it.

  At a cut the picture changes by at least `threshold` and by far more than
  around it; this separates cuts from fast motion and sparse frames. Two cuts
  may be next to each other, three are fast motion.
  """
  past: collections.deque[float] = collections.deque(maxlen=_NEIGHBOURS)
  ahead: collections.deque[tuple[Frame, float]] = collections.deque()
  changes = _changes(frames)
  while True:
    ahead.extend(itertools.islice(changes, _NEIGHBOURS + 1 - len(ahead)))
    if not ahead:
      return
    frame, score = ahead.popleft()
    around = [*past, *(other for _, other in ahead)]
    around = [other for other in around if not math.isnan(other)]
    # The second largest, as one of them may be a cut, too.
    usual = sorted(around)[-2] if len(around) > 1 else sum(around)
    yield frame, bool(score >= max(threshold, 2 * usual))
    past.append(score)
