"""Parses command lines: flags, overrides of the recipe, and --help."""

import contextlib
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence

from absl import flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from xfactor.errors import UserError

flags.disclaim_key_flags()  # They belong to the command that defines them.

# The words in which ml_collections looks for overrides, instead of sys.argv.
_WORDS: list[str] = []
_OVERRIDE = re.compile(r'--?config\.([^=]+)(?:=(.*))?', re.DOTALL)
_NONE = ('none', 'null')
_HELP = {'--help', '-help', '-h', '--helpshort', '--helpfull'}


def define_config(
  help_string: str, *, required: bool = True
) -> flags.FlagHolder:
  """Defines the flag --config, a recipe whose values can be overridden."""
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    help_string,
    lock_config=True,
    flag_values=flags.FLAGS,
    sys_argv=_WORDS,
  )
  if required:
    flags.mark_flag_as_required('config', flag_values=flags.FLAGS)
  return holder


def given(argv: Sequence[str], name: str) -> str | None:
  """Returns the value of a flag, before parsing; None if it is not given."""
  for i, word in enumerate(argv[1:], 1):
    key, equals, value = word.partition('=')
    if key in (f'--{name}', f'-{name}'):
      return value if equals else ''.join(argv[i + 1 : i + 2])
  return None


def parse(
  argv: Sequence[str],
  doc: str | None = None,
  *,
  words: bool = False,
  known_only: bool = False,
) -> list[str]:
  """Parses absl flags; for bad flags, prints one line and exits with code 2.

  A supervisor restarts on other codes, which does not fix a wrong flag.

  Args:
    argv: Words of the command line; the first is the command.
    doc: Description of the command, for its usage.
    words: Whether the command takes words without dashes.
    known_only: Whether unknown flags are returned and not refused.

  Returns:
    The command and the words that are not flags.
  """
  if _HELP & set(argv[1:]):
    print(describe(argv[0], doc or ''))
    sys.exit(0)
  try:
    kept, unset = _split_unset(argv)
    _WORDS[:] = kept
    rest = flags.FLAGS(list(kept), known_only=known_only)
    _check_words(argv, rest[1:], taken=words or known_only)
    _check_empty()
    _expand_homes(rest)
    if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
      # Config files are loaded lazily: this access shows errors here.
      flags.FLAGS['config'].value.is_locked  # noqa: B018
      _unset(flags.FLAGS['config'].value, unset)
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # Orbax logs much at INFO.
    return rest
  except (flags.Error, UserError) as e:
    message = _explain(e, argv, doc or '')
  except (AttributeError, KeyError) as e:
    # Locked configs raise AttributeError(KeyError(text)) or KeyError(text).
    while e.args and isinstance(e.args[0], Exception):
      e = e.args[0]
    answer = ' '.join(str(e.args[0] if e.args else e).split())
    message = (
      f'the recipe or an override has no such key: {answer} (all keys are in '
      'xfactor/config.py)'
    )
  except OSError as e:
    # The last line of ml_collections' message has the path and the cause.
    cause = str(e).strip().split('\n')[-1].strip()
    message = f'cannot load the recipe: {cause}'
  except SyntaxError as e:
    message = f'{e.filename}, line {e.lineno}: {e.msg}'
  except (ImportError, TypeError, ValueError) as e:
    # Errors in a recipe come with a traceback, whose last line names them.
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    message = lines[-1] if 'Traceback' in str(e) else ' '.join(lines)
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def describe(command: str, doc: str) -> str:
  """Returns what --help prints: the usage and our flags, but not absl's."""
  defined = {
    flag.name: flag
    for module, own in flags.FLAGS.flags_by_module_dict().items()
    if module in (command, '__main__') or module.startswith('xfactor')
    for flag in own
  }
  lines = [f'usage: {usage(doc)}', '', doc.strip().splitlines()[0], '']
  for name in sorted(defined):
    flag = defined[name]
    text = flag.help or ''
    if flag.default not in (None, '', False):
      text += f' Default: {flag.default_as_str.strip(chr(39))}.'
    lines += textwrap.wrap(
      f'{"--" + name:<24} {text}', 80, subsequent_indent=' ' * 25
    )
  if 'config' in defined:
    lines.append('--config.KEY=VALUE       Override of a value of the recipe.')
  return '\n'.join(lines)


def usage(doc: str) -> str:
  """Returns the first command in the description of a command."""
  found = re.search(r'python (?:-m |tools/)(?:[^\\\n]|\\+\n)*', doc)
  if not found:
    return ''
  return ' '.join(found[0].replace('\\', '').split()).rstrip('.')


def _explain(error: Exception, argv: Sequence[str], doc: str) -> str:
  """Returns one line about an error in the flags."""
  text = ' '.join(str(error).split())
  missing = re.match(r'flag --(\w+)=None: Flag --\1 must have a value', text)
  if 'config' in flags.FLAGS and given(argv, 'config') is None:
    overrides = [x for x in argv[1:] if _OVERRIDE.fullmatch(x)]
    if overrides:
      return f'give --config=FILE before {overrides[0]}'
  if missing or len(argv) == 1:
    text = f'give --{missing[1]}' if missing else text
    return f'{text}; usage: {usage(doc)} (--help lists all flags)'
  return text


def _check_words(
  argv: Sequence[str], words: Sequence[str], *, taken: bool
) -> None:
  """Refuses words without dashes, and names the form that was meant."""
  for word in words:
    meant = _meant(argv, word, taken)
    if meant:
      raise UserError(f'{word!r} is not part of a flag: write {meant}')
    if not taken:
      raise UserError(f'{word!r} is no flag; --help lists all flags')


def _meant(argv: Sequence[str], word: str, taken: bool) -> str:
  """Returns the flag that was meant by a word without dashes, or nothing."""
  bare = word.lstrip('-\N{EN DASH}\N{EM DASH}')
  name = bare.split('=')[0]
  known = name in flags.FLAGS and ('=' in bare or not taken)
  if known or name.startswith('config.'):
    return f'--{bare}'
  before = argv[argv.index(word) - 1]
  flag, equals, value = before.partition('=')
  if not re.match('--?\\w', flag):
    return ''
  if not equals and word.lower() in ('true', 'false', '0', '1'):
    return f'{flag}={word}'  # The flag stands for true without a value.
  if taken or not equals:
    return ''
  return f'{flag}={shlex.quote(f"{value} {word}")}'


def _check_empty() -> None:
  """Refuses an empty --workdir, which would be the current folder."""
  if 'workdir' in flags.FLAGS and flags.FLAGS['workdir'].value == '':
    raise UserError('--workdir is empty; give a folder')


def _expand_homes(words: list[str]) -> None:
  """Expands ~ at the start of values, which shells do not do after `=`."""
  for own in flags.FLAGS.flags_by_module_dict().values():
    for flag in own:
      if isinstance(flag.value, str):
        flag.value = os.path.expanduser(flag.value)
  words[1:] = map(os.path.expanduser, words[1:])
  config = flags.FLAGS['config'].value if 'config' in flags.FLAGS else None
  for path in ('data.dir', 'init_from', 'perceptual_weights'):
    with contextlib.suppress(AttributeError, KeyError):
      value = config_path.get_value(path, config)
      config_path.set_value(path, config, os.path.expanduser(value))


def _split_unset(
  argv: Sequence[str],
) -> tuple[list[str], dict[str, str]]:
  """Separates overrides by None, which ml_collections does not parse."""
  kept, unset = [argv[0]], {}
  queue = list(argv[1:])
  while queue:
    word = queue.pop(0)
    found = _OVERRIDE.fullmatch(word)
    if found:
      value = found[2]
      if value is None and queue and queue[0].lower() in _NONE:
        value = queue.pop(0)
      if value is not None and value.lower() in _NONE:
        unset[found[1]] = value
        continue
      unset.pop(found[1], None)  # The last one counts.
    kept.append(word)
  return kept, unset


def _unset(config: ConfigDict, unset: Mapping[str, str]) -> None:
  """Sets values to None that may be None: those whose default is None."""
  if not unset:
    return
  from xfactor import config as configs  # Imports JAX.

  defaults = configs.base(config.method) if 'method' in config else config
  for path, word in unset.items():
    value = config_path.get_value(path, config)
    try:
      optional = config_path.get_value(path, defaults) is None
    except (AttributeError, KeyError):  # A key that the recipe has chosen.
      optional = value is None
    if optional:
      config_path.set_value(path, config, None)
    elif isinstance(value, str):
      config_path.set_value(path, config, word)
    else:
      raise UserError(
        f'--config.{path}={word}: this value cannot be None; give '
        f'{type(value).__name__}, for instance {value}'
      )
