"""Finds clips that are stored more than once."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from xfactor.data import findings, images, looks

_REPEATED = 0.5  # Share of frames found elsewhere that makes a clip a copy.
_DISTANCE = 6  # Maximum number of different bits.
_QUERIES = 8  # Compared frames per clip.
_CROWD = 2000  # Pictures with equal bits; with more, these mean nothing.
_SHARE = 0.5  # Minimum share of compared frames found in the other clip.
_SIDE = 32  # Pixels of the pictures that confirm what was found.
_ALIKE = 0.2  # Maximum difference of these, in their standard deviations.
_CHUNK = 1 << 16


def check_repeated(
  found: Sequence[findings.Found],
) -> set[tuple[int, int]]:
  """Finds clips and pictures that occur twice, within or across splits.

  Returns:
    Pairs of clips that share pictures, numbered over all splits.
  """
  clips = [(out.row, clip.id) for out in found for clip in out.clips]
  owner: dict[str, str] = {}
  for row, clip in clips:
    where = f'{row.name} {row.version}'
    if clip in owner:
      what = f'clip {clip!r} is in {owner[clip]} and in {row.split}'
      row.problems.add('repeated clip id', where, what)
    owner[clip] = row.split
  copies = _copies(found)
  for a, b in copies:
    (other, other_clip), (row, clip) = clips[a], clips[b]
    same = row.split == other.split
    row.problems.add(
      'repeated frames' if same else 'frames in two splits',
      f'{row.name} {row.version}',
      f'clip {clip!r} of {row.split} and clip {other_clip!r} of {other.split} '
      'show the same pictures',
    )
  return set(copies)


def _copies(found: Sequence[findings.Found]) -> list[tuple[int, int]]:
  """Returns pairs of clips, numbered over all splits, that share pictures.

  At least half of one clip's frames also occur, byte for byte, in other clips,
  and the first such frame occurs in the other clip of the pair.
  """
  if not found:
    return []
  owners, clips = [], 0
  for out in found:
    owner = np.full(len(out.hashes), -1)
    for begin, end in zip(*out.spans(), strict=True):
      owner[begin:end] = clips
      clips += 1
    owners.append(owner)
  owner = np.concatenate(owners)
  hashes = np.concatenate([out.hashes for out in found])
  known = (hashes != 0) & (owner >= 0)
  owner, hashes = owner[known], hashes[known]
  # Owners increase, so a picture's first and last owners bound the others.
  _, first, at = np.unique(hashes, return_index=True, return_inverse=True)
  _, last = np.unique(hashes[::-1], return_index=True)
  lowest, highest = owner[first][at], owner[::-1][last][at]
  shared = lowest != highest
  share = np.bincount(owner, shared) / np.maximum(np.bincount(owner), 1)
  frames = np.flatnonzero(shared & (share[owner] >= _REPEATED))
  # The first such frame of each clip.
  frames = frames[np.unique(owner[frames], return_index=True)[1]]
  pairs = np.stack([lowest[frames], highest[frames]], -1)
  between = (lowest[frames] < owner[frames]) & (owner[frames] < highest[frames])
  pairs[between, 1] = owner[frames[between]]
  return [(int(a), int(b)) for a, b in np.unique(pairs, axis=0)]


class Pair(NamedTuple):
  """Two clips, and the numbers of a frame in each that look the same.

  Clips are numbered over all splits.
  """

  first: int
  second: int
  frames: tuple[int, int]


def check_looks(
  found: Sequence[findings.Found],
  read: Callable[[str, int, int], bytes],
  known: set[tuple[int, int]],
) -> None:
  """Finds clips in two splits with the same pictures in other bytes.

  Args:
    found: Contents of the splits.
    read: Returns a frame, given the split, the number of a clip and of a frame.
    known: Pairs of clips that were reported for other reasons.
  """
  clips = [
    (out.row, clip.id, i) for out in found for i, clip in enumerate(out.clips)
  ]
  for pair in _pairs(found):
    if (pair.first, pair.second) in known:
      continue
    both = [clips[pair.first], clips[pair.second]]
    pictures = [
      _small(read(row.split, number, frame))
      for (row, _, number), frame in zip(both, pair.frames, strict=True)
    ]
    spread = min(picture.std() for picture in pictures)
    if np.sqrt(np.mean((pictures[0] - pictures[1]) ** 2)) > _ALIKE * spread:
      continue
    (other, other_clip, _), (row, clip, _) = both
    row.problems.add(
      'similar in two splits',
      f'{row.name} {row.version}',
      f'clip {clip!r} of {row.split} and clip {other_clip!r} of {other.split} '
      'look the same',
    )


def _small(data: bytes) -> np.ndarray:
  picture = Image.fromarray(images.decode(data)).convert('L')
  small = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
  return np.asarray(small, np.float64)


def _pairs(found: Sequence[findings.Found]) -> Iterator[Pair]:
  """Yields pairs of clips in different splits that seem to be the same."""
  bits, owners, splits, offsets, clips = [], [], [], [], 0
  for number, out in enumerate(found):
    for begin, end in zip(*out.spans(), strict=True):
      own = np.flatnonzero(out.looks[begin:end])
      bits.append(out.looks[begin + own])
      owners.append(np.full(len(own), clips))
      splits.append(np.full(len(own), number))
      offsets.append(own)
      clips += 1
  if not bits or len(found) < 2:
    return
  bits, owners, splits, offsets = map(
    np.concatenate, (bits, owners, splits, offsets)
  )
  if not len(bits):
    return
  queries = _queries(owners)
  counts = np.bincount(owners[queries], minlength=clips)
  hits: dict[tuple[int, int], dict[int, int]] = {}
  for query, other in _near(bits, queries, splits):
    key = int(owners[query]), int(owners[other])
    hits.setdefault(key, {})[int(query)] = int(other)
  seen = set()
  for (a, b), frames in sorted(hits.items()):
    if len(frames) < max(_SHARE * counts[a], min(2, counts[a])):
      continue
    first, second = min(a, b), max(a, b)
    if (first, second) in seen:
      continue
    seen.add((first, second))
    pair = sorted(frames.items())[len(frames) // 2]
    numbers = tuple(int(offsets[i]) for i in (pair if a < b else pair[::-1]))
    yield Pair(first, second, numbers)


def _queries(owners: np.ndarray) -> np.ndarray:
  """Returns a few pictures of each clip, evenly spaced."""
  begins = np.flatnonzero(np.diff(owners, prepend=-1))
  ends = np.append(begins[1:], len(owners))
  return np.concatenate(
    [
      np.unique(np.linspace(a, b - 1, _QUERIES).astype(int))
      for a, b in zip(begins, ends, strict=True)
    ]
  )


def _near(
  bits: np.ndarray, queries: np.ndarray, splits: np.ndarray
) -> Iterator[tuple[int, int]]:
  """Yields (query, picture of another split) that differ in few bits.

  Those that share a block of bits are compared: all with up to three
  differences, and most of the others.
  """
  for block in range(looks.BLOCKS):
    keys = (bits >> np.uint64(looks.BITS * block)) & np.uint64(
      2**looks.BITS - 1
    )
    order = np.argsort(keys, kind='stable')
    ordered = keys[order]
    for start in range(0, len(queries), _CHUNK):
      own = queries[start : start + _CHUNK]
      low = np.searchsorted(ordered, keys[own], 'left')
      size = np.searchsorted(ordered, keys[own], 'right') - low
      size[size > _CROWD] = 0
      query = np.repeat(own, size)
      within = np.arange(len(query)) - np.repeat(np.cumsum(size) - size, size)
      other = order[np.repeat(low, size) + within]
      near = np.bitwise_count(bits[query] ^ bits[other]) <= _DISTANCE
      near &= splits[query] != splits[other]
      yield from zip(query[near], other[near], strict=True)
