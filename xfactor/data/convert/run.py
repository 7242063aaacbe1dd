"""Converts raw data to records, as tools/convert_datasets.py does.

The items of a source are dealt to a number of parts that does not depend on the
number of workers. A worker writes one part at a time: a file of frames and a
file of clips for each split, then a small JSON that marks the part as done.
A killed run that is started again skips the parts that are done and whose
checksums match. Hosts that run the same command on a shared folder or bucket
share the parts (`claims.py`); so do the workers of Apache Beam. When all parts
are done, one process gives their files their final names:

  DATA_DIR/NAME/.incomplete-VERSION/     all work in progress
    options.json                         options of the run
    part-00007.claim                     a process is working on this part
    part-00007.json                      this part is done
    part-00007.train.frames              its records, renamed at the end
    part-00007.train.clips               its clips, merged at the end
    parts.json                           all parts are done

A clip's split is given by explicit lists (`splits.py`), else by the source,
else by a hash of the clip's id, or of its item's group: clips of one recording
stay together. So a clip keeps its split when others are added. If the hash
leaves a split of a small data set empty, the clip or group with the smallest
hash moves to `test` (or the one with the largest to `train`); only these may
change their split when clips are added.
"""

import contextlib
import dataclasses
import errno
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from xfactor.data import files, sources
from xfactor.data.convert import beam, publish, summary
from xfactor.data.convert import claims as claims_lib
from xfactor.data.convert import part as part_lib
from xfactor.data.convert import plan as plan_lib
from xfactor.data.convert import splits as splits_lib
from xfactor.data.convert import workers as workers_lib
from xfactor.data.records import eval_index, folders
from xfactor.errors import UserError

EVAL_VIEWS, EVAL_WINDOW = 2, 20


def convert(
  source: sources.Source,
  data_dir: str | os.PathLike[str],
  *,
  name: str | None = None,
  workers: int | None = None,
  test_fraction: float = 0.1,
  lists: splits_lib.Lists | None = None,
  only: Sequence[str] | None = None,
  overwrite: bool = False,
  quiet: bool = False,
  beam_options: Sequence[str] | None = None,
) -> summary.Summary:
  """Converts a source to records; continues where a killed run stopped.

  Args:
    source: Source to convert; picklable.
    data_dir: Folder of converted data sets, local or gs://.
    name: Name of the data set; the source's own name by default.
    workers: Number of processes; 0 uses this one, None one per core. It does
      not affect the result.
    test_fraction: Share of clips, by hash, in the test split if the source has
      no splits.
    lists: Explicit split lists, instead of the source's splits and the hash.
    only: Splits to convert; all by default.
    overwrite: Whether to replace an existing data set and discard unfinished
      work with other options.
    quiet: Whether to hide the progress bar.
    beam_options: Command-line options of Apache Beam, to convert with it
      instead of local processes.

  Raises:
    UserError: If the input or the target is unusable; its message names the
      remedy. Finished parts are kept.
  """
  start = time.monotonic()
  plan = plan_lib.make_plan(source, data_dir, name, test_fraction, lists, only)
  if workers is None:
    workers = os.cpu_count() or 1
  progress = part_lib.Progress.make(len(plan.parts))
  with _clear_messages(plan):
    _make_root(plan)
    publish.delete_aside(plan)
    if publish.is_published(plan):
      publish.discard(plan)
    done = plan.version in folders.versions(data_dir, plan.name)
    if done and not overwrite and not (plan.work / 'options.json').exists():
      _check_same(plan, source)
      return summary.summary(plan, time.monotonic() - start, 0, already=True)
    _open_work(plan, overwrite)
    try:
      with contextlib.closing(claims_lib.Claims(plan.work)) as claims:
        parts = None
        if not (plan.work / 'parts.json').exists():
          if beam_options is None:
            parts = workers_lib.convert_parts(
              source, plan, workers, progress, claims, quiet
            )
          else:
            parts = beam.convert_on_beam(source, plan, progress, beam_options)
        while not claims.take('finish'):
          time.sleep(workers_lib.POLL)
        _finish_parts(plan, source.description, parts)
    except (OSError, RuntimeError):
      if plan.work.exists() or plan.version not in folders.versions(
        data_dir, plan.name
      ):
        raise
      # Another process, which shared the work, has just finished it.
  _fix_eval(plan)
  return summary.summary(plan, time.monotonic() - start, sum(progress.frames))


def _finish_parts(
  plan: plan_lib.Plan, description: str, parts: list[dict[str, Any]] | None
) -> None:
  """Makes a data set of finished parts; continues an interrupted attempt.

  Args:
    plan: Plan of the conversion, whose `finish` this process has claimed.
    description: Description of the source.
    parts: Summaries of the parts; unused if another run got this far.
  """
  if not (plan.work / 'options.json').exists() or publish.is_published(plan):
    return  # Another process has just finished it all.
  path = plan.work / 'parts.json'
  if path.exists():
    parts = [
      files.read_json(plan.work / f'{part_lib.part_stem(number)}.json')
      for number in range(len(plan.parts))
    ]
  else:
    parts = publish.fill_splits(plan, parts)
    if not any(part['clips'] for part in parts):
      raise _nothing(plan, parts)
    publish.make_folder(plan.work / 'frames')
    # From here on a new run repeats this step, no matter which files of parts
    # already have their final names.
    files.write_json(path, len(parts))
  publish.finish(plan, description, parts)
  publish.publish(plan)


def _check_same(plan: plan_lib.Plan, source: sources.Source) -> None:
  """Raises UserError if the data set was made with other options."""
  old = files.read_json(plan.root / 'frames' / plan.version / 'manifest.json')
  old = {key: old.get(key) for key in plan.options}
  # Earlier versions of the source had fewer options.
  defaults = {
    field.name: plan_lib.plain(field.default)
    for field in dataclasses.fields(source)
    if field.default is not dataclasses.MISSING
  }
  old['options'] = defaults | old['options']
  if old != plan.options:
    raise UserError(
      f'{plan.root} {plan.version} already exists, made with other '
      f'options ({_difference(old, plan.options)}); give another --name, or '
      '--overwrite to replace it'
    )


def _make_root(plan: plan_lib.Plan) -> None:
  try:
    plan.root.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    if e.errno == errno.ENOSPC:
      raise
    raise UserError(
      f'cannot make the folder {plan.root}: {e.strerror}; give a --data_dir '
      'that you may write to'
    ) from e


def _open_work(plan: plan_lib.Plan, overwrite: bool) -> None:
  """Makes the work folder, or checks that its options are the same."""
  path = plan.work / 'options.json'
  if path.exists():
    old = files.read_json(path)
    if old == plan.options:
      _sweep(plan)
      return
    if not overwrite:
      raise UserError(
        f'{plan.work} holds an unfinished conversion with other options '
        f'({_difference(old, plan.options)}); run its command again '
        'to continue it, or give another --name, or delete that folder'
      )
    if any(map(claims_lib.is_taken, plan.work.glob('*.claim'))):
      raise UserError(
        f'another process is at work in {plan.work} with other options; stop '
        'it and wait five minutes if it is on another host, or give another '
        '--name'
      )
    plan.work.rmtree()
  plan.work.mkdir(exist_ok=True)
  files.write_json(path, plan.options)


def _sweep(plan: plan_lib.Plan) -> None:
  """Deletes unfinished files of killed processes of this host."""
  mark = f'.incomplete-{socket.gethostname()}'
  for path in plan.work.iterdir():
    head, _, pid = path.name.rpartition('-')
    if head.endswith(mark) and not claims_lib.is_alive(int(pid)):
      path.unlink(missing_ok=True)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
  """Names the options that differ."""
  flat_old = {**old, **old['options']}
  flat_new = {**new, **new['options']}
  out = []
  for key in sorted(flat_old.keys() | flat_new.keys()):
    before, now = flat_old.get(key), flat_new.get(key)
    if key == 'options' or before == now:
      continue
    digests = {
      'items': 'the list of items in the source',
      'lists': 'the lists of --splits',
    }
    out.append(digests.get(key, f'{key} was {before!r} and is now {now!r}'))
  return ', '.join(out)


def _nothing(plan: plan_lib.Plan, parts: list[dict[str, Any]]) -> UserError:
  skipped = [s for part in parts for s in part['skipped']]
  publish.discard(plan)
  with contextlib.suppress(OSError):  # Other versions may be there.
    plan.root.rmdir()
  why = f'; the first: {skipped[0][0]}: {skipped[0][1]}' if skipped else ''
  return UserError(
    f'nothing was converted: {len(skipped)} of '
    f'{sum(map(len, plan.parts))} items could not be read, '
    f'{sum(part["left_out"] for part in parts)} clips were excluded, and '
    f'the other items have no clips{why}'
  )


def _fix_eval(plan: plan_lib.Plan) -> None:
  """Chooses the default evaluation examples, if clips are long enough."""
  manifest = files.read_json(
    plan.root / 'clips' / plan.version / 'manifest.json'
  )
  if 'test' not in manifest['splits']:
    return
  with contextlib.suppress(UserError):
    eval_index.eval_index(
      plan.root.parent,
      plan.name,
      'test',
      EVAL_VIEWS,
      EVAL_WINDOW,
      plan.version,
    )


@contextlib.contextmanager
def _clear_messages(plan: plan_lib.Plan) -> Iterator[None]:
  """Turns disk errors (full, read-only) into a UserError."""
  try:
    yield
  except (OSError, RuntimeError) as e:
    # array_record raises RuntimeError with the system's message.
    text = str(e)
    if getattr(e, 'errno', 0) == errno.ENOSPC or 'No space left' in text:
      raise UserError(
        f'the disk of {plan.root} is full; free some space and run the same '
        'command again: finished parts are kept'
      ) from e
    if (
      isinstance(e, PermissionError)
      or any(words in text for words in ('Read-only file', 'Permission denied'))
      or getattr(e, 'errno', 0) == errno.EROFS
    ):
      raise UserError(
        f'cannot write to {plan.root}: {e}; give a --data_dir that you may '
        'write to'
      ) from e
    raise
