"""A Hugging Face Hub of a few repositories, served on this machine."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Hub:
  """Repositories by kind and name, and the requests that were made.

  Attributes:
    repos: Files by path of each revision, by 'models/OWNER/NAME' or
      'spaces/OWNER/NAME'.
    gated: Names whose files are not given away.
    requests: Method and path of each request.
    url: Address of the server.
  """

  def __init__(self):
    self.repos = {}
    self.gated = set()
    self.requests = []
    self.url = None

  def commit(self, kind, name, files):
    """Adds a commit to main; returns its hash."""
    revisions = self.repos.setdefault(f'{kind}/{name}', {})
    files = revisions.get('main', {}) | files
    digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    revisions['main'] = revisions[digest] = files
    revisions['hash of main'] = digest
    return digest


@contextlib.contextmanager
def serving():
  """Serves an empty hub until the end of the block."""
  hub = Hub()

  class Handler(_Handler):
    pass

  Handler.hub = hub
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  hub.url = f'http://127.0.0.1:{server.server_port}'
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *args):
    pass

  def do_GET(self):
    self._note()
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    if match := re.fullmatch(r'/api/models/(.+?/.+?)/revision/(.+)', path):
      name, revision = match.groups()
      if (revisions := self._repo(name, revision)) is not None:
        digest = revisions['hash of main'] if revision == 'main' else revision
        self._json({'id': name, 'sha': digest, 'siblings': []})
    elif match := re.fullmatch(r'/api/models/(.+?/.+?)/tree/([^/]+)', path):
      name, revision = match.groups()
      if (revisions := self._repo(name, revision)) is not None:
        self._json(
          [
            {'type': 'file', 'path': k, 'size': len(x), 'oid': _etag(x)}
            for k, x in revisions[revision].items()
          ]
        )
    elif match := re.fullmatch(r'/(.+?/.+?)/resolve/([^/]+)/(.+)', path):
      name, revision, file = match.groups()
      if (revisions := self._repo(name, revision)) is None:
        return
      if name in self.hub.gated:
        self._fail(403, 'GatedRepo', f'Access to {name} is restricted.')
        return
      content = revisions[revision][file]
      headers = {'ETag': f'"{_etag(content)}"', 'X-Repo-Commit': revision}
      self._answer(200, content, headers)
    else:
      self._fail(404, 'EntryNotFound', path)

  do_HEAD = do_GET

  def do_POST(self):
    self._note()
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    path = urllib.parse.urlparse(self.path).path
    if path == '/api/validate-yaml':
      self._json({'errors': [], 'warnings': []})
    elif self.headers.get('Authorization') != 'Bearer hf_stub':
      self._fail(401, None, 'Invalid credentials')
    elif path == '/api/repos/create':
      asked = json.loads(body)
      name = f'{asked.get("organization") or "me"}/{asked["name"]}'
      kind = 'spaces' if asked.get('type') == 'space' else 'models'
      self.hub.repos.setdefault(f'{kind}/{name}', {})
      space = 'spaces/' if kind == 'spaces' else ''
      self._json({'url': f'{self.hub.url}/{space}{name}'})
    elif path.endswith('/preupload/main'):
      self._json(
        {
          'files': [
            {'path': x['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
            for x in json.loads(body)['files']
          ]
        }
      )
    elif match := re.fullmatch(r'/api/(\w+)/(.+?/.+?)/commit/main', path):
      kind, name = match.groups()
      lines = [json.loads(line) for line in body.splitlines()]
      files = {
        line['value']['path']: base64.b64decode(line['value']['content'])
        for line in lines
        if line['key'] == 'file'
      }
      digest = self.hub.commit(kind, name, files)
      url = f'{self.hub.url}/{name}/commit/{digest}'
      self._json({'commitOid': digest, 'commitUrl': url, 'success': True})
    else:
      self._fail(404, None, path)

  def _note(self):
    self.hub.requests.append((self.command, self.path))

  def _repo(self, name, revision):
    """Revisions of a model; None, once answered, if it has no such one."""
    revisions = self.hub.repos.get(f'models/{name}')
    if revisions is None:
      self._fail(404, 'RepoNotFound', 'Repository not found')
    elif revision not in revisions:
      self._fail(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
      revisions = None
    return revisions

  def _fail(self, status, code, message):
    headers = {'X-Error-Message': message} | (
      {'X-Error-Code': code} if code else {}
    )
    self._answer(status, json.dumps({'error': message}).encode(), headers)

  def _json(self, value):
    headers = {'Content-Type': 'application/json'}
    self._answer(200, json.dumps(value).encode(), headers)

  def _answer(self, status, content, headers):
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)


def _etag(content):
  return hashlib.sha1(content).hexdigest()
