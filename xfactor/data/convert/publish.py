"""Merges converted parts into the published folders."""

import collections
import dataclasses
import errno
import os
import shutil
import socket
from typing import Any

from absl import logging
from etils import epath

from xfactor.data import files as files_lib
from xfactor.data import naming
from xfactor.data.convert import part as part_lib
from xfactor.data.convert import plan as plan_lib
from xfactor.data.records import codec, tfds_metadata
from xfactor.data.records import shards as shards_lib

_PLACEHOLDER = 'folder'
_ASIDE = '.deleted-'
_MOST_NAMED = 1000  # Clips per note in the manifest.


def fill_splits(
  plan: plan_lib.Plan, parts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Moves one clip, or group, if the hash left a split empty; see `run`."""
  clips = [clip for part in parts for clip in part['clips']]
  found = {clip['split'] for clip in clips}
  groups = {_group(clip) for clip in clips}
  if (
    not plan.by_hash
    or plan.only
    or not 0 < plan.test_fraction < 1
    or len(clips) < 2
    or len(found) > 1
  ):
    return parts
  if len(groups) == 1:
    logging.warning(
      'All clips are from %s, and clips of one recording are not split: there '
      'is no split but %s. Convert several recordings, or assign clips with '
      '--splits.',
      *(*groups, *found),
    )
    return parts
  by_hash = sorted(
    groups, key=lambda group: (files_lib.unit_hash(group), group)
  )
  if found == {'train'}:
    moved, target = by_hash[0], 'test'
  else:
    moved, target = by_hash[-1], 'train'
  return [
    _rewrite_part(plan, number, part, moved, target)
    if any(_group(clip) == moved for clip in part['clips'])
    else part
    for number, part in enumerate(parts)
  ]


def _group(clip: dict[str, Any]) -> str:
  """Returns the text whose hash determines the split of a clip."""
  return clip['id'] if clip['group'] is None else clip['group']


def _rewrite_part(
  plan: plan_lib.Plan,
  number: int,
  part: dict[str, Any],
  moved: str,
  target: str,
) -> dict[str, Any]:
  """Rewrites a part with the clips of one group in another split."""
  (split,) = part['splits']
  files = part['splits'][split]
  frames = shards_lib.read_shard(plan.work / files['frames']['file'])
  clips = shards_lib.read_shard(plan.work / files['clips']['file'])
  # Another stem: the old files stay valid until the JSON is replaced.
  out = part_lib.Outputs(plan.work, f'{part_lib.part_stem(number)}-moved')
  for entry, record in zip(part['clips'], clips, strict=True):
    clip = codec.decode_clip(record)
    own = [next(frames) for _ in range(clip.num_frames)]
    out.add(
      target if _group(entry) == moved else split,
      clip,
      own,
      files['depth'],
      part['encodings'],
      **{key: entry[key] for key in ('item', 'group', 'notes')},
    )
  new = part | out.close()
  files_lib.write_json(plan.work / f'{part_lib.part_stem(number)}.json', new)
  return new


def _rename_repeated(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the parts with unique ids in the rows of their clips."""
  rows = [row for part in parts for row in part['clips']]
  new_ids = naming.number_repeated(row['id'] for row in rows)
  renamed = []
  for row, id in zip(rows, new_ids, strict=True):
    if id != row['id']:
      logging.warning(
        'Several clips are called %s; that of %s becomes %s.',
        *(row['id'], row['item'], id),
      )
    renamed.append(row | {'id': id})
  last = iter(renamed)
  return [
    part | {'clips': [next(last) for _ in part['clips']]} for part in parts
  ]


def finish(
  plan: plan_lib.Plan, description: str, parts: list[dict[str, Any]]
) -> None:
  """Writes the finished folders; can be interrupted and repeated."""
  parts = _rename_repeated(parts)
  splits = sorted({split for part in parts for split in part['splits']})
  make_folder(plan.work / 'clips')
  depth = all(s['depth'] for part in parts for s in part['splits'].values())
  encodings = {e for part in parts for e in part['encodings']}
  listed = {key for part in parts for key in part['listed']}
  ids = plan.lists.by_id if plan.lists else {}
  if plan.lists:
    files_lib.write_json(
      plan.work / 'clips' / 'splits.json', plan.lists.by_split()
    )
  frames, clips, manifest = {}, {}, {}
  for split in splits:
    own = [part for part in parts if split in part['splits']]
    rows = [c for part in own for c in part['clips'] if c['split'] == split]
    frames[split] = _name_frames(plan, split, own)
    clips[split] = _merge_clips(plan, split, own)
    manifest[split] = {
      'clips': len(rows),
      'frames': sum(row['frames'] for row in rows),
      'replaced': sum(row['replaced'] for row in rows),
      'unposed': sum(row['frames'] for row in rows if not row['posed']),
      'notes': _sum_notes(rows),
      'noted_clips': _noted_clips(rows),
      'frames_digest': files_lib.digest(
        [dataclasses.asdict(shard) for shard in frames[split]]
      ),
      'index_sha256': shards_lib.write_index(
        plan.work / 'clips' / f'clips-{split}.index.npz',
        [(r['id'], r['frames'], r['height'], r['width']) for r in rows],
      ),
    }
  for config, shards in (('frames', frames), ('clips', clips)):
    folder = plan.work / config
    tfds_metadata.write_tfds_metadata(
      folder,
      name=plan.name,
      config=config,
      version=plan.version,
      description=description,
      shards=shards,
      depth=depth,
      encoding=encodings.pop() if len(encodings) == 1 else None,
    )
    own = {
      split: entry
      | {'shards': [dataclasses.asdict(shard) for shard in shards[split]]}
      for split, entry in manifest.items()
    }
    # Left by runs that were killed here.
    for leftover in folder.glob('*.incomplete-*'):
      leftover.unlink(missing_ok=True)
    files_lib.write_json(
      folder / 'manifest.json',
      plan.options
      | {
        'name': plan.name,
        'config': config,
        'version': plan.version,
        'splits': own,
        'skipped': [s for part in parts for s in part['skipped']],
        'left_out': sum(part['left_out'] for part in parts),
        'missing': sorted(k for k in ids if ids[k] and k not in listed),
        'null_entries': sum(split is None for split in ids.values()),
        'ignored': plan.ignored,
      },
    )


def _sum_notes(rows: list[dict[str, Any]]) -> dict[str, int]:
  total = collections.Counter()
  for row in rows:
    total.update(row['notes'])
  return dict(sorted(total.items()))


def _noted_clips(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
  """Returns the clips that notes on whole clips are about."""
  out = collections.defaultdict(list)
  for row in rows:
    for what in row['notes']:
      if what.startswith('clips') and len(out[what]) < _MOST_NAMED:
        out[what].append(row['id'])
  return dict(sorted(out.items()))


def _name_frames(
  plan: plan_lib.Plan, split: str, parts: list[dict[str, Any]]
) -> list[shards_lib.Shard]:
  """Renames the parts' frames as TFDS expects."""
  out = []
  for i, part in enumerate(parts):
    shard = shards_lib.Shard(**part['splits'][split]['frames'])
    name = shards_lib.shard_name(plan.name, split, i, len(parts))
    # A run that was interrupted here has already renamed some files.
    if (plan.work / shard.file).exists():
      (plan.work / shard.file).replace(plan.work / 'frames' / name)
    out.append(dataclasses.replace(shard, file=name))
  return out


def _merge_clips(
  plan: plan_lib.Plan, split: str, parts: list[dict[str, Any]]
) -> list[shards_lib.Shard]:
  """Rewrites the clips, with first frames counted over the whole split."""
  size = sum(part['splits'][split]['clips']['bytes'] for part in parts)
  groups = -(-size // plan_lib.SHARD_BYTES)
  groups = min(groups, len(parts))
  first, out = 0, []
  for g in range(groups):
    name = shards_lib.shard_name(plan.name, split, g, groups)
    writer = shards_lib.ShardWriter(plan.work / 'clips' / name)
    begin, end = (len(parts) * i // groups for i in (g, g + 1))
    for part in parts[begin:end]:
      files = part['splits'][split]
      rows = [row for row in part['clips'] if row['split'] == split]
      clips = shards_lib.read_shard(plan.work / files['clips']['file'])
      for row, record in zip(rows, clips, strict=True):
        clip = codec.decode_clip(record)
        clip.id = row['id']
        clip.first_frame += first
        writer.write(codec.encode_clip(clip))
      first += files['frames']['records']
    out.append(writer.close())
  return out


def is_published(plan: plan_lib.Plan) -> bool:
  """Returns whether only the deletion of the work folder remains."""
  return (plan.work / 'parts.json').exists() and not (
    plan.work / 'frames'
  ).exists()


def publish(plan: plan_lib.Plan) -> None:
  """Moves the finished folders into place, instead of older ones if any.

  Frames come last: without them the data set does not count as complete, and
  their absence from the work folder means that all is done.
  """
  for config in ('clips', 'frames'):
    new, final = plan.work / config, plan.root / config / plan.version
    if files_lib.is_remote(final):
      _move_files(new, final)
      continue
    final.parent.mkdir(exist_ok=True)
    if not new.exists():
      # Another process was faster, and has moved the same result.
      raise FileNotFoundError(errno.ENOENT, 'moved by another process', new)
    if final.exists():
      _set_aside(plan, final)
    new.replace(final)
  discard(plan)


def _set_aside(plan: plan_lib.Plan, folder: epath.Path) -> None:
  """Moves a local folder away atomically, for `delete_aside`."""
  owner = f'{socket.gethostname()}-{os.getpid()}'
  name = f'{_ASIDE}{owner}-{folder.parent.name}-{folder.name}'
  folder.replace(plan.root / name)


def delete_aside(plan: plan_lib.Plan) -> None:
  for folder in plan.root.glob(f'{_ASIDE}*'):
    # Another process may be deleting it, too.
    shutil.rmtree(folder, ignore_errors=True)


def discard(plan: plan_lib.Plan) -> None:
  """Deletes the work folder, atomically as other processes see it."""
  if not files_lib.is_remote(plan.work):
    _set_aside(plan, plan.work)
    delete_aside(plan)
    return
  for path in plan.work.iterdir():
    # Deleted last: it marks the rest as no longer needed.
    if path.name != 'parts.json' and not path.is_dir():
      path.unlink(missing_ok=True)
  plan.work.rmtree()


def make_folder(folder: epath.Path) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  if files_lib.is_remote(folder):
    # Buckets have no empty folders.
    (folder / _PLACEHOLDER).write_text('')


def _move_files(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder of a bucket; can be interrupted and repeated.

  The manifest, which marks a folder as complete, comes last. So a target with a
  manifest is an older version or, if the source has none, already moved.
  """
  (source / _PLACEHOLDER).unlink(missing_ok=True)
  manifest = 'manifest.json'
  if (source / manifest).exists() and (target / manifest).exists():
    target.rmtree()
  make_folder(target)
  paths = sorted(source.iterdir(), key=lambda p: (p.name == manifest, p.name))
  for path in paths:
    path.replace(target / path.name)
  (target / _PLACEHOLDER).unlink()
