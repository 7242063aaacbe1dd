"""The text of the project avoids words that read like a translation."""

import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Pattern, and what technical English has instead.
AVOIDED = {
  r'anew': 'again',
  r'alike': 'similar, the same way',
  r'alone': 'only',
  r'lest': 'so that ... not',
  r'in vain': 'without success',
  r'whoever': 'users who, anyone who',
  r'told': 'given, reported',
  r'unasked': 'without communication',
  r'as it lies': 'as stored',
  r'beside': 'next to, as well as',
  r'(go|goes|going|gone|went) on': 'resume, continue',
  r'(left|leave|leaves|leaving) out': 'skipped, ignored, omit',
  r'wants? to be': 'must be, should be',
  r'nobody|no one': 'no user, no process',
  r'hitherto|thereof|wherein|thereby|whence|nought': '',
  r'in silence': 'silently, without a message',
  r'of use': 'useful',
}
PATTERN = re.compile(rf'\b({"|".join(AVOIDED)})\b', re.IGNORECASE)
# `Args:` and `Attributes:` begin with the noun.
GENITIVE = re.compile(r'^ +\w+: (Of|As of|In which|Where) ', re.MULTILINE)
FILES = sorted(
  path
  for pattern in (
    *('xfactor/**/*.py', 'tools/**/*.py', 'configs/*.py', 'launch/*'),
    *('docs/**/*.md', 'README.md', 'setup.py'),
  )
  for path in ROOT.glob(pattern)
  if path.is_file()
)


def text_of(path):
  """Comments and strings of Python; the prose of other files."""
  content = path.read_text()
  if path.suffix != '.py':
    return re.sub(r'```.*?```|`[^`\n]*`', '', content, flags=re.DOTALL)
  kinds = {tokenize.COMMENT, tokenize.STRING}
  kinds |= {getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING)}
  tokens = tokenize.generate_tokens(io.StringIO(content).readline)
  text = '\n'.join(x.string for x in tokens if x.type in kinds)
  return re.sub(r'`[^`\n]*`', '', text)


@pytest.mark.parametrize(
  'path', FILES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_text_is_plain_technical_english(path):
  text = text_of(path)
  found = [x[0] for x in PATTERN.finditer(text)]
  assert not found, f'use other words: {found}; see AVOIDED'
  assert not GENITIVE.findall(text), 'begin descriptions with a noun'
