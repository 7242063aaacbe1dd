"""Frame choice: the official draws, and properties no draw may break."""

import pathlib

import numpy as np
import pytest

from xfactor.data import views
from xfactor.errors import UserError

GOLDEN = np.load(
  pathlib.Path(__file__).parents[1] / 'golden' / 'xf_samplers.npz'
)

# The arguments of each golden case, as its maker recorded them.
CASES = {
    '2v_re10k': {'num_frames': 120, 'num_views': 2, 'max_window': 100},
    '2v_short': {'num_frames': 10, 'num_views': 2, 'max_window': 20},
    'mv_up': {
        'num_frames': 150, 'num_views': 6, 'max_window': 100, 'bump': True,
    },
    'mv_up_min': {
        'num_frames': 30, 'num_views': 6, 'max_window': 6, 'bump': True,
    },
    'mv_incl': {
        'num_frames': 40, 'num_views': 6, 'max_window': 20, 'inclusive': True,
    },
    'mv_minwin': {
        'num_frames': 40, 'num_views': 6, 'max_window': 20, 'min_window': 15,
    },
    'mv_gap': {
        'num_frames': 150, 'num_views': 6, 'max_window': 60, 'bump': True,
        'gap_sigma': 0.25,
    },
    'mv_gap_small': {
        'num_frames': 20, 'num_views': 6, 'max_window': 7, 'gap_sigma': 0.25,
    },
    'mv_gap3': {
        'num_frames': 20, 'num_views': 3, 'max_window': 7, 'gap_sigma': 0.25,
    },
    'mv_gap2': {
        'num_frames': 20, 'num_views': 2, 'max_window': 7, 'gap_sigma': 0.25,
    },
    'mv_equal': {
        'num_frames': 90, 'num_views': 6, 'max_window': 60, 'equal': True,
    },
}  # fmt: skip
RECIPES = {
  '2v': views.Views(2, (40, 100)),
  'mv': views.Views(6, (40, 200), bump=True),
  'mv_delay': views.Views(6, (9, 40), bump=True, delay=1000),
}
STEPS = (1, 999, 1000, 12500, 25001, 50000, 80000)


@pytest.mark.parametrize('case', CASES)
def test_consecutive_draws_match_the_official_loader(case):
  rng = np.random.default_rng(1234)
  drawn = [views.choose_frames(rng, **CASES[case]) for _ in range(64)]
  np.testing.assert_array_equal(drawn, GOLDEN[f'pcg/{case}'])


@pytest.mark.parametrize('case', CASES)
def test_draws_by_element_index_match_the_official_loader(case):
  drawn = [
    views.choose_frames(views.frame_rng(0, i), **CASES[case]) for i in range(64)
  ]
  np.testing.assert_array_equal(drawn, GOLDEN[f'philox/{case}'])


def test_element_generators_match_the_official_loader():
  drawn = views.frame_rng(7, 6).integers(0, 1000, 8)
  np.testing.assert_array_equal(drawn, GOLDEN['rngpool/seed7_idx6_integers8'])


@pytest.mark.parametrize('step', STEPS)
@pytest.mark.parametrize('recipe', RECIPES)
def test_the_curriculum_matches_the_official_loader(recipe, step):
  drawn = [
    RECIPES[recipe](np.random.default_rng(100 + i), 300, step)
    for i in range(16)
  ]
  np.testing.assert_array_equal(drawn, GOLDEN[f'dynamic/{recipe}_step{step}'])


@pytest.mark.parametrize(
  ('num_frames', 'num_views', 'max_window', 'options'),
  [
    (6, 6, 6, {}),
    (7, 6, 200, {'bump': True}),
    (300, 2, 40, {}),
    (300, 6, 40, {'bump': True, 'gap_sigma': 0.25}),
    (50, 4, 20, {'min_window': 12, 'gap_sigma': 1.0}),
    (10, 3, 40, {'min_window': 30}),
    (50, 5, 9, {'equal': True}),
    (40, 6, 20, {'gap_sigma': 0.0}),
  ],
)
def test_every_draw_keeps_the_rules(num_frames, num_views, max_window, options):
  rng = np.random.default_rng(0)
  shortest = min(options.get('min_window', num_views), num_frames)
  for _ in range(200):
    frames = views.choose_frames(
      rng, num_frames, num_views, max_window, **options
    )
    assert frames.dtype == np.int64
    assert frames.shape == (num_views,)
    assert 0 <= frames.min() <= frames.max() < num_frames
    steps = np.diff(frames)
    assert (steps > 0).all() or (steps < 0).all()
    span = abs(frames[-1] - frames[0]) + 1
    assert shortest <= span <= min(max_window, num_frames)


def test_windows_reach_every_length_and_both_ends_of_the_clip():
  rng = np.random.default_rng(0)
  drawn = np.array(
    [views.choose_frames(rng, 12, 3, 8, flip_prob=0.0) for _ in range(2000)]
  )
  assert set(drawn[:, -1] - drawn[:, 0] + 1) == set(range(3, 9))
  assert drawn.min() == 0
  assert drawn.max() == 11


def test_central_reference_lies_in_the_central_part():
  rng = np.random.default_rng(0)
  for _ in range(300):
    first, reference, last = views.choose_frames(
      rng, 100, 3, 61, min_window=21, gap_sigma=0.25
    )
    centre, span = (first + last) / 2, abs(last - first)
    assert abs(reference - centre) <= 0.125 * span


@pytest.mark.parametrize(('prob', 'flipped'), [(0.0, 0), (1.0, 100)])
def test_flip_probability_reaches_its_limits(prob, flipped):
  rng = np.random.default_rng(0)
  drawn = np.array(
    [views.choose_frames(rng, 9, 2, 9, flip_prob=prob) for _ in range(100)]
  )
  assert (drawn[:, 0] > drawn[:, 1]).sum() == flipped


def test_only_inclusive_repeats_a_frame():
  rng = np.random.default_rng(0)
  drawn = [
    views.choose_frames(rng, 9, 6, 7, inclusive=True) for _ in range(100)
  ]
  repeats = (np.diff(drawn) == 0).sum(0)
  assert repeats[0] > 0
  assert repeats[-1] > 0
  assert repeats[1:-1].sum() == 0


def test_window_ramp():
  ramp = [views.window_at(s, 10, 20, 5, delay=2) for s in range(10)]
  assert ramp == [10, 10, 10, 12, 14, 16, 18, 20, 20, 20]
  assert views.window_at(0, 10, 20, 0) == 20
  assert [views.window_at(s, 20, 10, 4) for s in range(5)] == [
      20, 17, 15, 12, 10
  ]  # fmt: skip


def test_bump_prefers_long_windows_but_not_the_longest():
  weights = views.bump_weights(101)
  assert weights.sum() == pytest.approx(1.0)
  assert weights.argmax() == 70
  assert weights[70] / weights[0] == pytest.approx(5.0, rel=0.01)
  assert weights[100] < weights[85] < weights[70]


def test_frames_are_a_function_of_seed_and_index():
  draw = views.Views(6, (9, 40), bump=True)
  first = draw(views.frame_rng(3, 17), 90, 1000)
  np.testing.assert_array_equal(first, draw(views.frame_rng(3, 17), 90, 1000))
  others = [
    draw(views.frame_rng(seed, index), 90, 1000)
    for seed, index in [(3, 18), (4, 17)]
  ]
  assert not any((first == other).all() for other in others)


@pytest.mark.parametrize(
  ('num_frames', 'num_views', 'window', 'expected'),
  [
    (10, 2, 4, [3, 6]),
    (11, 3, 11, [0, 5, 10]),
    (11, 4, 99, [0, 3, 6, 10]),
    (6, 6, 6, [0, 1, 2, 3, 4, 5]),
  ],
)
def test_eval_frames(num_frames, num_views, window, expected):
  frames = views.eval_frames(num_frames, num_views, window)
  assert frames.dtype == np.int64
  assert frames.tolist() == expected


def test_short_clips_are_named_in_one_sentence():
  rng = np.random.default_rng(0)
  for call in (
    lambda: views.choose_frames(rng, 5, 6, 10),
    lambda: views.Views(6, (9, 40))(rng, 5, 0),
    lambda: views.eval_frames(5, 6, 10),
  ):
    with pytest.raises(UserError, match='clip has 5 frames .* takes 6'):
      call()


@pytest.mark.parametrize(
  'options',
  [
    {'max_window': 5},
    {'max_window': 20, 'min_window': 21},
    {'max_window': 20, 'min_window': 5},
    {'max_window': 20, 'equal': True, 'gap_sigma': 0.25},
    {'max_window': 20, 'equal': True, 'inclusive': True},
  ],
)
def test_contradictory_arguments_are_refused(options):
  with pytest.raises(ValueError):
    views.choose_frames(np.random.default_rng(0), 50, 6, **options)


@pytest.mark.parametrize(
  'options',
  [
    {'num_views': 1, 'window': (9, 40)},
    {'num_views': 6, 'window': (5, 40)},
    {'num_views': 6, 'window': (9, 40), 'min_window': 10},
    {'num_views': 6, 'window': (9, 40), 'ramp_steps': -1},
    {'num_views': 6, 'window': (9, 40), 'delay': -1},
    {'num_views': 6, 'window': (9, 40), 'flip_prob': 1.5},
    {'num_views': 6, 'window': (9, 40), 'gap_sigma': -0.1},
  ],
)
def test_impossible_recipes_are_refused(options):
  with pytest.raises(UserError):
    views.Views(**options)


# Unordered views.


def test_sets_are_distinct_frames_of_one_window_in_any_order():
  draw = views.SetViews(4, (7, 7))
  rng = np.random.default_rng(0)
  drawn = np.array([draw(rng, 20, 0) for _ in range(4000)])
  assert drawn.dtype == np.int64
  assert all(len(set(frames)) == 4 for frames in drawn.tolist())
  spans = np.ptp(drawn, axis=1) + 1
  assert set(spans) == {4, 5, 6, 7}
  assert (drawn.min(), drawn.max()) == (0, 19)
  # Each place of the set is any rank of it equally often: 1000 +- 27.
  ranks = drawn.argsort(1).argsort(1)
  counts = np.array([np.bincount(r, minlength=4) for r in ranks.T])
  assert np.abs(counts - 1000).max() < 140


def test_sets_are_uniform_in_their_window():
  rng = np.random.default_rng(0)
  drawn = np.array([views.choose_set(rng, 6, 3, 99) for _ in range(4000)])
  # The whole clip, for it is shorter: each frame 2000 +- 32 times.
  assert np.abs(np.bincount(drawn.ravel()) - 2000).max() < 160


def test_windows_of_sets_grow():
  draw = views.SetViews(2, (3, 11), ramp_steps=8)
  rng = np.random.default_rng(0)
  for step, window in ((0, 3), (4, 7), (8, 11), (99, 11)):
    drawn = np.array([draw(rng, 50, step) for _ in range(600)])
    assert np.ptp(drawn, axis=1).max() + 1 == window
  drawn = np.array([views.SetViews(2, (3, 11))(rng, 50, 0) for _ in range(600)])
  assert np.ptp(drawn, axis=1).max() + 1 == 11


def test_sets_are_a_function_of_seed_and_index():
  draw = views.SetViews(5, (40, 40))
  first = draw(views.frame_rng(3, 17), 90, 0)
  np.testing.assert_array_equal(first, draw(views.frame_rng(3, 17), 90, 0))
  assert (first != draw(views.frame_rng(3, 18), 90, 0)).any()


def test_sets_that_cannot_be():
  with pytest.raises(UserError, match='clip has 5 frames .* takes 6'):
    views.SetViews(6, (9, 40))(np.random.default_rng(0), 5, 0)
  for num_views, window in ((1, (9, 40)), (10, (9, 40)), (10, (40, 9))):
    with pytest.raises(UserError, match='wrong number of views'):
      views.SetViews(num_views, window)
  with pytest.raises(UserError, match='ramp_steps is -1'):
    views.SetViews(2, (9, 40), ramp_steps=-1)
  with pytest.raises(ValueError, match='2 <= num_views'):
    views.choose_set(np.random.default_rng(0), 50, 6, 5)


# Examples of two moments.


@pytest.mark.parametrize('num_frames', [9, 12, 60])
def test_seconds_are_the_same_frames_some_time_off(num_frames):
  plain = views.Views(3, (5, 9), bump=True)
  shifted = views.Shifted(plain, offset=4, prob=0.5)
  assert (shifted.num_views, shifted.window) == (6, (5, 9))
  offsets = []
  for index in range(400):
    frames = shifted(views.frame_rng(0, index), num_frames, 10**6)
    assert frames.dtype == np.int64
    assert 0 <= frames.min() <= frames.max() < num_frames
    first, second = np.split(frames, 2)
    # Nothing but the seconds depends on the shift.
    np.testing.assert_array_equal(
      first, plain(views.frame_rng(0, index), num_frames, 10**6)
    )
    (offset,) = set(second - first)
    offsets.append(int(offset))
  assert set(offsets) == set(range(-4, 5))


@pytest.mark.parametrize('prob', [0.25, 1.0])
def test_the_share_that_is_moved(prob):
  draw = views.Shifted(views.Views(2, (3, 3)), offset=3, prob=prob)
  rng = np.random.default_rng(0)
  drawn = np.array([draw(rng, 1000, 0) for _ in range(2000)])
  offsets = drawn[:, 2] - drawn[:, 0]
  # Of 1000 frames there is hardly ever no room.
  assert np.mean(offsets != 0) == pytest.approx(prob, abs=0.04)
  counts = np.unique(offsets[offsets != 0], return_counts=True)[1]
  assert len(counts) == 6
  assert counts.min() > 0.5 * counts.max()


def test_without_room_nothing_moves():
  draw = views.Shifted(views.Views(2, (6, 6), min_window=6), 3, 1.0)
  frames = draw(np.random.default_rng(0), 6, 0)
  np.testing.assert_array_equal(frames[:2], frames[2:])


def test_shifts_that_cannot_be():
  plain = views.Views(2, (3, 3))
  for offset, prob in ((0, 0.5), (1, 0.0), (1, 1.5), (1, float('nan'))):
    with pytest.raises(UserError, match='config.data.offset.*offset_prob'):
      views.Shifted(plain, offset, prob)
  with pytest.raises(UserError, match='clip has 1 frames .* takes 2'):
    views.Shifted(plain, 1, 0.5)(np.random.default_rng(0), 1, 0)
