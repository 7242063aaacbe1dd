"""The conversion command: bad input is one line and exit code 2."""

import os

import av
import numpy as np
import pytest
from PIL import Image

from tests import commands
from tests.data.convert import test_run
from xfactor.data import files
from xfactor.data.records import folders
from xfactor.data.records import store as store_lib


def run(*args):
  return commands.run('tools/convert_datasets.py', *args)


def pictures(folder, count, suffix='jpg', channels=3):
  """Writes a slow pan over noise."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (6, 10, channels), dtype=np.uint8)
  texture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
  for i in range(count):
    picture = Image.fromarray(texture[:, i : i + 48])
    picture.save(folder / f'{i}.{suffix}')


def three_frames(path):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=25)
    stream.width = stream.height = 48
    stream.pix_fmt = 'yuv420p'
    for level in (50, 60, 70):
      rgb = np.full((48, 48, 3), level, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, 'rgb24')))
    container.mux(stream.encode())


@pytest.mark.parametrize(
  ('case', 'dataset', 'options', 'named'),
  [
    ('empty', 'video', (), '/in holds no videos'),
    ('missing', 'video', (), 'there is no folder'),
    ('no video', 'video', (), 'notes.mp4 is no video'),
    ('short', 'video', (), 'walk.mp4 gives no clip of min_length=10'),
    ('short frames', 'video', (), 'walk gives no clip of min_length=10'),
    ('empty', 'video', ('--sise=3',), 'no option --sise'),
    ('empty', 'nothing', (), '--dataset'),
  ],
)
def test_bad_input_is_one_line(tmp_path, case, dataset, options, named):
  folder = tmp_path / 'in'
  if case != 'missing':
    folder.mkdir()
  if case == 'no video':
    (folder / 'notes.mp4').write_text('Buy milk.\n' * 100)
  elif case == 'short':
    three_frames(folder / 'walk.mp4')
  elif case == 'short frames':
    pictures(folder / 'walk', 3)
  done = run(
    f'--dataset={dataset}',
    f'--source={folder}',
    f'--data_dir={tmp_path}/data',
    '--workers=0',
    *options,
  )
  assert done.returncode == 2, done.stderr
  errors = [
    line for line in done.stderr.splitlines() if line.startswith('error: ')
  ]
  assert len(errors) == 1, done.stderr
  assert named in errors[0]
  assert 'Traceback' not in done.stderr
  assert not done.stdout
  # Nothing half made is left where readers look.
  assert not folders.available(tmp_path / 'data')


def test_good_conversion_reports_what_was_bad(tmp_path):
  folder = tmp_path / 'in'
  pictures(folder / 'walk', 12)
  broken = folder / 'walk' / '4.jpg'
  broken.write_bytes(broken.read_bytes()[:200])
  pictures(folder / 'clear', 10, 'png', channels=4)
  (folder / 'notes.mp4').write_text('Buy milk.\n' * 100)
  command = (
    '--dataset=video',
    '--name=mine',
    f'--source={folder}',
    f'--data_dir={tmp_path}/data',
    '--size=32',
    '--workers=0',
    '--cut_threshold=2',
  )
  done = run(*command)
  assert done.returncode == 0, done.stderr
  assert run(*command, '--strict').returncode == 1
  head, *rows = [line.split() for line in done.stdout.splitlines()[:3]]
  table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
  assert set(table) == {'train', 'test'}
  for key, total in (('clips', 2), ('frames', 22), ('replaced', 1)):
    assert sum(int(row[key]) for row in table.values()) == total
  assert 'skipped items: 1' in done.stdout
  assert 'notes.mp4 is no video that can be read' in done.stdout
  assert '4.jpg' in done.stderr
  manifest = files.read_json(tmp_path / 'data/mine/frames/1.0.0/manifest.json')
  ((item, reason),) = manifest['skipped']
  assert item == 'notes'
  assert 'notes.mp4 is no video that can be read' in reason
  clips = [
    store.clip(i)
    for split in ('train', 'test')
    for store in [store_lib.open_split(tmp_path / 'data', 'mine', split)]
    for i in range(len(store))
  ]
  assert {clip.id: clip.replaced for clip in clips} == {
    'clear/000': 0,
    'walk/000': 1,
  }
  again = run(*command)
  assert again.returncode == 0, again.stderr
  assert 'already converted' in again.stdout
  assert 'skipped items: 1' in again.stdout


@pytest.fixture
def data(tmp_path, monkeypatch):
  """A folder with one converted data set."""
  monkeypatch.setattr(os, 'fsync', lambda _: None)
  test_run.run(test_run.Fake(count=2, cameras=False), tmp_path / 'data')
  return tmp_path / 'data'


def test_verify_tells_good_from_bad(data):
  done = run(f'--verify={data}', '--workers=0')
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == 'no problems found'
  (file,) = (data / 'fake/frames/1.0.0').glob('*train*00000-of-*')
  file.write_bytes(file.read_bytes()[:-1])
  done = run(f'--verify={data}', '--workers=2')
  assert done.returncode == 1, done.stderr
  assert f'  {file}: ' in done.stdout
  assert done.stdout.splitlines()[-1] == 'problems: 1'


def test_preview_says_where_the_picture_is(data, tmp_path):
  done = run(f'--preview={data}', '--preview_clips=1', f'--out={tmp_path}')
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{tmp_path}/fake-preview.png\n'
  with Image.open(done.stdout.strip()) as image:
    assert image.width > image.height


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    (('--verify=IN',), 'IN holds no converted data set'),
    (('--verify=IN/gone',), 'there is no folder IN/gone'),
    (('--verify=IN', '--sise=3'), '--sise=3'),
    (('--preview=IN',), 'IN holds no converted data set'),
    (('--preview=IN', '--split=train,test'), 'one split'),
    ((), 'give --dataset=NAME'),
  ],
)
def test_nothing_to_look_at_is_one_line(tmp_path, flags, named):
  done = run(*(flag.replace('IN', str(tmp_path)) for flag in flags))
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ')
  assert done.stderr.count('\n') == 1
  assert named.replace('IN', str(tmp_path)) in done.stderr
