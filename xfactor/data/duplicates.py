"""Finds clips that are stored more than once."""

from collections.abc import Sequence

import numpy as np

from xfactor.data import findings

_REPEATED = 0.5  # Share of frames found elsewhere that makes a clip a copy.


def check_repeated(found: Sequence[findings.Found]) -> None:
  """Finds clips and pictures that occur twice, within or across splits."""
  clips = [(out.row, clip.id) for out in found for clip in out.clips]
  owner: dict[str, str] = {}
  for row, clip in clips:
    where = f'{row.name} {row.version}'
    if clip in owner:
      what = f'clip {clip!r} is in {owner[clip]} and in {row.split}'
      row.problems.add('repeated clip id', where, what)
    owner[clip] = row.split
  for a, b in _copies(found):
    (other, other_clip), (row, clip) = clips[a], clips[b]
    same = row.split == other.split
    row.problems.add(
      'repeated frames' if same else 'frames in two splits',
      f'{row.name} {row.version}',
      f'clip {clip!r} of {row.split} and clip {other_clip!r} of {other.split} '
      'show the same pictures',
    )


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
