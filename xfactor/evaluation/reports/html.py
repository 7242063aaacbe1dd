"""Builds HTML pages that are a single file.

Pictures, videos and scripts are embedded, and the page's policy forbids the
browser to fetch anything, so the page can be mailed and opened anywhere.
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
    path: Path of the file; its folder is created if needed.
    title: Title of the window.
    body: Content of the page.
    more: Raw HTML after the body: styles and scripts.
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
  """Returns an element; its content is escaped when it is written.

  Args:
    tag: Name of the tag.
    *children: Elements and texts.
    **attributes: Attributes by name, with _ for - and a trailing _ for names
      that are Python keywords.
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
  """Returns a table; a cell is a text and optional small print below it."""
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
  """Returns a data URL; `kind` is a media type."""
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'
