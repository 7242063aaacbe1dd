"""Prepared TFDS data sets of videos or pictures.

With a feature `Video`, or a `Sequence` of `Image`, each example becomes a clip.
With a plain `Image`, each clip has one frame: not enough for training on two
views, but enough for tasks on single pictures. Cameras and depth are not read.

Examples are read from array_record and TFRecord files without TensorFlow (only
the video features of early TFDS versions need it).
Nothing is downloaded or prepared.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core import dataset_info

from xfactor.data import naming, sources
from xfactor.data.formats import tfrecord
from xfactor.data.sources import posed
from xfactor.errors import UserError

_BLOCK = 100  # Examples per item.
_FORMATS = ('array_record', 'tfrecord')
_FILES = ('features.json', 'dataset_info.json')
_COLOUR = ('3', '4')  # Channels.
_VERSION = re.compile(r'\d+\.\d+\.\d+')


@dataclasses.dataclass(frozen=True)
class _Block:
  """Examples `start` to `stop` of a file; `first` is the first's number."""

  path: str
  start: int
  stop: int
  first: int
  feature: str


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """One clip per example, `SPLIT/NUMBER`, in the data set's own splits.

  Attributes:
    source: Folder of prepared data sets, TFDS's `data_dir`.
    builder: NAME, NAME/CONFIG or NAME/CONFIG:VERSION in `source`.
    feature: Name of the video or picture, `a/b` if nested; None selects the
      only one, or the only one in colour.
    size: Width and height of the centre-cropped frames, or None for whole
      pictures.
    quality: JPEG quality.
    min_length: Minimum number of frames; shorter examples are skipped.
  """

  name: ClassVar[str] = 'tfds'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'The pictures of a TFDS data set.'

  source: str
  builder: str
  feature: str | None = None
  size: int | None = 256
  quality: int = 95
  min_length: int = 1

  def items(self) -> list[sources.Item]:
    """Lists one item per hundred examples; see the base class."""
    folder = _find(self.source, self.builder)
    feature = _choose(folder, self.feature)
    info = dataset_info.read_proto_from_builder_dir(folder)
    stored = info.file_format or 'tfrecord'
    if stored not in _FORMATS:
      raise UserError(
        f'{folder} is stored as {stored}, which cannot be read; convert it to '
        f'{_FORMATS[0]} with tensorflow_datasets.scripts.convert_format'
      )
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder, dataset_name=info.name, filetype_suffix=stored
    )
    items = []
    for split in tfds.core.SplitDict.from_proto(info.splits, template).values():
      first = 0
      size = int(split.num_bytes) // max(split.num_examples, 1)
      for path, length in zip(
        split.filepaths, split.shard_lengths, strict=True
      ):
        for start in range(0, length, _BLOCK):
          stop = min(start + _BLOCK, length)
          block = _Block(str(path), start, stop, first + start, feature)
          items.append(
            sources.Item(
              _number(split.name, block.first),
              block,
              split=split.name,
              size=(stop - start) * size,
              bundle=True,
            )
          )
        first += length
    if not items:
      raise UserError(f'{folder} has no examples; prepare it again')
    return items

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clips of a block of examples; see the base class.

    Raises:
      UserError: After all other clips, if some examples are unusable.
    """
    block = item.payload
    yield from posed.bundle(
      f'the block {item.id}',
      (
        functools.partial(
          self._clip, _number(item.split, number), block.feature, record
        )
        for number, record in enumerate(_read(block), block.first)
      ),
    )

  def _clip(self, id: str, feature: str, record: bytes) -> sources.Clip:
    pictures = tfrecord.example(record).get(feature, ())
    return posed.make_clip(
      id,
      [posed.View(data, f'frame {i}') for i, data in enumerate(pictures)],
      size=self.size,
      quality=self.quality,
      min_length=self.min_length,
    )


def _number(split: str, number: int) -> str:
  return naming.clip_id(f'{split}/{number:07d}')


def _read(block: _Block) -> Iterator[bytes]:
  """Yields the records of a block.

  Raises:
    UserError: If the file is missing or damaged.
  """
  if '.tfrecord' in epath.Path(block.path).name:
    yield from tfrecord.read(block.path, block.start, block.stop)
    return
  try:
    with array_record_data_source.ArrayRecordDataSource(block.path) as records:
      for number in range(block.start, block.stop):
        yield records[number]
  except (OSError, RuntimeError, ValueError, IndexError) as error:
    raise UserError(
      f'{block.path} cannot be read: {error}; copy it again'
    ) from error


def _find(source: str, builder: str) -> epath.Path:
  """Returns the folder of the newest version of a prepared data set."""
  root = posed.folder(source, f'{builder} as prepared by TFDS')
  name, _, version = builder.partition(':')
  folder = root / name
  if not folder.is_dir():
    raise posed.wrong_layout(root, f'{name} as prepared by TFDS')
  versions = [
    path.name
    for path in folder.iterdir()
    if version in ('', path.name) and _VERSION.fullmatch(path.name)
  ]
  for newest in sorted(versions, key=naming.natural, reverse=True):
    if all((folder / newest / file).exists() for file in _FILES):
      return folder / newest
  raise posed.wrong_layout(
    folder,
    f'{version or "a version"} with {" and ".join(_FILES)}; give '
    '--builder=NAME/CONFIG:VERSION',
  )


def _choose(folder: epath.Path, name: str | None) -> str:
  """Returns the name of the feature to read, `name` if given."""
  text = (folder / 'features.json').read_text()
  features = json.loads(text)
  if 'featuresDict' not in features or 'jsonFeature' in text:
    features = _modern(folder, features)
  found = dict(_pictures(features))
  if name is not None:
    if name not in found:
      raise UserError(
        f'{folder} has no picture {name!r}; it has {_list(found)}'
      )
    return name
  plain = [key for key, (dtype, _) in found.items() if dtype == 'uint8']
  colour = [key for key in plain if found[key][1] in _COLOUR]
  choice = colour or plain
  if len(choice) != 1:
    raise UserError(
      f'{folder} has {_list(choice or found)} as videos or pictures; give '
      'another --builder or select one with --feature'
    )
  return choice[0]


def _modern(folder: epath.Path, features: Any) -> dict[str, Any]:
  """Converts the features.json of an early TFDS to the current format."""
  try:
    feature = tfds.features.FeatureConnector.from_json(features)
    return json_format.MessageToDict(feature.to_proto())
  except ImportError as error:
    raise UserError(
      f'{folder}/features.json was written by an early TFDS and needs '
      'TensorFlow: pip install tensorflow'
    ) from error
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{folder}/features.json cannot be read: {error}; prepare it again'
    ) from error


def _list(names: Iterable[str]) -> str:
  return ', '.join(names) or 'none'


def _pictures(
  feature: dict[str, Any], path: tuple[str, ...] = (), nested: bool = False
) -> Iterator[tuple[str, tuple[str, str | None]]]:
  """Yields name, dtype and channels of pictures and picture sequences.

  Args:
    feature: Entry of features.json (TFDS's class for videos needs TensorFlow).
    path: Names of the enclosing features.
    nested: Whether it is in a sequence. Records do not separate the elements of
      nested sequences.
  """
  if 'featuresDict' in feature:
    for key, inner in feature['featuresDict'].get('features', {}).items():
      yield from _pictures(inner, (*path, key), nested)
  elif 'sequence' in feature and not nested:
    yield from _pictures(feature['sequence']['feature'], path, nested=True)
  elif 'image' in feature or ('video' in feature and not nested):
    kind = feature.get('image') or feature['video']
    dtype = kind.get('dtype', 'uint8')
    channels = kind.get('shape', {}).get('dimensions', [None])[-1]
    if dtype != 'float32':  # TFDS stores its bits as a PNG.
      yield '/'.join(path), (dtype, channels)
