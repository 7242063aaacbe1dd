"""Data set sources: each module converts one raw layout to clips.

A source lists `Item`s cheaply (one video file, one scene, one walk) and turns
each into zero or more `Clip`s. Items are the unit of parallel work: they are
picklable and independent, and the same item always gives the same clips.

To add a data set, write `xfactor/data/sources/NAME.py` with a class `Source`
(a frozen dataclass whose fields are the options of `convert_datasets.py`) and
add NAME to `NAMES`.
"""

import abc
import dataclasses
import importlib
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from xfactor.data import files
from xfactor.errors import UserError

NAMES = (
  'clevr3d',
  'co3dv2',
  'colmap',
  'dl3dv',
  'msn',
  'mvimgnet',
  'nmr',
  'obsurf_msn',
  're10k',
  'sliding',
  'solids',
  'synthetic',
  'tfds',
  'transforms',
  'video',
  'vizdoom',
)
# Sources whose scenes can be rendered from other cameras: their classes have
# `is_installed`, `is_free` and `rerender`, see `data.rerender`.
RERENDERED = ('sliding', 'synthetic', 'vizdoom')
# Ranges of options that many sources share.
_RANGES = {'size': (1, 65_500), 'quality': (1, 100), 'min_posed': (0, 1)}


@dataclasses.dataclass(frozen=True)
class Item:
  """A unit of conversion work.

  Attributes:
    id: Name that is unique within the source and stable across runs and
      machines (a relative path or a number, never an absolute path).
    payload: Input of `Source.clips`; picklable.
    split: Split given by the source; None lets the converter split by a hash of
      the clip's id.
    size: Estimated bytes of the item's output, for balancing shards.
    bundle: Whether the clips' ids do not start with the item's id, as in files
      of many sequences; split lists then cannot select items.
    group: What the item shows, if other items or several clips show the same
      (one video, one capture): its hash determines the split of all of them.
      None lets each clip's id determine its split.
    problem: Why the item cannot be converted, if listing found that out: it is
      recorded as skipped, and `Source.clips` does not see it.
  """

  id: str
  payload: Any = None
  split: str | None = None
  size: int = 1
  bundle: bool = False
  group: str | None = None
  problem: str | None = None


@dataclasses.dataclass
class Clip:
  """One continuous shot of one static scene, ready to be written.

  Cameras are OpenCV (x right, y down, z forward).

  Attributes:
    id: Stable name, made of letters (of any script), digits and `/._-`. Of
      equal ids in a data set, the converter changes all but the first.
    frames: One JPEG or PNG (8-bit RGB, `height` x `width`) per frame, in time
      order; the same format throughout the data set.
    height: Pixels, the same for all frames.
    width: Pixels, the same for all frames.
    timestamps: float64 [N] seconds from the start of the footage, or None.
    intrinsics: float32 [N, 4] (fx, fy, cx, cy), normalised: fx and cx by the
      width, fy and cy by the height, so that the centre of the image is 0.5;
      None if unknown.
    world_to_camera: float32 [N, 3, 4], [R|t], or None if unknown.
    depth: One 16-bit greyscale PNG per frame, z-depth in thousandths of a scene
      unit (0 = unknown), or None.
    replaced: Number of unreadable frames replaced by a neighbour.
    notes: What else was lost or changed, and how often, for example
      {'frames skipped: cannot be read': 2}; summed up for each split.
  """

  id: str
  frames: list[bytes]
  height: int
  width: int
  timestamps: np.ndarray | None = None
  intrinsics: np.ndarray | None = None
  world_to_camera: np.ndarray | None = None
  depth: list[bytes] | None = None
  replaced: int = 0
  notes: dict[str, int] = dataclasses.field(default_factory=dict)


class Source(abc.ABC):
  """Base class of data set sources.

  Class attributes:
    name: The data set's default name on disk.
    version: Semantic version of the source's output.
    description: One sentence for the data set's metadata.
    reads: Pattern of the paths, relative to `source` and in lower case, of the
      files that it reads; None if the files there are not its own.
  """

  name: ClassVar[str]
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str]
  reads: ClassVar[str | None] = None

  @abc.abstractmethod
  def items(self) -> list[Item]:
    """Lists the units of work, in a stable order.

    Raises:
      UserError: If the source folder is missing, empty or has another layout.
    """

  def ignored(self) -> dict[str, int]:
    """Returns how many files of each kind, for example '.txt', are not read.

    Files in buckets are not counted: listing them can take hours.
    """
    root = getattr(self, 'source', '')
    if self.reads is None or files.is_remote(root):
      return {}
    from xfactor.data.sources import listing  # Which imports this module.

    return listing.others(os.path.expanduser(root), self.reads)

  @abc.abstractmethod
  def clips(self, item: Item) -> Iterator[Clip]:
    """Yields the clips of one item; pure: same item, same clips.

    Whatever this raises, the converter records it next to the data set, keeps
    the clips before it and continues with the other items.

    Raises:
      UserError: If something in the item cannot be read.
    """


def find(name: str) -> type[Source]:
  """Returns the class of the source called `name`, one of `NAMES`."""
  return importlib.import_module(f'{__name__}.{name}').Source


def make(name: str, **options: Any) -> Source:
  """Returns the source called `name` with the given options.

  Raises:
    UserError: If there is no such source or option, or a required option is
      missing, or a value is out of range.
  """
  if name not in NAMES:
    raise UserError(
      f'there is no data set source {name!r}; choose one of {", ".join(NAMES)}'
    )
  cls = find(name)
  fields = {f.name: f.default for f in dataclasses.fields(cls)}
  for key, default in fields.items():
    if default is dataclasses.MISSING and key not in options:
      raise UserError(f'the {name} source needs --{key}')
  for key in options:
    if key not in fields:
      raise UserError(
        f'the {name} source has no option {key!r}; it takes '
        f'{", ".join(sorted(fields))}'
      )
  for key, (low, high) in _RANGES.items():
    value = options.get(key)
    if isinstance(value, int | float) and not low <= value <= high:
      raise UserError(f'--{key} is {value}; give it {low} to {high}')
  return cls(**options)
