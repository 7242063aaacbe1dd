"""Encodes and decodes the records of frames and clips."""

import dataclasses
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _example_class() -> type[Any]:
  """Builds the message class of tf.train.Example at run time.

  The pool is private, so that the names cannot clash with TensorFlow's.
  """
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name='example.proto', package='xfactor', syntax='proto3'
  )

  def message(parent, name: str, *fields: tuple[str, int, str]):
    add = parent.message_type if parent is file else parent.nested_type
    out = add.add(name=name)
    for number, (key, label, kind) in enumerate(fields, 1):
      spec = out.field.add(name=key, number=number, label=label)
      if kind.startswith('.'):
        spec.type, spec.type_name = field.TYPE_MESSAGE, kind
      else:
        spec.type = getattr(field, f'TYPE_{kind}')
    return out

  one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
  message(file, 'BytesList', ('value', many, 'BYTES'))
  message(file, 'FloatList', ('value', many, 'FLOAT'))
  message(file, 'Int64List', ('value', many, 'INT64'))
  feature = message(
    file,
    'Feature',
    ('bytes_list', one, '.xfactor.BytesList'),
    ('float_list', one, '.xfactor.FloatList'),
    ('int64_list', one, '.xfactor.Int64List'),
  )
  feature.oneof_decl.add(name='kind')
  for spec in feature.field:
    spec.oneof_index = 0
  features = message(
    file, 'Features', ('feature', many, '.xfactor.Features.FeatureEntry')
  )
  entry = message(
    features,
    'FeatureEntry',
    ('key', one, 'STRING'),
    ('value', one, '.xfactor.Feature'),
  )
  entry.options.map_entry = True
  message(file, 'Example', ('features', one, '.xfactor.Features'))

  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName('xfactor.Example')
  )


Example = _example_class()


def _serialize(values: dict[str, bytes | int]) -> bytes:
  example = Example()
  for key, value in values.items():
    feature = example.features.feature[key]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    else:
      feature.int64_list.value.append(value)
  # Maps have no defined order, but equal data must give equal bytes.
  return example.SerializeToString(deterministic=True)


def encode_frame(image: bytes, depth: bytes | None = None) -> bytes:
  """Encodes one frame as a record: its picture and, if any, its depth PNG."""
  values = {'image': image}
  if depth is not None:
    values['depth'] = depth
  return _serialize(values)


def decode_frame(record: bytes, key: str = 'image') -> bytes:
  """Returns the encoded bytes of a frame's `image` or `depth`.

  Raises:
    ValueError: If the record is not a frame or has no such key.
  """
  try:
    values = Example.FromString(record).features.feature
  except Exception as e:  # protobuf's DecodeError is not a ValueError
    raise ValueError(f'not a frame record: {e}') from e
  if key not in values or not values[key].bytes_list.value:
    raise ValueError(f'this frame has no {key}')
  return values[key].bytes_list.value[0]


@dataclasses.dataclass
class Clip:
  """Metadata of one clip: everything but its frames.

  Attributes:
    id: Name, unique within the data set.
    first_frame: Index of the first frame within the split.
    num_frames: Number of frames, N.
    height: Height in pixels.
    width: Width in pixels.
    timestamps: float64 [N] seconds, or None.
    intrinsics: float32 [N, 4] normalised (fx, fy, cx, cy), or None.
    world_to_camera: float32 [N, 3, 4] [R|t], or None.
    replaced: Number of frames replaced by a neighbouring frame.
  """

  id: str
  first_frame: int
  num_frames: int
  height: int
  width: int
  timestamps: np.ndarray | None = None
  intrinsics: np.ndarray | None = None
  world_to_camera: np.ndarray | None = None
  replaced: int = 0

  @property
  def posed(self) -> bool:
    """Whether the cameras of all frames are known."""
    return all(
      array is not None and np.isfinite(array).all()
      for array in (self.intrinsics, self.world_to_camera)
    )


INTEGERS = ('first_frame', 'num_frames', 'height', 'width', 'replaced')
# Raw bytes, since tf.train.Example has no float64. Empty means unknown.
ARRAYS = {
  'timestamps': (np.dtype('<f8'), (-1,)),
  'intrinsics': (np.dtype('<f4'), (-1, 4)),
  'world_to_camera': (np.dtype('<f4'), (-1, 3, 4)),
}


def encode_clip(clip: Clip) -> bytes:
  """Encodes one clip as a record."""
  values = {'id': clip.id.encode()}
  for key in INTEGERS:
    values[key] = int(getattr(clip, key))
  for key, (dtype, _) in ARRAYS.items():
    array = getattr(clip, key)
    values[key] = b'' if array is None else np.asarray(array, dtype).tobytes()
  return _serialize(values)


def decode_clip(record: bytes) -> Clip:
  """Decodes the record of one clip; inverse of `encode_clip`.

  Raises:
    ValueError: If the record is not a clip.
  """
  try:
    values = Example.FromString(record).features.feature
    arrays = {}
    for key, (dtype, shape) in ARRAYS.items():
      data = values[key].bytes_list.value[0]
      arrays[key] = np.frombuffer(data, dtype).reshape(shape) if data else None
    integers = {key: values[key].int64_list.value[0] for key in INTEGERS}
    name = values['id'].bytes_list.value[0].decode()
  except Exception as e:  # protobuf's DecodeError is not a ValueError
    raise ValueError(f'not a clip record: {e}') from e
  return Clip(name, **integers, **arrays)
