"""Exports give what the run gives, by the examples of docs/export.md."""

import functools
import json
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests import commands, test_api
from tests.inference import test_calibration
from tests.training import small
from xfactor import api
from xfactor.errors import UserError
from xfactor.export import formats, networks, programs, pytorch
from xfactor.inference import calibration

PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs/export.md'
# What small models have that the published ones lack.
LEARNING = {
  key.removeprefix('model__'): value
  for key, value in small.LEARNING.items()
  if key.startswith('model__')
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a run, frames and the picture of a scene."""
  folder = tmp_path_factory.mktemp('place')
  test_api.save(folder / 'run', changes=LEARNING)
  np.save(folder / 'frames.npy', test_api.pictures(3))
  np.save(folder / 'scene.npy', test_api.pictures(1, seed=1))
  return folder


@pytest.fixture(scope='module')
def want(place):
  """Poses of the frames, and the scene seen from them."""
  model = api.load(place / 'run', devices=jax.devices()[:1])
  frames, scene = np.load(place / 'frames.npy'), np.load(place / 'scene.npy')
  poses = model.encode_poses(frames)
  bare = test_api.bare(model, **LEARNING)
  context = np.repeat(scene[None] / 127.5 - 1, len(frames), axis=0)
  both = np.stack([0 * poses, poses], axis=1)
  draw = jax.jit(lambda *args: bare.render(*args))
  return poses, np.asarray(draw(context.astype(np.float32), both))


def export(place, to):
  out = place / 'exported' / to
  if not out.exists():
    formats.write(place / 'run', out, to=to)
  return out


def example(place, monkeypatch, heading):
  """Runs the Python block below a heading; returns its names."""
  section = PAGE.read_text().split(f'\n## {heading}\n')[1].split('\n## ')[0]
  (code,) = re.findall(r'^```py\w*\n(.*?)^```', section, re.M | re.S)
  monkeypatch.chdir(place)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  names = {}
  exec(compile(code, heading, 'exec'), names)
  return names


@pytest.mark.slow
@pytest.mark.parametrize(
  ('to', 'heading', 'needs'),
  [
    ('stablehlo', 'StableHLO', 'jax'),
    ('onnx', 'ONNX', 'onnxruntime'),
    ('torch', 'PyTorch', 'torch'),
  ],
)
@pytest.mark.filterwarnings('ignore::ResourceWarning')  # Examples are short.
def test_the_example_gives_what_the_run_gives(
  place, want, monkeypatch, to, heading, needs
):
  pytest.importorskip(needs)
  export(place, to)
  names = example(place, monkeypatch, heading)
  assert np.abs(want[0]).max() > 0.1
  assert np.std(want[1], axis=0).max() > 0.01
  for got, right in zip((names['poses'], names['pictures']), want, strict=True):
    np.testing.assert_allclose(
      np.asarray(got), right, rtol=0, atol=1e-5 * np.abs(right).max()
    )


@pytest.mark.slow
def test_onnx_leaves_jax_as_it_was(tmp_path):
  pytest.importorskip('jax2onnx')
  before = dict(vars(jnp))
  network = networks.Network('sine', jnp.sin, {'x': (3,)}, ('y',))
  assert programs.write_onnx(network, epath.Path(tmp_path)).exists()
  after = vars(jnp)
  assert [x for x in before if after[x] is not before[x]] == []


def test_the_example_reads_the_parameters(place, monkeypatch):
  export(place, 'safetensors')
  names = example(place, monkeypatch, 'Safetensors')
  assert names['model']['features'] == 16
  assert len(names['arrays']) == 59


@pytest.mark.slow
def test_stablehlo_is_for_all_platforms(place):
  data = (export(place, 'stablehlo') / 'encoder.stablehlo').read_bytes()
  program = jax.export.deserialize(data)
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  text = str(program.mlir_module())
  products = re.findall(r'stablehlo.dot_general.*', text)
  assert products
  assert all('HIGHEST' in product for product in products)


@pytest.mark.slow
@pytest.mark.parametrize('to', ['onnx', 'stablehlo'])
def test_a_calibration_is_a_third_network(place, tmp_path, to):
  run = tmp_path / 'run'
  shutil.copytree(place / 'run', run)
  moved = test_calibration.motions()
  with pytest.MonkeyPatch.context() as patch:  # Short trainings.
    patch.setattr(calibration, '_STEPS', 150)
    calibration._train.clear_cache()
    made = test_calibration.fit(test_calibration.pairs_of(moved, bend=5.0))
  calibration._train.clear_cache()
  calibration.save(made, run)
  formats.write(run, tmp_path / 'out', to=to)
  cameras = calibration.relative_of(moved[:5])
  camera = np.float32(cameras)
  path = tmp_path / f'out/calibration.{to}'
  if to == 'onnx':
    runtime = pytest.importorskip('onnxruntime')
    pose, distance = runtime.InferenceSession(path).run(
      None, {'camera': camera}
    )
  else:
    pose, distance = jax.export.deserialize(path.read_bytes()).call(camera)
  wanted = made.poses(cameras)
  scale = np.abs(wanted.poses).max()
  np.testing.assert_allclose(pose, wanted.poses, atol=1e-5 * scale)
  np.testing.assert_allclose(distance, wanted.distance, rtol=1e-4)
  facts = json.loads((tmp_path / 'out/model.json').read_text())
  assert facts['calibration'] == made.facts()


@pytest.mark.slow
def test_a_model_of_several_views(tmp_path):
  test_api.save(tmp_path / 'run', contexts=3, steps=(1,))
  out = tmp_path / 'out'
  formats.write(tmp_path / 'run', out, to='stablehlo')
  facts = json.loads((out / 'model.json').read_text())
  assert (facts['contexts'], facts['step'], facts['window']) == (3, 1, 6)
  data = (out / 'renderer.stablehlo').read_bytes()
  shapes = [x.shape[1:] for x in jax.export.deserialize(data).in_avals]
  assert shapes == [(3, 32, 32, 3), (3, 4), (4,)]


@functools.cache
def other(folder, method):
  recipe = {
    'rust': functools.partial(small.baseline_recipe, 'rust'),
    'srt': small.posed_recipe,
  }[method]
  test_api.save(folder / method, steps=(1,), recipe=recipe)
  return folder / method


@pytest.mark.slow
@pytest.mark.parametrize(
  ('method', 'to', 'said'),
  [
    ('rust', 'onnx', 'give the --workdir of an XFactor run$'),
    ('rust', 'safetensors', 'give a run of XFactor or SRT$'),
    ('srt', 'onnx', 'an XFactor run, or --to=safetensors$'),
  ],
)
def test_other_methods_are_refused(place, tmp_path, method, to, said):
  workdir = other(place, method)
  with pytest.raises(UserError, match=f"method='{method}'.*{said}") as caught:
    formats.write(workdir, tmp_path / 'out', to=to)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_explicit_poses_are_refused_for_torch(tmp_path):
  changes = {'pose': 'se3', 'pose_dim': 10}
  test_api.save(tmp_path / 'run', steps=(1,), changes=changes)
  with pytest.raises(UserError, match='se3.* --to=stablehlo or --to=onnx'):
    formats.write(tmp_path / 'run', tmp_path / 'out', to='torch')


def test_what_inference_does_not_use_is_no_part_of_the_state_dict():
  params = {f'{x}/head/kernel': np.ones((2, 3)) for x in ('nuisance', 'a')}
  state = pytorch.state_dict(params)
  assert {name: x.shape for name, x in state.items()} == {
    'a.head.weight': (3, 2)
  }


def test_without_jax2onnx_the_command_is_named(place, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[export\]'"):
    formats.write(place / 'run', tmp_path / 'out', to='onnx')


@pytest.mark.slow
def test_the_command(place, tmp_path):
  flags = f'--workdir={place}/run', f'--out={tmp_path}/out'
  done = commands.run('tools/export.py', *flags, '--to=safetensors')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'{tmp_path}/out/model.safetensors  0.1 MB')
  done = commands.run('tools/export.py', *flags, '--to=torch')
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert 'already exists: give another --out, or --overwrite' in line
  done = commands.run('tools/export.py', *flags, '--to=torch', '--overwrite')
  assert done.returncode == 0, done.stderr


def test_all_formats_have_a_section():
  text = PAGE.read_text()
  assert all(f'--to={name} ' in text for name in formats.FORMATS)
