"""Damaged and hostile bytes: every parser raises its own error, quickly.

Each parser gets a valid file with random changes, from a fixed seed. A soak
test makes more of them.
"""

import io
import json
import pathlib
import pickle
import random
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import serialization
from PIL import Image

from tests.data.formats import test_colmap as colmap_files
from tests.data.sources.test_msn import masked
from tests.training import small
from xfactor.data import images
from xfactor.data.formats import (
  camera_files,
  colmap,
  npz,
  tfrecord,
  torch_file,
  weights,
)
from xfactor.data.records import codec
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.exchange import official_xfactor

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'torch'
SECONDS, MEGABYTES = 5, 600  # Limits for one input, and for all inputs.
SMALL = {'max_megapixels': 32}  # Ten bytes per pixel while it is decoded.
EDGES = (0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


def mutate(data, rng):
  """Some of what happens to files, and what attackers do to them."""
  out = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 5))):
    at = rng.randrange(len(out) + 1)
    match rng.randrange(7):
      case 0:
        out[at : at + 1] = bytes([rng.randrange(256)])
      case 1:
        out[at : at + 1] = bytes(
          x ^ 1 << rng.randrange(8) for x in out[at : at + 1]
        )
      case 2:
        del out[at : at + rng.choice((1, 4, 64, len(out)))]
      case 3:
        out[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
      case 4:
        begin = rng.randrange(len(out) + 1)
        out[at:at] = out[begin : begin + rng.choice((4, 64))]
      case 5:
        layout = rng.choice(['<B', '<H', '<I', '<Q'])
        number = rng.choice(EDGES) % 2 ** (8 * struct.calcsize(layout))
        out[at : at + struct.calcsize(layout)] = struct.pack(layout, number)
      case 6:
        digits = str(rng.choice(EDGES)).encode()
        out[at : at + len(digits)] = digits
  return bytes(out)


def picture(kind, **options):
  rng = np.random.default_rng(0)
  out = io.BytesIO()
  image = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
  image.save(out, kind, **options)
  return out.getvalue()


def record(data):
  head = struct.pack('<Q', len(data))
  return head + masked(head) + data + masked(data)


def zipped(save=np.savez_compressed):
  out = io.BytesIO()
  save(out, a=np.arange(60.0).reshape(5, 12), b=np.zeros(3, np.uint8))
  return out.getvalue()


def example():
  values = codec.Example()
  values.features.feature['a'].int64_list.value.extend([1, 2])
  values.features.feature['b'].bytes_list.value.append(b'xyz')
  return values.SerializeToString()


CLIP = codec.Clip(
  'name', 0, 3, 24, 20, np.arange(3.0), np.ones((3, 4)), np.ones((3, 3, 4))
)
ARRAYS = {'a/b': np.arange(12, dtype=np.float32).reshape(3, 4)}
COLMAP = colmap_files.binary_files(colmap_files.CAMERAS, colmap_files.IMAGES)
TRANSFORMS = {
  **{'w': 640, 'h': 480, 'fl_x': 500.0, 'fl_y': 500.0, 'cx': 320, 'cy': 240},
  'frames': [
    {'file_path': '1.png', 'transform_matrix': np.eye(4).tolist()},
  ],
}
REALESTATE = 'https://x/y\n' + '\n'.join(
  ' '.join(map(str, [i * 1000, *range(18)])) for i in range(3)
)


def of_file(read, name):
  def parse(data, folder):
    path = epath.Path(folder) / name
    path.write_bytes(data)
    return read(path)

  return parse


def model(other):
  """Reads COLMAP's model with one file damaged and the other good."""

  def parse(data, folder):
    for name in COLMAP:
      content = COLMAP[name] if name == other else data
      (folder / name).write_bytes(content)
    return colmap.read_model(epath.Path(folder))

  return parse


def records(path):
  return [tfrecord.example(x) for x in tfrecord.read(path)]


def torch(name):
  return lambda data, folder: torch_file.load(data)


PARSERS = {
  'jpeg': (picture('JPEG'), lambda x, _: images.fit(x, 16)),
  'jpeg header': (picture('JPEG'), lambda x, _: images.header(x)),
  'exif': (
    picture(
      'JPEG',
      exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01'
      b'\0\0\0\x06\0\0\0\0\0\0\0',
    ),
    lambda x, _: images.read_square(x, 8, **SMALL),
  ),
  'png': (picture('PNG'), lambda x, _: images.decode(x)),
  'tiff': (picture('TIFF'), lambda x, _: images.fit(x, 16, **SMALL)),
  'gif': (picture('GIF'), lambda x, _: images.fit(x, None, **SMALL)),
  'webp': (picture('WEBP'), lambda x, _: images.fit(x, None, **SMALL)),
  'npz': (zipped(), lambda x, _: npz.read(x)),
  'npz stored': (zipped(np.savez), lambda x, _: npz.read(x)),
  'torch': ((GOLDEN / 'state.pt').read_bytes(), torch('state.pt')),
  'torch chunk': ((GOLDEN / 'chunk.torch').read_bytes(), torch('chunk')),
  'torch legacy': ((GOLDEN / 'legacy.pt').read_bytes(), torch('legacy.pt')),
  'safetensors': (
    safetensors.numpy.save(ARRAYS),
    of_file(weights.read_arrays, 'x.safetensors'),
  ),
  'msgpack': (
    serialization.msgpack_serialize({'a': ARRAYS, 'step': np.int32(3)}),
    of_file(official_xfactor.read_msgpack, 'x.flax'),
  ),
  'tfrecord': (
    record(example()) + record(example()),
    of_file(records, 'x.tfrecord'),
  ),
  'example': (example(), lambda x, _: tfrecord.example(x)),
  'frame record': (
    codec.encode_frame(picture('JPEG')),
    lambda x, _: codec.decode_frame(x),
  ),
  'clip record': (codec.encode_clip(CLIP), lambda x, _: codec.decode_clip(x)),
  'cameras': (COLMAP['cameras.bin'], model('images.bin')),
  'images': (COLMAP['images.bin'], model('cameras.bin')),
  'transforms': (
    json.dumps(TRANSFORMS).encode(),
    of_file(camera_files.read_transforms, 'transforms.json'),
  ),
  'realestate': (
    REALESTATE.encode(),
    of_file(camera_files.read_realestate, 'x.txt'),
  ),
}
# What their docstrings say, besides UserError.
ALLOWED = {
  'frame record': (ValueError,),
  'clip record': (ValueError,),
}


def fuzz(data, parse, allowed, folder, count):
  """Parses `count` mutations; returns how many were refused."""
  rng = random.Random(0)
  refused, slowest = 0, 0.0
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for i in range(count):
    bad = mutate(data, rng)
    began = time.process_time()
    try:
      parse(bad, folder)
    except (UserError, images.ImageError, *allowed):
      refused += 1
    except BaseException as e:
      raise AssertionError(f'mutation {i} raised {e!r}') from e
    slowest = max(slowest, time.process_time() - began)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert slowest < SECONDS
  assert (after - before) / 1024 < MEGABYTES
  return refused


@pytest.mark.parametrize('name', PARSERS)
@pytest.mark.parametrize(
  'count', [pytest.param(2000, marks=pytest.mark.soak), 100]
)
@pytest.mark.filterwarnings('ignore')  # Decoders warn of what they repair.
def test_only_its_own_errors(name, count, tmp_path, record_property):
  record_property('tried', count)
  data, parse = PARSERS[name]
  parse(data, tmp_path)
  refused = fuzz(data, parse, ALLOWED.get(name, ()), tmp_path, count)
  assert refused > count / 50


@pytest.fixture(scope='module')
def split(tmp_path_factory):
  return small.make_data(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize(
  'count', [pytest.param(2000, marks=pytest.mark.soak), 20]
)
@pytest.mark.parametrize(
  'pattern',
  ['frames/*/manifest.json', 'clips/*/manifest.json', 'clips/*/*.npz'],
)
@pytest.mark.filterwarnings('ignore')
def test_damaged_data_sets(split, pattern, count, record_property):
  record_property('tried', count)
  path = sorted((split / 'squares').glob(pattern))[0]
  good = path.read_bytes()

  def parse(data, _):
    path.write_bytes(data)
    for part in ('train', 'test'):
      store = store_lib.open_split(split, 'squares', part)
      if len(store):
        store.clip_ids()

  try:
    fuzz(good, parse, (), None, count)
  finally:
    path.write_bytes(good)


# ------------------------------------------------------------- made by hand
def bomb(opcodes):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('x/data.pkl', opcodes)
    archive.writestr('x/data/0', bytes(64))
  return out.getvalue()


NESTED = b''.join(b'h\x00h\x00\x86q\x00' for _ in range(60))
PICKLES = {
  'huge text': b'\x80\x04\x8d' + struct.pack('<Q', 2**40) + b'x.',
  'nested key': b'\x80\x02)q\x00' + NESTED + b'}h\x00K\x01s.',
  'nested storage': b'\x80\x02)q\x00' + NESTED + b'Q.',
  'copies': (
    b'\x80\x02X' + struct.pack('<I', 10**6) + b'x' * 10**6 + b'q\x00'
    b'c_codecs\nencode\nq\x01X\x06\0\0\0latin1q\x02'
    + b'h\x01h\x00h\x02\x86R' * 10**4
    + b'.'
  ),
  'state of a class': (
    b'\x80\x02ccollections\nOrderedDict\n}X\x01\0\0\0aK\x01sb.'
  ),
}


@pytest.mark.parametrize('name', PICKLES)
def test_pickles_that_take_all_memory_or_time(name):
  began = time.process_time()
  with pytest.raises(UserError, match='not a valid file of torch'):
    torch_file.load(bomb(PICKLES[name]))
  assert time.process_time() - began < SECONDS


def test_a_memo_of_any_size_takes_no_memory():
  """The reader in C allocates 64 GiB for this one."""
  assert torch_file.load(bomb(b'\x80\x02]r\xff\xff\xff\xff.')) == []


def test_compressed_bombs(monkeypatch):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x/data.pkl', pickle.dumps(bytes(10**6), 2))
  with pytest.raises(UserError, match='does not compress'):
    torch_file.load(out.getvalue())
  out = io.BytesIO()
  np.savez_compressed(out, a=np.zeros(10**6, np.uint8))
  npz.read(out.getvalue())
  monkeypatch.setattr(npz, '_FREE', 10**5)
  with pytest.raises(UserError, match=r'1000\d+ bytes in'):
    npz.read(out.getvalue())


def test_arrays_that_declare_more_than_they_have():
  good = zipped(np.savez)
  for bad in (b"'shape': (99, 12)", b"'shape': (-5, 12)", b"'descr': '|O8'"):
    begin = bad[:9]
    at = good.index(begin)
    with pytest.raises(UserError, match='readable'):
      npz.read(good[:at] + bad + good[at + len(bad) :])


def test_a_time_beyond_64_bits(tmp_path):
  path = tmp_path / 'x.txt'
  path.write_text(REALESTATE.replace('1000', '9' * 30))
  with pytest.raises(UserError, match='is not a camera file'):
    camera_files.read_realestate(path)


def test_a_record_longer_than_its_file(tmp_path):
  data = record(example())
  head = struct.pack('<Q', 2**60)
  path = tmp_path / 'x'
  path.write_bytes(head + masked(head) + data[12:])
  with pytest.raises(UserError, match='truncated or damaged'):
    list(tfrecord.read(path))


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_other_formats_are_not_opened(tmp_path, suffix):
  """Ghostscript would run this program."""
  path = tmp_path / f'x.{suffix}'
  path.write_bytes(
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n'
  )
  with pytest.raises(images.ImageError, match='cannot'):
    images.read_image(path)
  with pytest.raises(images.ImageError, match='cannot'):
    images.fit(path.read_bytes(), 8)


def test_pictures_have_a_number_of_pixels(monkeypatch):
  for kind in ('JPEG', 'PNG'):
    with pytest.raises(images.ImageError, match='20 x 24 pixels, more than'):
      images.read_image(io.BytesIO(picture(kind)), max_megapixels=0)
    with pytest.raises(images.ImageError, match='20 x 24 pixels, more than'):
      images.fit(picture(kind), 16, max_megapixels=0)
  monkeypatch.setattr(images, 'MAX_MEGAPIXELS', 0)
  with pytest.raises(images.ImageError, match='too large'):
    images.decode(picture('JPEG'))
