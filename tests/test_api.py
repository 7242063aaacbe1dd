"""Loading, poses, drawing and transfer, against the bare networks."""

import doctest
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import xfactor
from tests.training import small
from xfactor import api
from xfactor.data import files
from xfactor.data.images import centre_crop_resize
from xfactor.errors import UserError
from xfactor.inference import latent, movie
from xfactor.methods.xfactor import network as networks
from xfactor.nn.layers import to_float, to_uint8
from xfactor.training import build
from xfactor.training.resilience import checkpoints as checkpoints_lib

SIZE = 32


def save(
  workdir,
  *,
  contexts=1,
  steps=(1, 2),
  forget=(),
  extra=None,
  changes=None,
  recipe=None,
):
  """Writes checkpoints of an untrained model whose layers all matter."""
  config = (recipe or small.recipe)(
    'none',
    **({} if recipe else {'data__contexts': contexts}),
    **{f'model__{key}': value for key, value in (changes or {}).items()},
  )
  built = build.build(config)
  state = built.init()
  checkpoints = checkpoints_lib.Checkpoints(workdir)
  meta = json.loads(config.to_json_best_effort())
  for section, key in forget:
    del meta[section][key]
  for section, values in (extra or {}).items():
    meta[section] |= values
  for step in steps:
    rng = np.random.default_rng(step)
    params = {
      name: x + 0.2 * rng.standard_normal(x.shape, np.float32)
      for name, x in state.params.items()
    }
    params = jax.device_put(params, built.places.params)
    checkpoints.save(
      type(state)(np.int32(step), params, state.opt_state),
      {'config': meta, 'data': {}},
    )
  checkpoints.wait()
  checkpoints.close()
  return workdir


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return save(tmp_path_factory.mktemp('stereo'))


@pytest.fixture(scope='module')
def stereo(run):
  return xfactor.load(run)


@pytest.fixture(scope='module')
def multi(tmp_path_factory):
  workdir = save(tmp_path_factory.mktemp('multi'), contexts=3, steps=(5,))
  return xfactor.load(workdir)


def pictures(count, seed=0, size=SIZE):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def bare(model, **changes):
  """The networks themselves, on one device, and their parameters."""
  changes = {f'model__{key}': value for key, value in changes.items()}
  config = small.recipe('none', **changes)
  built = build.build(config, jax.devices()[:1])
  params = jax.device_get(model._params)
  return built.functional.bind(jax.device_put(params, jax.devices()[0]))


@pytest.fixture
def warned(monkeypatch):
  found = []
  monkeypatch.setattr(
    latent.logging, 'warning', lambda text, *args: found.append(text % args)
  )
  return found


def test_the_example_in_the_docstring_runs(run, tmp_path, monkeypatch):
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs/vizdoom').symlink_to(run)
  walk = movie.mp4(pictures(5, size=48), 10)
  (tmp_path / 'walk.mp4').write_bytes(walk)
  Image.fromarray(pictures(1, size=40)[0]).save(tmp_path / 'kitchen.jpg')
  monkeypatch.chdir(tmp_path)
  example = doctest.DocTestFinder().find(api, 'api', globs={})[0]
  assert len(example.examples) > 6
  done = doctest.DocTestRunner().run(example)
  assert done.failed == 0


def test_importing_the_package_leaves_jax_out():
  code = 'import sys, xfactor\nassert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
  with pytest.raises(AttributeError, match='no attribute'):
    xfactor.laod  # noqa: B018


def test_newest_step_and_folder(run, stereo):
  frames = pictures(3)
  poses = stereo.encode_poses(frames)
  assert stereo.step == 2
  assert (stereo.image_size, stereo.contexts, stereo.window) == (SIZE, 1, 6)
  first = xfactor.load(run / 'checkpoints/1')
  assert first.step == 1
  assert not np.allclose(first.encode_poses(frames), poses)
  for same in (xfactor.load(str(run), 1), xfactor.load(run, step=1)):
    np.testing.assert_array_equal(
      same.encode_poses(frames), first.encode_poses(frames)
    )


@pytest.mark.parametrize(
  ('path', 'step', 'said'),
  [
    ('none', None, 'none is neither a run'),
    ('checkpoints/7', None, 'no checkpoint of step 7 .* holds 1, 2'),
    ('', 7, 'no checkpoint of step 7'),
    ('checkpoints/1', 2, 'is not the checkpoint of step 2'),
    ('checkpoints/1/state', None, 'is neither a run'),
  ],
)
def test_what_is_no_checkpoint_is_said(run, path, step, said):
  with pytest.raises(UserError, match=said):
    xfactor.load(run / path, step)


def test_a_run_without_checkpoints(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='no checkpoint in .*it holds none'):
    xfactor.load(tmp_path)


@pytest.mark.slow
def test_recipes_of_other_versions(tmp_path, warned):
  save(
    tmp_path,
    steps=(1,),
    forget=[('data', 'gap_sigma'), ('model', 'remat'), ('train', 'keep')],
    extra={'optimizer': {'warp': 1}, 'data': {'moon': {'phase': 2}}},
  )
  model = xfactor.load(tmp_path)
  assert model.config.train.keep == 3
  assert model.config.model.remat == 'full'
  (told,) = (text for text in warned if 'does not know' in text)
  assert set(told.split(': ')[1].split(', ')) == {'data.moon', 'optimizer.warp'}


def metadata(run):
  return run / 'checkpoints/2/meta/metadata'


def rewrite(run, change):
  """Changes the metadata of a checkpoint, as if they had been saved so."""
  meta = json.loads(metadata(run).read_text())
  del meta['sha256']
  change(meta)
  meta['sha256'] = files.digest(meta)
  metadata(run).write_text(json.dumps(meta))


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda meta: meta['config']['model'].update(pose_dim=8), 'another model'),
    (lambda meta: meta['config']['model'].update(features='x'), 'no recipe'),
    (lambda meta: meta.pop('config'), 'no recipe'),
    (lambda meta: meta.update(config=3), 'no recipe'),
    (None, 'no recipe'),
  ],
)
def test_a_checkpoint_that_is_not_ours(run, tmp_path, change, said):
  shutil.copytree(run, tmp_path / 'run')
  if change:
    rewrite(tmp_path / 'run', change)
  else:
    metadata(tmp_path / 'run').write_text('{"config": ')
  with pytest.raises(UserError, match=said):
    xfactor.load(tmp_path / 'run')


@pytest.mark.parametrize('reference', [0, 2])
def test_poses_are_those_of_pairs(stereo, reference):
  frames = pictures(11)
  poses = stereo.encode_poses(frames, reference)
  model = bare(stereo)
  pairs = np.stack([frames[[reference] * 11], frames], axis=1)
  expected = np.array(model.encode(to_float(jnp.asarray(pairs))))[:, 1]
  np.testing.assert_allclose(poses, expected, atol=1e-5)
  assert poses.dtype == np.float32
  assert (poses[reference] == 0).all()
  assert np.abs(np.delete(poses, reference, 0)).max(1).min() > 1e-3


def test_pictures_are_those_of_the_renderer(stereo):
  frames = pictures(9)
  poses = stereo.encode_poses(frames)
  drawn = stereo.render(frames[:1], poses[:1], poses)
  context = jnp.repeat(frames[:1, None], 9, axis=0)
  both = jnp.stack([poses[[0] * 9], poses], axis=1)
  expected = to_uint8(bare(stereo).render(to_float(context), both))
  np.testing.assert_allclose(drawn, expected, atol=1)
  assert len(np.unique(drawn.reshape(9, -1), axis=0)) == 9


def test_each_program_is_compiled_once(run, monkeypatch):
  traces = []
  for name in ('encode', 'render'):
    real = getattr(networks.XFactor, name)

    def counted(*args, name=name, real=real):
      traces.append(name)
      return real(*args)

    monkeypatch.setattr(networks.XFactor, name, counted)
  model = xfactor.load(run)
  for count in (1, 3, 8, 9, 20):
    poses = model.encode_poses(pictures(count))
    assert poses.shape == (count, 4)
    assert model.render(pictures(1), poses[:1], poses).shape[0] == count
  assert sorted(traces) == ['encode', 'render']


@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh', [{'data': 2, 'fsdp': 2, 'tensor': 2}, {'data': 3, 'fsdp': 5}]
)
def test_meshes_do_not_matter(run, tmp_path, mesh, stereo):
  shutil.copytree(run, tmp_path / 'run')
  rewrite(tmp_path / 'run', lambda meta: meta['config']['mesh'].update(mesh))
  model = xfactor.load(tmp_path / 'run', batch=3)
  alone = xfactor.load(run, batch=3, devices=jax.devices()[:1])
  if mesh['fsdp'] == 2:
    assert dict(model._mesh.shape) == mesh
    assert any(not x.is_fully_replicated for x in model._params.values())
  motion, scene = pictures(5), pictures(1, 1)
  expected = alone.transfer(motion, scene)
  np.testing.assert_allclose(model.transfer(motion, scene), expected, atol=1)
  np.testing.assert_allclose(stereo.transfer(motion, scene), expected, atol=1)


def test_pictures_of_any_size(stereo, warned):
  large = pictures(3, size=48)
  wide = [np.pad(x, ((0, 0), (10, 10), (0, 0))) for x in large]
  fitted = stereo.fit(large)
  np.testing.assert_array_equal(fitted[1], centre_crop_resize(large[1], SIZE))
  np.testing.assert_array_equal(stereo.fit([wide[0], *large[1:]]), fitted)
  np.testing.assert_array_equal(stereo.fit(fitted), fitted)
  np.testing.assert_array_equal(
    stereo.encode_poses(wide), stereo.encode_poses(fitted)
  )
  stereo.fit(wide)
  said = [text for text in warned if '68 x 48' in text]
  assert said.count(
    'a picture of 68 x 48 pixels is cropped to its central square and resized '
    'to 32 x 32'
  )
  assert len(said) == 2  # Once a kind of picture: those and "a frame".


@pytest.mark.parametrize(
  ('shape', 'dtype', 'said'),
  [
    ((7, 64, 3), 'uint8', '64 x 7 pixels is too small'),
    ((300, 70, 3), 'uint8', '70 x 300 pixels is too long'),
    ((32, 32), 'uint8', 'give uint8 RGB'),
    ((32, 32, 4), 'uint8', 'give uint8 RGB'),
    ((32, 32, 3), 'float32', 'is float32'),
  ],
)
def test_pictures_that_make_no_sense(stereo, shape, dtype, said):
  with pytest.raises(UserError, match=said):
    stereo.fit([np.zeros(shape, dtype)])


def test_wrong_counts_and_shapes_are_said(stereo, multi):
  poses = np.zeros((2, 4), np.float32)
  with pytest.raises(UserError, match='2 views and .* stereo'):
    stereo.render(pictures(2), poses, poses)
  with pytest.raises(UserError, match='2 views and .* stereo'):
    stereo.transfer(pictures(3), pictures(2))
  with pytest.raises(UserError, match='at most 3'):
    multi.transfer(pictures(3), pictures(4))
  with pytest.raises(UserError, match='context_poses of shape'):
    multi.render(pictures(1), poses, poses)
  with pytest.raises(UserError, match=r'context_poses of shape \(1, 3\)'):
    stereo.render(pictures(1), poses[:1, :3], poses[:, :3])
  with pytest.raises(UserError, match='one frame'):
    stereo.transfer(pictures(1), pictures(1))
  with pytest.raises(UserError, match='at least one'):
    stereo.encode_poses([])
  for options, said in (
    ({'reference': 3}, 'reference=3 must be from 0 to 2'),
    ({'reference': -1}, 'reference=-1'),
    ({'scene_reference': 1}, 'scene_reference=1'),
    ({'chain': 0}, 'chain=0'),
    ({'interpolate': 0}, 'interpolate=0'),
  ):
    with pytest.raises(UserError, match=said):
      stereo.transfer(pictures(3), pictures(1), **options)


def test_the_scene_stands_where_the_motion_began(stereo):
  motion, scene = pictures(5), pictures(1, 1)
  poses = stereo.encode_poses(motion, 3)
  np.testing.assert_array_equal(
    stereo.transfer(motion, scene, reference=3),
    stereo.render(scene, np.zeros((1, 4), np.float32), poses),
  )


@pytest.mark.parametrize('views', [1, 2, 3])
def test_several_views(multi, views):
  motion, scene = pictures(4), pictures(views, 1)
  poses = multi.encode_poses(motion)
  for given, reference in ((None, (views - 1) // 2), (views - 1, views - 1)):
    contexts = multi.encode_poses(scene, reference)
    drawn = multi.transfer(motion, scene, scene_reference=given)
    expected = multi.render(scene, contexts, poses)
    np.testing.assert_array_equal(drawn, expected)
  assert len(drawn) == 4


def test_views_beyond_the_first_matter(multi):
  scene = pictures(3, 1)
  drawn = multi.transfer(pictures(4), scene, scene_reference=0)
  alone = multi.transfer(pictures(4), scene[:1])
  assert np.abs(drawn.astype(int) - alone).max() > 2


def test_a_chain_goes_on_from_what_was_drawn(stereo, warned):
  motion, scene = pictures(8), pictures(1, 1)
  zero = np.zeros((1, 4), np.float32)
  drawn = stereo.transfer(motion, scene, reference=3, chain=2)
  middle = stereo.render(scene, zero, stereo.encode_poses(motion[1:6], 2))
  right = stereo.render(
    middle[-1:], zero, stereo.encode_poses(motion[5:8], 0)[1:]
  )
  left = stereo.render(middle[:1], zero, stereo.encode_poses(motion[:2], 1)[:1])
  np.testing.assert_array_equal(drawn, np.concatenate([left, middle, right]))
  assert 'changes at frames 1, 5 of the 8' in warned[0]
  assert not any('trained with' in text for text in warned)


def test_segments_cover_a_motion():
  for count in range(2, 12):
    for reference in range(count):
      for chain in (None, *range(1, count + 2)):
        first, *others = latent.segments(count, reference, chain)
        assert first[0] == reference
        seen = set(range(count)[first[1]])
        for start, frames in others:
          frames = list(range(count)[frames])
          assert start in seen
          assert len(frames) > 1
          assert max(abs(start - i) for i in frames) <= chain
          assert seen & set(frames) == {start}
          seen |= set(frames)
        assert seen == set(range(count))
        assert chain is not None or not others


def test_far_motions_are_warned_of(run, warned):
  motion, scene = pictures(9), pictures(1, 1)
  model = xfactor.load(run)  # Windows of six frames.
  for options, said in (
    ({'reference': 4}, None),
    ({'chain': 5}, None),
    ({}, 'goes 8 frames .* at most 5; .* chain=5'),
    ({'reference': 4, 'stride': 2}, 'goes 8 frames .* chain=2'),
    ({'chain': 3, 'stride': 6}, 'goes 18 frames .* smaller stride'),
  ):
    warned.clear()
    model.transfer(motion, scene, **options)
    far = [text for text in warned if 'frames from its reference' in text]
    if said is None:
      assert not far
    else:
      assert len(far) == 1
      assert re.search(said, far[0])


def test_interpolation_meets_the_frames(stereo):
  motion, scene = pictures(5), pictures(1, 1)
  for options in ({}, {'reference': 2, 'chain': 1}):
    frames = stereo.transfer(motion, scene, **options)
    smooth = stereo.transfer(motion, scene, interpolate=3, **options)
    assert len(smooth) == 13
    np.testing.assert_array_equal(smooth[::3], frames)
    assert len(np.unique(smooth.reshape(13, -1), axis=0)) == 13


def test_the_curve_through_poses():
  line = np.outer(np.arange(4), [1.0, -2.0, 0.5]).astype(np.float32)
  np.testing.assert_allclose(
    latent._interpolate(line, 4),
    np.outer(np.arange(13) / 4, [1.0, -2.0, 0.5]),
    atol=1e-6,
  )
  # Catmull-Rom reproduces parabolas between inner points.
  t = np.arange(6, dtype=np.float32)
  curve = latent._interpolate((t**2)[:, None], 2)[:, 0]
  np.testing.assert_allclose(curve[2:9], (np.arange(2, 9) / 2) ** 2, atol=1e-5)
  np.testing.assert_array_equal(latent._interpolate(line, 1), line)
