"""The order of training examples, a pure function of seed and index."""

import bisect
import functools
import itertools
import sys
from collections.abc import Sequence

import numpy as np

# Resolution of mixing weights: shares are multiples of 1/n with n up to this.
_MAX_PERIOD = 10_000


class _Mixture:
  """Interleaves endless data sets in exact proportions, evenly spread."""

  def __init__(self, weights: Sequence[float]):
    counts = _counts(np.asarray(weights, np.float64))
    part = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(n) for n in counts])
    order = np.argsort((rank + 0.5) / counts[part], kind='stable')
    self._counts = counts.tolist()
    self._part = part[order].tolist()
    self._rank = rank[order].tolist()

  def __getitem__(self, index: int) -> tuple[int, int]:
    """Returns the part of an element and its index within that part."""
    period, place = divmod(index, len(self._part))
    part = self._part[place]
    return part, period * self._counts[part] + self._rank[place]

  def count(self, size: int) -> list[int]:
    """Returns how many of the first `size` elements each part has."""
    period, rest = divmod(size, len(self._part))
    begun = self._part[:rest]
    return [
      period * count + begun.count(part)
      for part, count in enumerate(self._counts)
    ]


class _Schedule:
  """Mixtures of the parts that have started, one after another."""

  def __init__(self, weights: Sequence[float], starts: Sequence[int]):
    self._begins = sorted(set(starts))
    self._stages = []
    before = [0] * len(weights)
    for begin, end in itertools.pairwise([*self._begins, None]):
      parts = [i for i, start in enumerate(starts) if start <= begin]
      mixture = _Mixture([weights[i] for i in parts])
      self._stages.append((mixture, parts, list(before)))
      if end is not None:
        for part, count in zip(parts, mixture.count(end - begin), strict=True):
          before[part] += count

  def __getitem__(self, index: int) -> tuple[int, int]:
    """Returns the part of an element and its index within that part."""
    stage = bisect.bisect_right(self._begins, index) - 1
    mixture, parts, before = self._stages[stage]
    part, place = mixture[index - self._begins[stage]]
    return parts[part], before[parts[part]] + place


class Order:
  """The endless stream of (part, row): a data source for Grain.

  Every part is reshuffled each epoch by a full permutation. This costs memory
  (4 MB per million clips), but Grain's own index shuffle takes milliseconds per
  element if there are few clips.
  """

  def __init__(
    self,
    seed: int,
    weights: Sequence[float],
    rows: Sequence[int],
    starts: Sequence[int] | None = None,
  ):
    """Prepares.

    Args:
      seed: Seed of the permutations.
      weights: Share of each part, relative to the others.
      rows: Number of rows of each part.
      starts: First element of the stream in which each part may be; by default
        all start at 0.
    """
    self._seed = seed
    self._mixture = _Schedule(weights, starts or [0] * len(weights))
    self._rows = tuple(rows)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> tuple[int, int]:
    part, place = self._mixture[index]
    epoch, place = divmod(place, self._rows[part])
    order = _permutation(self._seed, part, epoch, self._rows[part])
    return part, int(order[place])


class Share:
  """One process's elements of each step, with their indices in the stream.

  A process has neighbouring rows of every global batch, the layout that
  `jax.make_array_from_process_local_data` expects.
  """

  def __init__(self, order: Order, batch_size: int, index: int, count: int):
    self._order = order
    self._batch_size = batch_size
    self._rows = batch_size // count
    self._first = index * self._rows

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, step: int) -> list[tuple[int, tuple[int, int]]]:
    first = step * self._batch_size + self._first
    return [(i, self._order[i]) for i in range(first, first + self._rows)]


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, part: int, epoch: int, size: int) -> np.ndarray:
  rng = np.random.Generator(
    np.random.Philox(np.random.SeedSequence([seed, part, epoch]))
  )
  return rng.permutation(np.arange(size, dtype=np.int32))


def _counts(weights: np.ndarray) -> np.ndarray:
  """Returns how often each part occurs in the shortest exact period."""
  shares = weights / weights.sum()
  periods = np.arange(1, _MAX_PERIOD + 1)[:, None]
  off = np.abs(periods * shares - np.round(periods * shares)).max(1)
  exact = np.flatnonzero(off < 1e-6)
  period = exact[0] + 1 if len(exact) else _MAX_PERIOD
  return np.maximum(np.round(period * shares), 1).astype(np.int64)
