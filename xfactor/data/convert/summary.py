"""Summarizes conversions."""

import dataclasses
import shutil

from xfactor.data import files
from xfactor.data.convert import plan as plan_lib

_NAMED = 5  # Clips that a line of the report names.


@dataclasses.dataclass(frozen=True)
class SplitSummary:
  """Size of one split.

  `bytes` is the sum over frames and clips, `unposed` the number of frames of
  clips without cameras, `notes` says what was lost or changed, and how often,
  `noted_clips` names the clips where it is whole clips.
  """

  clips: int
  frames: int
  bytes: int
  replaced: int
  unposed: int = 0
  notes: dict[str, int] = dataclasses.field(default_factory=dict)
  noted_clips: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Summary:
  """Result of a conversion.

  Attributes:
    folder: Folder of the data set, DATA_DIR/NAME.
    version: Semantic version.
    splits: Sizes of the splits.
    skipped: (item id, reason) of items that could not be converted.
    left_out: Clips that the split lists or `only` exclude.
    missing: Listed ids that no clip has.
    null_entries: Listed ids that the lists exclude.
    ignored: Number of files of the source that are not read, by kind.
    seconds: Wall time of this run.
    new_frames: Frames that this run converted (others were done before).
    already: Whether the data set already existed and nothing was done.
  """

  folder: str
  version: str
  splits: dict[str, SplitSummary]
  skipped: list[tuple[str, str]]
  left_out: int
  missing: list[str]
  seconds: float
  new_frames: int
  already: bool = False
  null_entries: int = 0
  ignored: dict[str, int] = dataclasses.field(default_factory=dict)


def summary(
  plan: plan_lib.Plan, seconds: float, new_frames: int, already: bool = False
) -> Summary:
  frames, clips = (
    files.read_json(plan.root / config / plan.version / 'manifest.json')
    for config in ('frames', 'clips')
  )
  return Summary(
    folder=str(plan.root),
    version=plan.version,
    splits={
      split: SplitSummary(
        clips=entry['clips'],
        frames=entry['frames'],
        bytes=sum(
          shard['bytes']
          for manifest in (frames, clips)
          for shard in manifest['splits'][split]['shards']
        ),
        replaced=entry['replaced'],
        unposed=entry.get('unposed', 0),
        notes=entry.get('notes', {}),
        noted_clips=entry.get('noted_clips', {}),
      )
      for split, entry in frames['splits'].items()
    },
    skipped=[tuple(s) for s in frames['skipped']],
    left_out=frames.get('left_out', 0),
    missing=frames.get('missing', []),
    seconds=seconds,
    new_frames=new_frames,
    already=already,
    null_entries=frames.get('null_entries', 0),
    ignored=frames.get('ignored', {}),
  )


def describe(plan: plan_lib.Plan) -> str:
  """Describes what a conversion would do, for --dry_run."""
  items = [item for part in plan.parts for item in part]
  splits: dict[str, int] = {}
  for item in items:
    key = item.split or f'by hash ({plan.test_fraction:g} test)'
    splits['by lists' if plan.lists else key] = splits.get(key, 0) + 1
  options = ', '.join(f'{k}={v}' for k, v in plan.options['options'].items())
  lines = [
    f'would convert {len(items)} items in {len(plan.parts)} parts '
    f'with the {plan.options["source"]} source ({options})',
    'splits: ' + ', '.join(f'{k}: {n} items' for k, n in splits.items()),
    f'into {plan.root}/frames/{plan.version} and clips/{plan.version}',
    f'estimated size {plan.bytes / 2**20:.0f} MiB{_free(plan)}',
  ]
  lines += [f'  {item.id}' for item in items[:20]]
  if len(items) > 20:
    lines.append(f'  ... and {len(items) - 20} more')
  return '\n'.join(lines)


def _free(plan: plan_lib.Plan) -> str:
  """Describes the free space of a local target."""
  if files.is_remote(plan.root):
    return ''
  existing = plan.root.resolve()
  while not existing.exists():
    existing = existing.parent
  return f', free {shutil.disk_usage(existing).free / 2**20:.0f} MiB'


def report(summary: Summary) -> str:
  """Formats the final table."""
  rate = summary.new_frames / max(summary.seconds, 1e-6)
  head = ('split', 'clips', 'frames', 'unposed', 'MiB', 'replaced')
  rows = [
    (
      split,
      str(s.clips),
      str(s.frames),
      str(s.unposed),
      f'{s.bytes / 2**20:.1f}',
      str(s.replaced),
    )
    for split, s in sorted(summary.splits.items())
  ]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  lines = [
    '  '.join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
    for row in (head, *rows)
  ]
  for split, s in sorted(summary.splits.items()):
    for what, count in s.notes.items():
      clips = s.noted_clips.get(what, [])
      named = ', '.join(clips[:_NAMED]) + ', ...' * (count > _NAMED)
      lines.append(
        f'{split}: {what}: {count}' + (f' ({named})' if clips else '')
      )
  if summary.already:
    lines.append(
      f'already converted: {summary.folder} {summary.version} (give '
      '--overwrite to convert again)'
    )
  else:
    lines.append(
      f'{summary.folder} {summary.version}: {summary.new_frames} frames in '
      f'{summary.seconds:.0f} s, {rate:.0f} frames/s'
    )
  if summary.left_out:
    lines.append(f'clips excluded by --splits or --split: {summary.left_out}')
  if summary.missing:
    lines.append(
      f'ids of --splits without a clip: {len(summary.missing)}, for instance '
      + ', '.join(summary.missing[:3])
    )
  if summary.null_entries:
    lines.append(
      f'ids that --splits lists as null, excluded: {summary.null_entries}'
    )
  if summary.ignored:
    kinds = sorted(summary.ignored.items(), key=lambda entry: -entry[1])
    named = ', '.join(f'{count} {kind}' for kind, count in kinds)
    lines.append(f'files ignored: {named}')
  if summary.skipped:
    lines.append(
      f'skipped items: {len(summary.skipped)} (all others are converted)'
    )
    lines += [f'  {item}: {why}' for item, why in summary.skipped[:20]]
    if len(summary.skipped) > 20:
      lines.append('  ... all of them are in manifest.json')
  return '\n'.join(lines)
