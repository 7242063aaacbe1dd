"""Tests how commands parse each word of their command line."""

import pytest
from absl import flags

from xfactor import config as configs
from xfactor import parsing
from xfactor.errors import UserError

# How ml_collections loads a recipe.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

DOC = """Does things: python -m xfactor.thing --config=FILE --workdir=DIR.

More.
"""


@pytest.fixture(autouse=True)
def config(monkeypatch):
  """The flags of a command with a recipe; its value after parsing."""
  values = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', values)
  holder = parsing.define_config('Recipe.')
  flags.DEFINE_string('workdir', None, 'Folder.', flag_values=values)
  flags.DEFINE_bool('follow', False, 'Wait.', flag_values=values)
  flags.DEFINE_integer('verbosity', -1, 'Log.', flag_values=values)
  flags.mark_flag_as_required('workdir', flag_values=values)
  return holder


def parse(*words, workdir='runs/my', **options):
  folder = [] if workdir is None else [f'--workdir={workdir}']
  return parsing.parse(['thing', *folder, *words], DOC, **options)


TINY = '--config=configs/tiny.py'


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ([TINY, 'config.train.steps=5'], 'write --config.train.steps=5'),
    ([TINY, '--config.allow_change', 'False'], '--config.allow_change=False'),
    ([TINY, '--follow', 'true'], 'write --follow=true'),
    ([TINY, 'follow'], 'write --follow'),
    ([TINY, '\N{EN DASH}follow'], 'write --follow'),
    ([TINY, '--workdir=runs/my', 'run'], "write --workdir='runs/my run'"),
    (['run', TINY], "--workdir='runs/my run'"),
    ([TINY, '--', 'this'], "'this' is no flag"),
    ([TINY, '--config.trian.steps=5'], '\'trian\' Did you mean "train"'),
    ([TINY, '--config.train.stesp=5'], '\'stesp\' Did you mean "steps"'),
    (['--config.train.steps=5'], 'give --config=FILE before --config.train'),
    ([TINY, '--config.data.batch=None'], 'data.batch=None: this value cannot'),
    ([TINY, '--config.data.gap_simga=None'], '"gap_sigma"'),
    ([TINY, '--workdir='], '--workdir is empty'),
    ([], 'give --config; usage: python -m xfactor.thing --config=FILE'),
  ],
)
def test_what_is_not_meant_is_refused_in_one_line(words, said, capsys):
  with pytest.raises(SystemExit) as caught:
    parse(*words)
  assert caught.value.code == 2
  error = capsys.readouterr().err
  assert said in error
  assert error.count('\n') == 1
  assert '\\' not in error


def test_a_missing_flag_shows_the_usage(capsys):
  with pytest.raises(SystemExit):
    parse(TINY, workdir=None)
  assert 'give --workdir; usage: python -m' in capsys.readouterr().err


@pytest.mark.parametrize('none', ['None', 'none', 'null'])
def test_none_unsets_what_may_be_unset(config, none):
  parse('--config=configs/mv.py', f'--config.data.gap_sigma={none}')
  assert config.value.data.gap_sigma is None
  assert config.value.data.contexts == 5


def test_none_stands_for_every_placeholder(config):
  config = configs.base()
  unset = {
    path
    for section in ('data', 'train')
    for path in configs.leaf_paths(config[section], f'{section}.')
    if config[path.split('.')[0]][path.split('.')[1]] is None
  }
  assert {'data.gap_sigma', 'data.image_width', 'train.profile_at'} <= unset
  parse(TINY, *(f'--config.{path}=None' for path in unset))


def test_the_last_of_two_overrides_counts(config):
  parse(TINY, '--config.data.gap_sigma', 'None', '--config.data.gap_sigma=0.5')
  assert config.value.data.gap_sigma == 0.5


def test_none_is_a_word_where_words_are_values(config):
  parse(TINY, '--config.init_from=none')
  assert config.value.init_from == 'none'


def test_help_is_one_screen_of_our_flags(capsys):
  with pytest.raises(SystemExit) as caught:
    parsing.parse(['thing', '--help'], DOC)
  assert not caught.value.code
  said = capsys.readouterr().out
  assert 'usage: python -m xfactor.thing --config=FILE --workdir=DIR\n' in said
  assert len(said.splitlines()) < 50
  assert max(map(len, said.splitlines())) <= 80


def test_words_pass_where_they_are_taken(config):
  assert parse(TINY, 'runs/a', words=True) == ['thing', 'runs/a']
  # The name of a benchmark is that of a flag as well.
  assert parse(TINY, 'follow', words=True) == ['thing', 'follow']
  with pytest.raises(SystemExit):
    parse(TINY, 'follow=true', words=True)


@pytest.mark.parametrize(
  ('name', 'value', 'said'),
  [
    ('optimizer.learning_rate', float('nan'), 'a finite number'),
    ('optimizer.learning_rate', float('inf'), 'a finite number'),
    ('optimizer.learning_rate', -1e-3, 'at least 0'),
    ('objective.unmasked_prob', 2.0, 'between 0 and 1'),
    ('objective.augmentation.blur_prob', 2.0, 'between 0 and 1'),
    ('data.flip_prob', -0.5, 'between 0 and 1'),
    ('data.gap_sigma', 1.5, 'between 0 and 1'),
    ('optimizer.b2', 1.5, 'between 0 and 1'),
  ],
)
def test_values_that_cannot_be_are_refused_by_name(name, value, said):
  config = configs.base()
  *sections, key = name.split('.')
  section = config
  for part in sections:
    section = section[part]
  section[key] = value
  with pytest.raises(UserError, match=f'config.{name}=.*{said}'):
    configs.check(config)
