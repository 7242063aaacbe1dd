"""RealEstate10K: house tours from YouTube, in three common layouts.

In SOURCE/SPLIT, where SPLIT is train, test, val or validation:

  NAME.torch               chunks of pixelSplat, MVSplat and others: lists of
                           sequences with JPEGs, cameras and timestamps
  metadata/ID.json         sequences of LVSM's process_data.py, with cameras in
  images/ID/*.png          pixels of these pictures
  ID.txt                   camera files of the original release

The original release has no pictures. For ID.txt, the first match of the
following is used; FRAMES and VIDEOS are the options of these names:

  FRAMES/SPLIT/ID/TIMESTAMP.png or .jpg, or the same in SOURCE/SPLIT/ID,
      SOURCE/frames/SPLIT/ID or SOURCE/images/SPLIT/ID: the frames
  VIDEOS/ID.mp4: the part of the video from the first to the last timestamp
  VIDEOS/VIDEO.mp4: the whole video; VIDEO is YouTube's id in the camera file

VIDEOS is SOURCE/videos by default. It may have SPLIT folders, and the videos
may also be .webm or .mkv. The frame nearest to each timestamp is used if it is
at most half a frame duration away.

Cameras are world-to-camera with OpenCV's axes; timestamps count from the start
of the YouTube video.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from absl import logging
from etils import epath

from xfactor.data import images, naming, sources
from xfactor.data.formats import camera_files, torch_file
from xfactor.data.formats import video as video_lib
from xfactor.data.sources import posed
from xfactor.errors import UserError
from xfactor.geometry import cameras

_SPLITS = {'train': 'train', 'test': 'test', 'val': 'val', 'validation': 'val'}
_EXPECTED = (
  "train/ and test/ with pixelSplat's *.torch, LVSM's images/ and metadata/, "
  "or RealEstate10K's ID.txt"
)
_FRAMES = ('.', 'frames', 'images')
_VIDEO_SUFFIXES = ('.mp4', '.webm', '.mkv')
_PICTURE_SUFFIXES = ('.png', '.jpg', '.jpeg')
_LENGTH = 140  # Frames of a typical sequence.
_CHUNK = 15  # Sequences of a typical chunk.


@dataclasses.dataclass(frozen=True)
class Source(posed.Source):
  """Sequences of RealEstate10K.

  Attributes: those of `posed.Source` and
    frames: Folder of SPLIT/ID/TIMESTAMP.png for the original release.
    videos: Folder of videos for the original release.
  """

  name: ClassVar[str] = 're10k'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'RealEstate10K: house tours with SLAM cameras.'
  reads: ClassVar[str] = (
    r'[^/]+/([^/]+\.(torch|txt)|metadata/[^/]+\.json)'
    r'|.*\.(jpe?g|png|mp4|webm|mkv)'
  )

  frames: str | None = None
  videos: str | None = None

  def items(self) -> list[sources.Item]:
    """Lists one item per sequence or chunk; see the base class."""
    root = posed.folder(self.source, _EXPECTED)
    items: list[sources.Item] = []
    for name, split in _SPLITS.items():
      if (root / name).is_dir():
        items += self._split(root / name, split)
    if not items:
      raise posed.wrong_layout(root, _EXPECTED)
    return items

  def _split(self, folder: epath.Path, split: str) -> list[sources.Item]:
    """Returns the items of a folder in its first known layout."""
    for below, suffix in (('', '.torch'), ('metadata', '.json'), ('', '.txt')):
      place = folder / below
      files = [p.name for p in place.iterdir()] if place.is_dir() else []
      names = [
        name
        for name in sorted(files)
        # Hidden files are not part of the data set.
        if name.endswith(suffix) and not name.startswith('.')
      ]
      if names:
        break
    bundle = suffix == '.torch'
    side = self.size or 360
    size = int(_LENGTH * 30_000 * (side / 256) ** 2) * (_CHUNK if bundle else 1)
    items = []
    for name in names:
      stem = name.removesuffix(suffix)
      items.append(
        sources.Item(
          id=naming.clip_id(f'{split}/{stem}' if bundle else stem),
          payload=str(place / name),
          split=split,
          size=size,
          bundle=bundle,
        )
      )
    return items

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clip of a sequence or those of a chunk; see the base class."""
    file = epath.Path(item.payload)
    if item.bundle:
      yield from self._chunk(file)
      return
    lvsm = file.suffix == '.json'
    views = _lvsm_views(file) if lvsm else self._original_views(file)
    yield self._clip(item.id, views)

  def _chunk(self, file: epath.Path) -> Iterator[sources.Clip]:
    """Yields the usable clips of a chunk, then raises the errors of others."""
    chunk = torch_file.load(file)
    if not isinstance(chunk, list):
      raise UserError(f'{file} is not a chunk of pixelSplat: it holds no list')

    def make(number: int, scene: Any) -> sources.Clip:
      return self._clip(*_scene_views(scene, f'sequence {number}'))

    yield from posed.bundle(
      str(file),
      (functools.partial(make, *entry) for entry in enumerate(chunk)),
    )

  def _original_views(self, file: epath.Path) -> list[posed.View]:
    """Returns the frames of a camera file, from pictures or from a video."""
    listed = camera_files.read_realestate(file)
    split, id = file.parent.name, file.stem
    root = file.parent.parent
    places = [epath.Path(self.frames).expanduser()] if self.frames else []
    for place in [*places, *(root / name for name in _FRAMES)]:
      if (place / split / id).is_dir():
        return _frame_views(place / split / id, listed)
    # All of YouTube's URL formats end in the id.
    video = re.split(r'[=/]', listed.url)[-1]
    videos = epath.Path(self.videos or root / 'videos').expanduser()
    for name in (id, video):
      for place in (videos / split, videos):
        for suffix in _VIDEO_SUFFIXES:
          path = place / f'{name}{suffix}'
          if path.exists():
            return self._video_views(path, listed, whole=name == video)
    raise UserError(
      f'{file} has neither a folder {split}/{id} of frames nor a video '
      f'{video}.mp4 in {videos}; download it or set frames or videos'
    )

  def _video_views(
    self, path: epath.Path, listed: camera_files.RealEstateFile, whole: bool
  ) -> list[posed.View]:
    """Returns the frames of a video at the timestamps of a camera file.

    Args:
      path: Path of the video.
      listed: Camera file.
      whole: Whether the video is the whole one, not only this sequence.
    """
    times = listed.timestamps / 1e6
    start = 0.0 if whole else times[0]
    views = []
    for index, rgb in video_lib.read_frames(path, times - start):
      intrinsics = listed.cameras.intrinsics[index]
      if self.size is None:
        data = images.encode_png(rgb)
      else:
        # Cropped here: a PNG of the whole picture takes ten times as long.
        intrinsics = cameras.crop_intrinsics(intrinsics, *rgb.shape[:2])
        rgb = images.centre_crop_resize(rgb, self.size)
        data = images.encode_jpeg(rgb, self.quality)
      views.append(
        posed.View(
          data,
          f'{path} at {times[index]:.3f} s',
          intrinsics,
          listed.cameras.world_to_camera[index],
          float(times[index]),
        )
      )
    if lost := len(times) - len(views):
      logging.warning(
        '%s has no frame at %d of %d timestamps', path, lost, len(times)
      )
    return views


def _scene_views(scene: Any, name: str) -> tuple[str, list[posed.View]]:
  """Returns the id and frames of a sequence of pixelSplat."""
  try:
    key = naming.clip_id(scene['key'])
    pictures = [picture.tobytes() for picture in scene['images']]
    times = [int(time) / 1e6 for time in scene['timestamps']]
    listed = camera_files.from_rows(scene['cameras'])
    views = [
      posed.View(picture, f'frame {i}', intrinsics, pose, time)
      for i, (picture, intrinsics, pose, time) in enumerate(
        zip(pictures, *listed, times, strict=True)
      )
    ]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{name} is not in the format of pixelSplat '
      f'({type(error).__name__}: {error})'
    ) from error
  return key, views


def _lvsm_views(file: epath.Path) -> Iterator[posed.View]:
  """Yields the frames of a metadata/ID.json of LVSM."""
  folder = file.parent.parent / 'images' / file.stem
  try:
    frames = [
      (
        # The folder of the path is specific to the original machine.
        folder / pathlib.PurePath(frame['image_path']).name,
        np.array(frame['fxfycxcy'], np.float64).reshape(4),
        np.array(frame['w2c'], np.float64).reshape(4, 4)[:3],
      )
      for frame in json.loads(file.read_text())['frames']
    ]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{file} is not a metadata file of LVSM '
      f'({type(error).__name__}: {error}); run its process_data.py again'
    ) from error
  for path, pixels, pose in frames:
    data, intrinsics = b'', None
    with contextlib.suppress(OSError, images.ImageError):
      data = path.read_bytes()
      height, width = images.header(data)
      intrinsics = pixels / [width, height, width, height]
    yield posed.View(data or path, path.name, intrinsics, pose)


def _frame_views(
  folder: epath.Path, listed: camera_files.RealEstateFile
) -> list[posed.View]:
  """Returns the frames of a camera file from pictures named by timestamp."""
  pictures = {
    int(path.stem): path
    for path in folder.iterdir()
    if path.suffix.lower() in _PICTURE_SUFFIXES and path.stem.isdecimal()
  }
  if lost := sum(int(time) not in pictures for time in listed.timestamps):
    logging.warning(
      '%s lacks %d of %d frames', folder, lost, len(listed.timestamps)
    )
  return [
    posed.View(
      pictures[int(time)], str(time), intrinsics, pose, int(time) / 1e6
    )
    for time, intrinsics, pose in zip(
      listed.timestamps, *listed.cameras, strict=True
    )
    if int(time) in pictures
  ]
