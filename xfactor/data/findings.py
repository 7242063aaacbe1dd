"""What verification found, and its table."""

import dataclasses

import numpy as np

from xfactor.data import checks
from xfactor.data.records import codec

# Kinds of problems and what to do about them.
_COPY = 'copy the data set again, or convert it again with --overwrite'
_CONVERT = 'correct the source and convert it again with --overwrite'
REMEDIES = {
  **dict.fromkeys(
    (
      *('manifest', 'TFDS metadata', 'missing file', 'damaged file'),
      *('checksum', 'record count', 'unreadable record'),
      *('clip index', 'clip order'),
    ),
    _COPY,
  ),
  **dict.fromkeys(('frame', 'frame size', 'depth', 'timestamps'), _CONVERT),
  'camera': (
    f'cameras are OpenCV, intrinsics are divided by the size: {_CONVERT}'
  ),
  'repeated clip id': f'rename or remove one of the two: {_CONVERT}',
  'repeated frames': f'remove one of the two clips: {_CONVERT}',
  'frames in two splits': (
    f'scores on them mean nothing, remove one of the two clips: {_CONVERT}'
  ),
  'evaluation index': 'delete the file: it will be made again',
}


@dataclasses.dataclass
class Row:
  """A split of a version of a data set.

  Attributes:
    name: Of the data set.
    version: Semantic version.
    split: Its name; '-' for what concerns all of the version.
    clips: As the manifest says; so are `frames` and `bytes`.
    posed: Clips that have cameras.
    problems: What is wrong with it.
  """

  name: str
  version: str
  split: str
  clips: int = 0
  frames: int = 0
  bytes: int = 0
  posed: int = 0
  problems: checks.Problems = dataclasses.field(default_factory=checks.Problems)


@dataclasses.dataclass
class Report:
  """What `verify` found: a row a split, and what is odd but not wrong."""

  rows: list[Row] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def problems(self) -> checks.Problems:
    """Those of all rows."""
    out = checks.Problems()
    for row in self.rows:
      out.merge(row.problems)
    return out

  @property
  def ok(self) -> bool:
    """Whether nothing is wrong."""
    return not any(len(row.problems) for row in self.rows)


def table(report: Report) -> str:
  """Returns what the user reads: a table, then a line a kind of problem."""
  head = ('data set', 'version', 'split', 'clips', 'frames', 'MiB', 'cameras')
  rows = [(*head, 'problems')]
  for row in report.rows:
    cameras = {0: 'no', row.clips: 'yes'}.get(row.posed, f'{row.posed} clips')
    mib = f'{row.bytes / 2**20:.1f}'
    cells = (row.clips, row.frames, mib, cameras, len(row.problems))
    rows.append((row.name, row.version, row.split, *map(str, cells)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = list(zip(row, widths, strict=True))
    left = [cell.ljust(width) for cell, width in cells[:3]]
    lines.append('  '.join(left + [c.rjust(width) for c, width in cells[3:]]))
  problems = report.problems
  for kind, count in problems.counts.items():
    lines.append(f'{kind}: {count} ({REMEDIES[kind]})')
    examples = problems.examples[kind]
    lines += [f'  {example}' for example in examples]
    if count > len(examples):
      lines.append(f'  ... and {count - len(examples)} more')
  lines += [f'note: {note}' for note in report.notes]
  lines.append(f'problems: {len(problems)}' if problems else 'all is well')
  return '\n'.join(lines)


@dataclasses.dataclass
class Found:
  """What was read of a split.

  Attributes:
    row: What is reported of it.
    clips: Those that can be read, without their arrays.
    hashes: uint64 [frames] of the encoded pictures; 0 where unread.
  """

  row: Row
  clips: list[codec.Clip]
  hashes: np.ndarray

  def spans(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns where clips begin and end, int64 [clips] frames."""
    begin = np.array([clip.first_frame for clip in self.clips], np.int64)
    return begin, begin + [clip.num_frames for clip in self.clips]
