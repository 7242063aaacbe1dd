"""Which views, which way, and the files of a flight."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests.golden_tolerance import assert_close
from tests.inference import test_posed
from tests.training import small
from xfactor.data import images
from xfactor.data.formats import video
from xfactor.data.records import eval_index
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras, motions
from xfactor.inference import camera_path, flight, scene_views

UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Skies with cameras and squares without, 24 x 32 and 32 x 32 pixels."""
  folder = tmp_path_factory.mktemp('data')
  small.make_posed_data(folder)
  small.make_data(folder)
  return str(folder)


@pytest.fixture(scope='module')
def light():
  return test_posed.make()


@pytest.fixture(scope='module')
def volume():
  return test_posed.make(**test_posed.VOLUME)


def read(data, name, config=None):
  store, clips = scene_views.find(name, data)
  config = config or small.posed_recipe('none')
  return [scene_views.read(store, clip, config, data) for clip in clips]


def test_names_of_scenes(data):
  store = store_lib.open_split(data, 'skies', 'test')
  ids = store.clip_ids()
  assert len(ids) == 4
  assert '2' not in ids
  for name, clips in (
    (ids[1], [1]),
    ('2', [2]),
    ('1:3', [1, 2]),
    ('2:', [2, 3]),
    (':', [0, 1, 2, 3]),
  ):
    assert scene_views.find(f'skies/test/{name}', data)[1] == clips


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('skies/test/4', 'clips 0 to 3 and no clip 4; choose'),
    ('skies/test/0:5', 'clips 0 to 3 and no clip 0:5'),
    ('skies/test/2:2', 'no clip 2:2'),
    ('skies/test/x04', "no clip 'x04'; similar IDs: .*004"),
    ('skies/dev/0', "no split 'dev'"),
    ('stars/test/0', 'not a clip of a data set in .*skies, squares'),
    ('skies/test', 'give NAME/SPLIT/ID'),
  ],
)
def test_scenes_that_are_not_there(data, name, said):
  with pytest.raises(UserError, match=said):
    scene_views.find(name, data)


def test_inputs_are_those_of_the_evaluation(data):
  config = small.posed_recipe('none')
  (views,) = read(data, 'skies/test/3', config)
  index = eval_index.eval_index(
    data, 'skies', 'test', 4, 4, ordered=False, cameras=True
  )
  frames = index.frames[index.clips.tolist().index(3)]
  assert views.numbers == frames[:2].tolist()
  store = store_lib.open_split(data, 'skies', 'test')
  clip = store.clip(3)
  assert views.name == f'skies/test/{clip.id}'
  for i, frame in enumerate(views.numbers):
    np.testing.assert_array_equal(
      views.images[i], images.decode(store.clip_frames(3, [frame])[0])
    )
    np.testing.assert_array_equal(
      views.world_to_camera[i], clip.world_to_camera[frame]
    )
    np.testing.assert_array_equal(views.intrinsics[i], clip.intrinsics[frame])
  # Clips of other splits begin with their first frames.
  assert read(data, 'skies/train/0', config)[0].numbers == [0, 1]
  assert len(read(data, 'skies/train/2:5', config)) == 3


def test_views_are_cropped_as_in_training(data):
  config = small.posed_recipe('none', data__image_width=16)
  (views,) = read(data, 'skies/train/0', config)
  (whole,) = read(data, 'skies/train/0')
  np.testing.assert_array_equal(views.images, whole.images[:, :, 8:24])
  np.testing.assert_allclose(
    views.intrinsics, whole.intrinsics * [2, 1, 1, 1], rtol=1e-6
  )


def test_scenes_without_cameras_or_frames(data):
  with pytest.raises(UserError, match='squares/test/000 has no cameras'):
    read(data, 'squares/test/0')
  config = small.posed_recipe('none', data__contexts=7)
  with pytest.raises(UserError, match='has 6 frames and the model takes 7'):
    read(data, 'skies/train/0', config)


def made(eyes, targets, up=UP):
  """Views of a clip whose first two cameras are the inputs."""
  eyes, targets = np.asarray(eyes, float), np.asarray(targets, float)
  poses = cameras.look_at(eyes, np.broadcast_to(targets, eyes.shape), up)
  lenses = np.tile([1.0, 4 / 3, 0.5, 0.5], (len(eyes), 1))
  pictures = test_posed.pictures()
  return scene_views.Views(
    *('made', [0, 1], pictures, lenses[:2], poses[:2], lenses, poses)
  )


OBJECT = [[3, 1, 2], [-2, 2, 1], [0, -3, 1.5]]


def path(views, motion='rotate', height=24, width=32, **options):
  return camera_path.path(views, motion, height, width, frames=8, **options)


@pytest.mark.parametrize('motion', motions.MOTIONS)
def test_flights_are_the_public_ones(golden, motion):
  """The first view need not look at the origin: only its place matters."""
  views = made(OBJECT, [[0.2, 0, 0.1]])
  arrays = golden('srt_render_motions')
  lenses, poses = path(views, motion, 4, 6, faded=True)
  origins, rays = cameras.pixel_rays(lenses, poses, 4, 6)
  name = f'motion/{motion}_fade'
  assert_close(origins[:, 0, 0], arrays[f'{name}_pos'])
  assert_close(rays, arrays[f'{name}_rays'])


def test_the_views_own_lens():
  views = made(OBJECT, [[0, 0, 0]])
  lenses, poses = path(views, keep_lens=True)
  np.testing.assert_allclose(lenses[0], views.intrinsics[0])
  np.testing.assert_allclose(poses[0], views.world_to_camera[0], atol=1e-12)
  lenses, _ = path(views, width=64, keep_lens=True)
  np.testing.assert_allclose(lenses[0], views.intrinsics[0] * [0.5, 1, 1, 1])


def test_rooms_turn_about_what_their_views_see():
  """The middle is where the axes meet; the first one goes through it."""
  target = np.array([4.0, 1, 1])
  views = made([[0, 0, 1], [0, 2, 1.2], [0.5, 4, 0.8]], [target])
  np.testing.assert_allclose(camera_path.middle(views, None), target, atol=1e-9)
  _, poses = path(views)
  np.testing.assert_allclose(poses[0], views.world_to_camera[0], atol=1e-9)
  centres = cameras.camera_centre(poses)
  np.testing.assert_allclose(
    np.linalg.norm(centres - target, axis=-1), np.sqrt(17), rtol=1e-9
  )
  np.testing.assert_allclose(centres[:, 2], 1, atol=1e-9)


def test_worlds_that_lie_on_their_side():
  """Cameras tell what is up where z does not, as COLMAP leaves it."""
  target, up = np.array([4.0, 1, 1]), np.array([0.0, -1, 0])
  eyes = np.array([[0, 1, 0], [0, 1.1, 2], [0.5, 0.9, 4]])
  views = made(eyes, [target], up)
  _, poses = path(views)
  np.testing.assert_allclose(poses[0], views.world_to_camera[0], atol=0.05)
  centres = cameras.camera_centre(poses)
  assert np.ptp(centres[:, 1]) < 0.3
  assert np.ptp(centres[:, 0]) > 7


def test_what_to_look_at():
  views = made([[0, 0, 1], [0, 2, 1.2]], [[4.0, 1, 1]])
  assert camera_path.middle(views, '1,2.5,-3').tolist() == [1, 2.5, -3]
  ahead = np.array([4, 1, 0]) / np.sqrt(17)
  np.testing.assert_allclose(
    camera_path.middle(views, '2'), [0, 0, 1] + 2 * ahead, atol=1e-12
  )
  _, poses = path(views, 'zoom', look_at='0,3,1')
  np.testing.assert_allclose(poses[-1, 2, :3], [0, 1, 0], atol=1e-12)
  for bad in ('1,2', 'x', '-1', '1,2,nan', ''):
    with pytest.raises(UserError, match=f'--look_at={bad} is neither a point'):
      camera_path.middle(views, bad)


@pytest.mark.parametrize(
  'views',
  [
    made([[0, 0, 1], [0, 2, 1]], [[1000, 0, 1], [1000, 2, 1]]),
    made([[0, 0, 1], [0, 2, 1]], [[9, -1, 1], [9, 4, 1]]),  # They part.
  ],
)
def test_views_without_a_common_middle(views):
  with pytest.raises(UserError, match='no common centre'):
    camera_path.middle(views, None)


def test_motions_that_cannot_be():
  views = made(OBJECT, [[0, 0, 0]])
  with pytest.raises(UserError, match='not a camera motion.*rotate, zoom'):
    path(views, 'walk.mp4')
  with pytest.raises(UserError, match='right above'):
    path(views, look_at='3,1,0')
  with pytest.raises(UserError, match='right above'):
    path(views, look_at='3,1,2')


def test_files_of_a_light_field(light, data, tmp_path, capsys):
  (views,) = read(data, 'skies/test/0')
  flown = flight.fly(light, views, 'rotate', frames=9, height=12, width=20)
  np.testing.assert_array_equal(
    flown.pictures,
    light.render(
      light.encode(views.images, views.intrinsics, views.world_to_camera),
      *motions.fly(
        'rotate',
        np.arange(9) / 9,
        cameras.camera_centre(views.world_to_camera[0]),
        motions.public_lens(12, 20),
      ),
      12,
      20,
    ).pictures,
  )
  out = epath.Path(tmp_path / 'new/turn.mp4')
  flight.write(flown, out, size=48)
  frames = [x.rgb for x in video.read_video(str(out))]
  assert len(frames) == 9
  for frame, picture in zip(frames, flown.pictures, strict=True):
    expected = picture.repeat(4, 0).repeat(4, 1).astype(int)
    assert np.abs(frame - expected).mean() < 8
  with Image.open(out.with_suffix('.gif')) as picture:
    assert (picture.size, picture.n_frames) == ((80, 48), 9)
  with Image.open(out.with_suffix('.png')) as picture:
    strip = np.asarray(picture)
  # Two inputs above seven of the pictures, each under a line of text.
  line, wide = 14, 80
  assert strip.shape == (2 * (line + 48) + 4, 7 * wide + 6 * 4, 3)
  np.testing.assert_array_equal(
    strip[line : line + 48 : 2, :64:2], views.images[0]
  )
  np.testing.assert_array_equal(strip[-48::4, :wide:4], flown.pictures[0])
  np.testing.assert_array_equal(strip[-48::4, -wide::4], flown.pictures[-1])
  assert (strip[:62, 140:] == 255).all()
  assert {x.name for x in out.parent.iterdir()} == {
    *('turn.mp4', 'turn.gif', 'turn.png'),
  }
  assert '9 pictures of skies/test/' in capsys.readouterr().out


def test_files_of_a_volume(volume, data, tmp_path, capsys):
  (views,) = read(data, 'skies/test/0')
  flown = flight.fly(volume, views, 'closeup', frames=3, height=12, width=20)
  out = epath.Path(tmp_path / 'near.mp4')
  flight.write(flown, out, fps=10, size=48)
  assert 'depth in near_depth' in capsys.readouterr().out
  scale = json.loads((tmp_path / 'near_depth/scale.json').read_text())
  assert scale['max_dist'] == 4
  for i, depth in enumerate(flown.depth):
    with Image.open(tmp_path / f'near_depth/{i:04d}.png') as picture:
      levels = np.asarray(picture)
    assert levels.dtype == np.uint16
    np.testing.assert_allclose(
      levels / 65535 * 4, np.minimum(depth, 4), atol=1e-4
    )
  assert np.ptp(flown.depth) > 0.01
  colours = flown.depth_video(48)
  assert colours.shape == (3, 48, 80, 3)
  frames = [x.rgb for x in video.read_video(str(tmp_path / 'near_depth.mp4'))]
  for frame, expected in zip(frames, colours, strict=True):
    assert np.abs(frame - expected.astype(int)).mean() < 8
  with Image.open(tmp_path / 'near.png') as picture:
    assert picture.size == (3 * 80 + 2 * 4, 3 * 62 + 2 * 4)


def test_near_is_bright():
  depth = np.linspace(1, 5, 6, dtype=np.float32).reshape(1, 2, 3)
  pictures = np.zeros((1, 2, 3, 3), np.uint8)
  flown = flight.Flight(made(OBJECT, [[0, 0, 0]]), pictures, depth, (2.0, 4.0))
  light = flown.depth_video(2)[0].astype(int).sum(-1).ravel()
  assert light[0] == light[1] > light[2] > light[3] > light[4] == light[5]


def test_places_that_cannot_be_written(light, tmp_path):
  flown = flight.fly(light, made(OBJECT, [[0, 0, 0]]), 'zoom', frames=2)
  assert flown.pictures.shape == (2, 24, 32, 3)  # As large as the views.
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='choose another place'):
    flight.write(flown, epath.Path(tmp_path / 'file/x.mp4'))
