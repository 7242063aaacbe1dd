"""Files of torch.save are read, and nothing in them is run.

The files in tests/golden/torch were written by PyTorch 2.15.0: a chunk of
sequences as pixelSplat stores them, and a training state in both formats.
"""

import collections
import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from xfactor.data.formats import torch_file
from xfactor.errors import UserError

FILES = os.path.join(os.path.dirname(__file__), '..', '..', 'golden', 'torch')


def golden(name):
  return os.path.join(FILES, name)


def check(array, expected, dtype):
  assert array.dtype == dtype
  np.testing.assert_array_equal(
    array.astype(np.complex128), np.asarray(expected, np.complex128)
  )


def test_chunk():
  chunk = torch_file.load(golden('chunk.torch'))
  assert [scene['key'] for scene in chunk] == [
    '5aca87f95a9412c0',
    '5aca87f95a9412c1',
  ]
  for number, scene in enumerate(chunk):
    n = 3 + number
    assert scene['url'] == f'https://www.youtube.com/watch?v=abc{number}'
    check(scene['timestamps'], np.arange(n) * 33367 + 52553000, np.int64)
    rows = np.arange(n * 18).reshape(n, 18) / 8 + number
    check(scene['cameras'], rows, np.float32)
    assert len(scene['images']) == n
    for i, data in enumerate(scene['images']):
      assert data.dtype == np.uint8
      picture = np.asarray(Image.open(io.BytesIO(data.tobytes())))
      assert picture.shape == (9, 16, 3)
      assert abs(int(picture.mean()) - 40 * i) < 4


@pytest.mark.parametrize('name', ['state.pt', 'legacy.pt'])
@pytest.mark.parametrize('from_bytes', [False, True])
def test_training_state(name, from_bytes):
  file = golden(name)
  if from_bytes:
    with open(file, 'rb') as stream:
      file = stream.read()
  state = torch_file.load(file)
  assert isinstance(state['model'], collections.OrderedDict)
  assert list(state['model']) == ['weight', 'bias']
  check(state['model']['weight'], [[0, 1, 2], [3, 4, 5]], np.float32)
  check(state['model']['bias'], [-1, 0.5], np.float32)
  (group,) = state['optimizer']['param_groups']
  assert group['betas'] == (0.9, 0.999)
  assert group['params'] == [0, 1]
  moments = state['optimizer']['state']
  check(moments[0]['step'], 1, np.float32)
  np.testing.assert_allclose(moments[0]['exp_avg'], np.full((2, 3), 0.1))
  np.testing.assert_allclose(moments[1]['exp_avg_sq'], [1e-3, 1e-3])
  plain = [state[key] for key in ('step', 'lr', 'name', 'flag', 'none')]
  assert plain == [7, 1e-3, 'tiny', True, None]
  base = np.arange(24).reshape(4, 6)
  check(state['parameter'], [1, 2], np.float32)
  check(state['base'], base, np.float32)
  check(state['transposed'], base.T, np.float32)
  check(state['slice'], base[1:3, ::2], np.float32)
  check(state['expanded'], [[3, 4]] * 3, np.int64)
  assert np.shares_memory(state['base'], state['slice'])
  check(state['scalar'], 2.5, np.float64)
  assert state['scalar'].shape == ()
  assert state['empty'].shape == (0, 4)
  check(state['bfloat16'], [1, -2.5, 3.140625], ml_dtypes.bfloat16)
  check(state['half'], [0.5, 65504], np.float16)
  check(state['bool'], [True, False], np.bool_)
  check(state['int8'], [-3, 4], np.int8)
  check(state['int16'], [-300], np.int16)
  check(state['int32'], [70000], np.int32)
  check(state['complex'], [1 + 2j], np.complex64)
  assert state['size'] == (2, 3)
  assert (state['dtype'], state['device']) == ('float32', 'cpu')
  if name == 'state.pt':
    check(state['uint16'], [1, 60000], np.uint16)
    check(state['float8'], [1, -0.5], ml_dtypes.float8_e4m3fn)


def rewrite(name, change):
  """Returns a zip file whose members went through `change(name, data)`."""
  out = io.BytesIO()
  with zipfile.ZipFile(golden(name)) as old, zipfile.ZipFile(out, 'w') as new:
    for member in old.namelist():
      data = change(member.partition('/')[2], old.read(member))
      if data is not None:
        new.writestr(member, data)
  return out.getvalue()


def test_big_endian():
  def change(name, data):
    if name == 'byteorder':
      return b'big'
    if name.startswith('data/') and len(data) % 8 == 0:
      return np.frombuffer(data, 'u8').byteswap().tobytes()
    return data

  first, _ = torch_file.load(rewrite('chunk.torch', change))
  assert first['timestamps'].tolist() == [52553000, 52586367, 52619734]


def replace_pickle(data):
  change = {'data.pkl': data}
  return rewrite('state.pt', lambda name, old: change.get(name, old))


@pytest.mark.parametrize('module', [b'numpy._core', b'numpy.core'])
def test_numbers_of_numpy(module):
  numbers = [
    np.float64(27.25),
    np.float32(-0.1),
    np.array(3.5, '>f4')[()],
    np.int64(-7),
    np.uint8(200),
    np.bool_(True),
    np.complex64(1 - 2j),
  ]
  data = pickle.dumps(numbers, 2)
  assert b'cnumpy._core.multiarray\nscalar' in data
  data = data.replace(b'cnumpy._core', b'c' + module)
  got = torch_file.load(replace_pickle(data))
  assert got == numbers
  assert [type(x) for x in got] == [type(x) for x in numbers]


def test_numbers_of_another_byte_order():
  big = pickle.dumps(np.arange(3.0, dtype='>f4')[1:2].dtype, 2)
  # A scalar of this type, as a machine of that byte order writes it.
  head = b'\x80\x02cnumpy._core.multiarray\nscalar\n'
  body = big[2:-1] + b'c_codecs\nencode\nX\x05\0\0\0?\xc2\x80\0\0'
  data = head + body + b'X\x06\0\0\0latin1\x86R\x86R.'
  assert torch_file.load(replace_pickle(data)) == np.float32(1)


@pytest.mark.parametrize(
  ('module', 'name', 'arguments', 'said'),
  [
    ('numpy', 'dtype', ('O', False, True), "a number of type 'O'"),
    ('numpy', 'dtype', ('V8', False, True), "a number of type 'V8'"),
    ('_codecs', 'encode', ('00', 'hex'), "bytes as 'hex'"),
  ],
)
def test_numbers_hold_no_objects(module, name, arguments, said):
  arguments = pickle.dumps(arguments, 2)[2:-1]
  data = b'\x80\x02' + f'c{module}\n{name}\n'.encode() + arguments + b'R.'
  with pytest.raises(UserError, match=said):
    torch_file.load(replace_pickle(data))


def test_nothing_is_run(tmp_path):
  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'made'),)

  evil = pickle.dumps({'weights': Evil()}, 2)
  for data in (
    rewrite('state.pt', lambda name, old: evil if name == 'data.pkl' else old),
    evil,
  ):
    (tmp_path / 'model.pt').write_bytes(data)
    with pytest.raises(UserError, match=r'posix\.mkdir') as error:
      torch_file.load(tmp_path / 'model.pt')
    assert str(tmp_path / 'model.pt') in str(error.value)
  assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
  ('module', 'name'),
  [
    ('builtins', 'eval'),
    ('torch', 'load'),
    ('torch.storage', '_load_from_bytes'),
    ('torch._utils', 'os'),
    ('numpy', 'load'),
    ('numpy', 'ndarray'),
    ('_codecs', 'decode'),
    ('collections', 'namedtuple'),
  ],
)
def test_other_names_are_refused(module, name):
  data = f'c{module}\n{name}\n.'.encode()
  with pytest.raises(UserError, match=f'object of {module}.{name},'):
    torch_file.load(replace_pickle(data))


@pytest.mark.parametrize('name', ['chunk.torch', 'state.pt', 'legacy.pt'])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.3, 0.7, 0.99])
def test_cut_short(tmp_path, name, share):
  with open(golden(name), 'rb') as stream:
    data = stream.read()
  path = tmp_path / name
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(UserError, match=f'{name} is not a valid file of torch'):
    torch_file.load(path)


@pytest.mark.parametrize('data', [None, b'\0\0'])
def test_lost_and_short_storages(data):
  change = {'data/1': data}
  file = rewrite('chunk.torch', lambda name, old: change.get(name, old))
  with pytest.raises(UserError, match='not a valid file of torch.save'):
    torch_file.load(file)


@pytest.mark.parametrize(
  ('offset', 'shape', 'strides'),
  [(3, (2,), (1,)), (0, (3, 2), (2, 1)), (-1, (2,), (1,)), (1, (2,), (-1,))],
)
def test_tensors_stay_inside_their_storage(offset, shape, strides):
  values = np.arange(4.0)
  with pytest.raises(ValueError, match='a tensor of shape'):
    torch_file._strided(values, offset, shape, strides)
  good = torch_file._strided(values, 1, (2, 2), (1, 1))
  assert good.tolist() == [[1, 2], [2, 3]]


def test_legacy_lengths_are_checked():
  with open(golden('legacy.pt'), 'rb') as stream:
    data = stream.read()
  # The last storage is that of `complex`: its length, and one number.
  last = struct.pack('<q', 1) + np.array([1 + 2j], np.complex64).tobytes()
  assert last in data
  bad = data.replace(last, struct.pack('<q', 2) + last[8:])
  with pytest.raises(UserError, match='has 2 values, not 1'):
    torch_file.load(bad)


def test_missing_file(tmp_path):
  with pytest.raises(UserError, match=r'nowhere\.pt cannot be read'):
    torch_file.load(tmp_path / 'nowhere.pt')
