"""Converts checkpoints of other formats to ours and back.

The public XFactor code (vsitzmann/xfactor-nvs, commit d0dd984) saves its whole
train state with clu.checkpoint: flax msgpack in `checkpoints-0/ckpt-N.flax`,
and a text file `checkpoint` that names the latest. The public SRT code saves
its state with torch.save: `model.pt`, next to its recipe; see `srt_recipe`.
Safetensors files contain only parameters, with the dotted names of the public
code.

The format of a source is detected from its content. Every source is read as a
`Snapshot`, which can be written in all formats except PyTorch's: users of the
public SRT code can load safetensors with PyTorch.
"""

import re

from etils import epath
from ml_collections import ConfigDict

from xfactor.errors import UserError
from xfactor.exchange import official_srt, official_xfactor, runs, safetensors
from xfactor.exchange import snapshot as snapshot_lib

# torch.save's magic number, before PyTorch 1.6.
_LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9'


def convert(
  source: epath.PathLike,
  out: epath.PathLike,
  *,
  to: str = 'ours',
  config: ConfigDict | None = None,
  contexts: int | None = None,
  image_size: int | None = None,
  overwrite: bool = False,
) -> dict[str, str]:
  """Reads a checkpoint of any format and writes it in another.

  Args:
    source: File, run of ours, folder `checkpoints-0` or its parent, or folder
      with `model.pt`.
    out: Folder of the new run for 'ours'; otherwise a file, or a folder for
      `checkpoints-0` or `model.safetensors`.
    to: One of FORMATS.
    config: Recipe of the new run, updated with network sizes that follow from
      the arrays. By default what is known of the source's recipe.
    contexts: Number of context views to set in the recipe.
    image_size: Height and width in pixels to set in the recipe.
    overwrite: Whether to replace existing checkpoints.

  Returns:
    Readable facts about what was read and written.

  Raises:
    UserError: If the source is missing, damaged or of another model, or if
      `out` already has a checkpoint.
  """
  source, out = epath.Path(source), epath.Path(out)
  target = snapshot_lib.target(out, to)
  if to == 'ours' and snapshot_lib.is_run(source):
    raise UserError(
      f'{source} is already a run of ours: give --to=official or '
      '--to=safetensors'
    )
  if not overwrite and snapshot_lib.is_taken(target):
    raise UserError(
      f'{target} already exists: give another --out, or --overwrite to '
      'replace it'
    )
  snapshot = read(source, config)
  if to == 'official' and snapshot.recipe.method != 'xfactor':
    raise UserError(
      f'{source} is of SRT, whose public format cannot be written: give '
      '--to=safetensors'
    )
  if contexts is not None:
    snapshot.recipe.data.contexts = contexts
  if image_size is not None:
    snapshot.recipe.data.update(image_size=image_size, image_width=None)
  try:
    if to == 'ours':
      wrote = runs.write_run(snapshot, out)
    elif to == 'official':
      wrote = official_xfactor.write_official(snapshot, target)
    else:
      wrote = safetensors.write_safetensors(snapshot, target)
  except OSError as e:
    raise UserError(f'cannot write {target}: {e}') from e
  return snapshot.facts | wrote


def read(
  source: epath.PathLike, config: ConfigDict | None = None
) -> snapshot_lib.Snapshot:
  """Reads a checkpoint of any format; arguments are those of `convert`.

  Raises:
    UserError: If it is missing, damaged, or of another model; names the first
      array that is missing, unexpected or of another shape.
  """
  path = epath.Path(source)
  try:
    if snapshot_lib.is_run(path):
      return runs.read_run(path)
    if path.is_dir():
      path = _latest(path)
    elif not path.exists():
      raise UserError(f'{path} does not exist: give another --source')
    with path.open('rb') as f:
      head = f.read(9)
    if head[8:] == b'{' and int.from_bytes(head[:8], 'little') <= 100_000_000:
      return safetensors.read_safetensors(path, config)
    if head.startswith((b'PK', _LEGACY_TORCH)):
      return official_srt.read_torch(path, config)
    if head[:1] and head[0] >> 4 == 0x8:  # A small map of msgpack.
      return official_xfactor.read_official(path, config)
  except OSError as e:
    raise UserError(f'cannot read {path}: {e}') from e
  raise UserError(
    f'{path} is of no known format: give a .flax file of the public XFactor '
    'code, a .pt file of the public SRT code, a .safetensors file, or a run of '
    'ours'
  )


def _latest(folder: epath.Path) -> epath.Path:
  """Returns model.pt, or the file named in clu's text file `checkpoint`."""
  if (folder / 'model.pt').exists():
    return folder / 'model.pt'
  if (folder / 'checkpoints-0').is_dir():
    folder = folder / 'checkpoints-0'
  names = folder / 'checkpoint'
  if not names.exists():
    raise UserError(
      f'{folder} holds no checkpoint that is known: neither a folder '
      'checkpoints (ours) nor a file checkpoint or model.pt (the public code) '
      'is in it'
    )
  latest = re.search(r'^model_checkpoint_path: "(.+)"', names.read_text(), re.M)
  # The path may be an absolute one of the machine of the training.
  path = folder / f'{latest[1].split("/")[-1]}.flax' if latest else names
  if not latest or not path.exists():
    raise UserError(
      f'{names} names no .flax file that is there: give one as --source'
    )
  return path
