"""Pages that are one file, and what they are made of.

Pictures, videos and scripts are inside the file, and its policy forbids the
browser to fetch anything: it can be mailed, and opened anywhere.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from xml.etree import ElementTree

from etils import epath


def write(
  path: epath.PathLike, title: str, body: ElementTree.Element, more: str = ''
) -> epath.Path:
  """Writes a page and returns its path.

  Args:
    path: Of the file; its folder is made where needed.
    title: Of the window.
    body: All that is shown.
    more: HTML after it that is taken as it is: styles and scripts.
  """
  shell = resources.files('xfactor.evaluation.reports').joinpath('page.html')
  text = Template(shell.read_text()).substitute(
    title=html.escape(title),
    body=ElementTree.tostring(body, method='html').decode(),
    more=more,
  )
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def node(
  tag: str, *children: ElementTree.Element | str, **attributes: str
) -> ElementTree.Element:
  """An element; whatever it holds is escaped when it is written.

  Args:
    tag: Its name.
    *children: Elements and texts.
    **attributes: By their names, with _ for - and one at the end where Python
      knows the word.
  """
  names = {key: key.rstrip('_').replace('_', '-') for key in attributes}
  node = ElementTree.Element(
    tag, {names[key]: value for key, value in attributes.items()}
  )
  for child in children:
    if isinstance(child, ElementTree.Element):
      node.append(child)
    elif len(node):
      node[-1].tail = child
    else:
      node.text = child
  return node


def table(
  head: Sequence[str],
  rows: Mapping[str, Sequence[Sequence[str]]],
  meanings: Mapping[str, str],
) -> ElementTree.Element:
  """A table; a cell is its text and perhaps what stands small below it."""
  body = node('tbody')
  for row, cells in rows.items():
    name = node('th', row, node('small', meanings.get(row, '')))
    body.append(node('tr', name))
    for text, *small in cells:
      body[-1].append(node('td', text, *(node('small', x) for x in small)))
  top = node('tr', *(node('th', x) for x in ('', *head)))
  table = node('table', node('thead', top), body)
  return node('div', table, class_='scroll')


def data_url(kind: str, data: bytes) -> str:
  """Data of a kind (a media type) as an address inside the page."""
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'
