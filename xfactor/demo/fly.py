"""Tab of the page that moves a camera through a picture by keys and mouse.

The tab shows a small page of its own, `site`, which keeps the camera and asks
for one picture after another.
"""

import collections
import hashlib
import json
import pathlib
import threading
from collections.abc import Callable
from importlib import resources
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import Float, UInt8
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
  FileResponse,
  JSONResponse,
  PlainTextResponse,
  Response,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from xfactor.data import images
from xfactor.demo import motion, uploads
from xfactor.errors import UserError
from xfactor.evaluation.oracles import base as oracles
from xfactor.inference import footage, latent, movie, path_render

_SITE = pathlib.Path(__file__).with_name('site')
_SHARED = resources.files('xfactor.inference') / 'site/fly.js'
CAMERAS = 300  # Most cameras of a path.
_SCENES = 64  # Most scenes in memory, at the size of the model.
_AT_ONCE = 8  # Most requests that are answered at the same time.
_MEGABYTES = 1  # Largest request that is not a picture.
_FARTHEST = 1e6  # Largest number in a camera.
_RATES = 1, 60  # Slowest and fastest video, in pictures per second.
_SIZE = 256  # Pixels per side of the pictures in the video.


class Flyer:
  """A model with a calibration, and the scenes that visitors fly through.

  Attributes:
    limits: Limits of uploads.
  """

  def __init__(self, mover: motion.Mover):
    self.limits = mover.limits
    self._mover = mover
    self._model = mover.model.one_by_one()
    self._scenes: collections.OrderedDict[str, np.ndarray] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def facts(self) -> dict[str, Any]:
    """Returns what the page needs to know about the model and its limits."""
    calibration = self._model.calibration
    return {
      'width': self._model.image_size,
      'height': self._model.image_size,
      'clips': self._mover.clips,
      'clip': self._mover.defaults()[1],
      'cameras': CAMERAS,
      **calibration.facts(),
      'megabytes': self.limits.megabytes,
    }

  def choose(self, clip: Any, frame: Any = None) -> dict[str, Any]:
    """Makes a frame of an example clip a scene, the middle one by default.

    Returns:
      Key of the scene, number of the frame, and number of frames of the clip.

    Raises:
      UserError: If there is no such clip or frame, or it cannot be read.
    """
    if clip not in self._mover.clips:
      raise UserError('there is no such clip; choose one of the list')
    count = self._mover.length(clip)
    frame = (count - 1) // 2 if frame is None else frame
    if type(frame) is not int or not 0 <= frame < count:
      raise UserError(f'frame must be a number from 0 to {count - 1}')
    read = footage.read(
      clip, self._mover.data_dir, self._fit, first=frame, last=frame
    )
    return {
      'scene': self._keep(read.frames[0]),
      'frame': frame,
      'frames': count,
    }

  def upload(self, data: bytes) -> dict[str, Any]:
    """Makes a picture a scene; returns its key.

    Raises:
      UserError: If it is not a picture, or one that the model cannot take.
    """
    return {'scene': self._keep(self._fit(uploads.read_picture(data)))}

  def fly(
    self, scene: Any, cameras: Float[np.ndarray, 'n 3 4']
  ) -> path_render.Shown:
    """Renders a scene from cameras relative to that of its picture.

    Raises:
      HTTPException: If the scene is not in memory.
    """
    with self._lock:
      picture = self._scenes.get(scene) if isinstance(scene, str) else None
      if picture is None:
        raise HTTPException(
          404, 'this scene is not in memory any more; choose it again'
        )
      self._scenes.move_to_end(scene)
    calibration = self._model.calibration
    found = calibration.poses(cameras)
    # The picture is the reference, whose own pose is zero.
    still = np.zeros((1, self._model.pose_dim), np.float32)
    return path_render.Shown(
      name='a flight',
      path=cameras,
      focal=np.full(len(cameras), calibration.focal),
      scene=picture,
      pictures=self._model.render(picture[None], still, found.poses),
      distance=found.distance,
      limit=calibration.motions.limit,
      truth=None,
    )

  def _fit(self, picture: np.ndarray) -> UInt8[np.ndarray, 'h w 3']:
    return self._model.telling(lambda _: None).fit([picture])[0]

  def _keep(self, picture: UInt8[np.ndarray, 'h w 3']) -> str:
    key = hashlib.sha256(picture.tobytes()).hexdigest()
    with self._lock:
      self._scenes[key] = picture
      self._scenes.move_to_end(key)
      while len(self._scenes) > _SCENES:
        self._scenes.popitem(last=False)
    return key


def application(flyer: Flyer) -> Starlette:
  """Returns the page of the tab and what it asks for.

  Bad requests are answered by a sentence and a status of 400 or above.
  """

  def clip(data: bytes) -> Response:
    asked = _object(data)
    return JSONResponse(flyer.choose(asked.get('clip'), asked.get('frame')))

  def picture(data: bytes) -> Response:
    return JSONResponse(flyer.upload(data))

  def view(data: bytes) -> Response:
    asked = _object(data)
    shown = flyer.fly(asked.get('scene'), _cameras(asked, 1))
    return Response(
      images.encode_png(shown.pictures[0]),
      headers={'X-Distance': f'{shown.distance[0]:.6g}'},
      media_type='image/png',
    )

  def video(data: bytes) -> Response:
    asked = _object(data)
    rate, (slowest, fastest) = asked.get('rate'), _RATES
    if not (isinstance(rate, int | float) and slowest <= rate <= fastest):
      raise UserError(f'rate must be a number from {slowest} to {fastest}')
    cameras = _cameras(asked)
    shown = flyer.fly(asked.get('scene'), cameras)
    return Response(movie.mp4(shown.video(_SIZE), rate), media_type='video/mp4')

  at_once = threading.BoundedSemaphore(_AT_ONCE)

  def post(
    path: str, answer: Callable[[bytes], Response], megabytes: int = _MEGABYTES
  ) -> Route:
    async def endpoint(request: Request) -> Response:
      if not at_once.acquire(blocking=False):
        raise HTTPException(503, 'too many visitors fly now; try again')
      try:
        data = await _body(request, megabytes)
        return await run_in_threadpool(answer, data)
      finally:
        at_once.release()

    return Route(path, endpoint, methods=['POST'])

  return Starlette(
    routes=[
      Route('/facts.json', lambda _: JSONResponse(flyer.facts())),
      post('/clip', clip),
      post('/picture', picture, flyer.limits.megabytes),
      post('/view', view),
      post('/fly.mp4', video),
      Route('/fly.js', lambda _: FileResponse(_SHARED)),
      Mount('/', StaticFiles(directory=_SITE, html=True)),
    ],
    exception_handlers={
      UserError: lambda _, e: PlainTextResponse(str(e), 400),
      ClientDisconnect: lambda *_: PlainTextResponse('not complete', 400),
    },
  )


def routes(mover: motion.Mover) -> list[Mount]:
  """Returns the addresses that the tab needs; none without a calibration."""
  try:
    mover.model.calibration  # noqa: B018
  except UserError:
    return []
  return [Mount('/fly', application(Flyer(mover)))]


def tab(model: latent.Model) -> None:
  """Builds the tab inside of an open `gr.Blocks`."""
  try:
    model.calibration  # noqa: B018
  except UserError as e:
    gr.Markdown(f'To fly: {e}.')
    return
  gr.HTML(
    '<iframe src="fly/" title="Fly" style="width: 100%; height: 48rem; '
    'border: 0"></iframe>'
  )


async def _body(request: Request, megabytes: int) -> bytes:
  data = bytearray()
  async for chunk in request.stream():
    data += chunk
    if len(data) > megabytes * 2**20:
      raise HTTPException(413, f'at most {megabytes} MB are taken; send less')
  return bytes(data)


def _object(data: bytes) -> dict[str, Any]:
  try:
    found = json.loads(data)
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise UserError('the request is not a JSON object; load the page again')
  return found


def _cameras(
  asked: dict[str, Any], most: int = CAMERAS
) -> Float[np.ndarray, 'n 3 4']:
  try:
    cameras = np.asarray(asked.get('cameras'), np.float64)
  except (TypeError, ValueError, OverflowError):
    cameras = np.zeros(0)
  if cameras.shape[1:] != (3, 4) or not 1 <= len(cameras) <= most:
    raise UserError(
      f'cameras must be 1 to {most} matrices of 3 x 4 numbers, from the axes '
      'of the picture to those of the camera'
    )
  # NaN is not near.
  near = (abs(cameras) <= _FARTHEST).all()
  if not (near and oracles.rigid(cameras).all()):
    raise UserError(
      'a camera is not a rotation and a position that is not too far; load the '
      'page again'
    )
  return cameras
