"""Results of a verification and their table."""

import dataclasses

import numpy as np

from xfactor.data import checks
from xfactor.data.records import codec

# Kinds of problems and their remedies.
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
    'cameras must be OpenCV and intrinsics divided by the image size: '
    f'{_CONVERT}'
  ),
  'cameras and pictures': (
    'the cameras may be those of turned, mirrored or cropped pictures, or the '
    f'scene moves: {_CONVERT}'
  ),
  'repeated clip id': f'rename or remove one of the two: {_CONVERT}',
  'repeated frames': f'remove one of the two clips: {_CONVERT}',
  'frames in two splits': (
    f'scores on them are meaningless, remove one of the two clips: {_CONVERT}'
  ),
  'similar in two splits': (
    'scores on them are meaningless, give both to one split (--splits): '
    f'{_CONVERT}'
  ),
  'evaluation index': 'delete the file: it will be made again',
}


@dataclasses.dataclass
class Row:
  """A split of a version of a data set.

  Attributes:
    name: Name of the data set.
    version: Semantic version.
    split: Name of the split; '-' for problems of the whole version.
    clips: Number in the manifest, as are `frames` and `bytes`.
    posed: Number of clips with cameras.
    epipolar: Median distance of matched features from their epipolar lines in
      a sample of clips, pixels at 256; None if nothing could be matched.
    problems: Problems found in the split.
  """

  name: str
  version: str
  split: str
  clips: int = 0
  frames: int = 0
  bytes: int = 0
  posed: int = 0
  epipolar: float | None = None
  problems: checks.Problems = dataclasses.field(default_factory=checks.Problems)


@dataclasses.dataclass
class Report:
  """Result of `verify`: one row per split, and notes on other findings."""

  rows: list[Row] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def problems(self) -> checks.Problems:
    """Problems of all rows."""
    out = checks.Problems()
    for row in self.rows:
      out.merge(row.problems)
    return out

  @property
  def ok(self) -> bool:
    """Whether no problems were found."""
    return not any(len(row.problems) for row in self.rows)


def table(report: Report) -> str:
  """Formats a report: a table, then one line per kind of problem."""
  head = ('data set', 'version', 'split', 'clips', 'frames', 'MiB', 'cameras')
  rows = [(*head, 'epipolar', 'problems')]
  for row in report.rows:
    cameras = {0: 'no', row.clips: 'yes'}.get(row.posed, f'{row.posed} clips')
    mib = f'{row.bytes / 2**20:.1f}'
    fit = '-' if row.epipolar is None else f'{row.epipolar:.2f} px'
    cells = (row.clips, row.frames, mib, cameras, fit, len(row.problems))
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
  lines.append(
    f'problems: {len(problems)}' if problems else 'no problems found'
  )
  return '\n'.join(lines)


@dataclasses.dataclass
class Found:
  """Contents of a split that verification has read.

  Attributes:
    row: Row of the report for this split.
    clips: Readable clips, without their arrays.
    hashes: uint64 [frames], hashes of the encoded pictures; 0 if unread.
    looks: uint64 [frames], see `looks.look`; 0 for those not compared.
  """

  row: Row
  clips: list[codec.Clip]
  hashes: np.ndarray
  looks: np.ndarray

  def spans(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clips' [begin, end) frames as two int64 [clips]."""
    begin = np.array([clip.first_frame for clip in self.clips], np.int64)
    return begin, begin + [clip.num_frames for clip in self.clips]
