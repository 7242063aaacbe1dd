"""Runs COLMAP on a folder, as a separate program that no module imports.

After pycolmap 4.2 is imported, the first use of zlib aborts the process, and
its libraries may conflict with those that read data sets. Hence this program
uses zlib first, imports only what it needs, and compresses nothing.
"""

import json
import pathlib
import shutil
import sys
import zlib

import numpy as np
from scipy import sparse

if __name__ == '__main__':  # Not on import: see above; it is also optional.
  zlib.compress(b'')
  import pycolmap


# Deterministic results need one thread; clips run in parallel instead.
_THREADS = 1
# SIFT features with about half of the default's contrast, for small pictures.
_PEAK_THRESHOLD = 0.003
# Largest error of a match in pixels; the default, 4, is for large pictures.
_MATCH_ERROR = 2.0


def main(folder: pathlib.Path) -> None:
  """Writes FOLDER/run0.npz and run1.npz, from all points and from half of them.

  Both or the second are missing if there is no model.

  Args:
    folder: Folder with `pictures`, named by the numbers of their frames, and
      `camera.json`: the camera's `model`, `params` (in pixels; '' if unknown)
      and the `seed`.
  """
  camera = json.loads((folder / 'camera.json').read_text())
  pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
  pycolmap.set_random_seed(camera['seed'])
  database = folder / 'run0.db'
  _extract(database, folder / 'pictures', camera)
  _match(database, camera['seed'])
  halved = folder / 'run1.db'
  shutil.copy(database, halved)
  _halve(halved, folder / 'pairs.txt', camera['seed'])
  for run, path in enumerate((database, halved)):
    models = _map(path, folder, camera, camera['seed'] + run)
    if not models:
      return
    model = max(models.values(), key=lambda model: model.num_reg_images())
    np.savez(folder / f'run{run}.npz', **_arrays(model))


def _extract(database: pathlib.Path, pictures: pathlib.Path, camera) -> None:
  reader = pycolmap.ImageReaderOptions()
  reader.camera_model = camera['model']
  reader.camera_params = camera['params']
  options = pycolmap.FeatureExtractionOptions()
  options.use_gpu = False
  options.num_threads = _THREADS
  options.sift.peak_threshold = _PEAK_THRESHOLD
  pycolmap.extract_features(
    database,
    pictures,
    camera_mode=pycolmap.CameraMode.SINGLE,
    reader_options=reader,
    extraction_options=options,
    device=pycolmap.Device.cpu,
  )


def _match(database: pathlib.Path, seed: int) -> None:
  options = pycolmap.FeatureMatchingOptions()
  options.use_gpu = False
  options.num_threads = _THREADS
  pycolmap.match_exhaustive(
    database,
    matching_options=options,
    verification_options=_verification(seed),
    device=pycolmap.Device.cpu,
  )


def _verification(seed: int):
  options = pycolmap.TwoViewGeometryOptions()
  options.ransac.random_seed = seed
  options.ransac.max_error = _MATCH_ERROR
  return options


def _halve(path: pathlib.Path, pairs: pathlib.Path, seed: int) -> None:
  """Keeps the matches of half of the points and verifies them again.

  Sampling matches instead of points would leave the same points in both runs.
  """
  with pycolmap.Database.open(path) as database:
    names = {image.image_id: image.name for image in database.read_all_images()}
    counts = {i: database.num_keypoints_for_image(i) for i in names}
    first = dict(zip(counts, np.cumsum([0, *counts.values()]), strict=False))

    def features(pair, matches):
      return matches + [first[i] for i in pycolmap.pair_id_to_image_pair(pair)]

    verified = zip(*database.read_two_view_geometries(), strict=True)
    edges = [
      features(pair, geometry.inlier_matches)
      for pair, geometry in verified
      if len(geometry.inlier_matches)
    ]
    edges = np.concatenate([np.zeros((0, 2), int), *edges])
    total = sum(counts.values())
    graph = sparse.coo_array((np.ones(len(edges)), edges.T), (total, total))
    _, point = sparse.csgraph.connected_components(graph, directed=False)
    kept = np.random.default_rng(seed).random(total)[point] < 0.5
    matched = list(zip(*database.read_all_matches(), strict=True))
    database.clear_two_view_geometries()
    database.clear_matches()
    with pairs.open('w') as file:
      for pair, matches in matched:
        matches = matches[kept[features(pair, matches)].all(1)]
        ids = pycolmap.pair_id_to_image_pair(pair)
        database.write_matches(*ids, matches)
        print(*(names[i] for i in ids), file=file)
  pycolmap.verify_matches(path, pairs, _verification(seed + 1))


def _map(database: pathlib.Path, folder: pathlib.Path, camera, seed: int):
  """Returns GLOMAP's models."""
  options = pycolmap.GlobalPipelineOptions()
  mapper = options.mapper
  for part in (options, mapper):
    part.num_threads = _THREADS
  for part in (
    *(options, mapper, mapper.rotation_averaging),
    *(mapper.global_positioning, mapper.retriangulation),
  ):
    part.random_seed = seed
  mapper.bundle_adjustment.ceres.solver_options.num_threads = _THREADS
  mapper.bundle_adjustment.ceres.use_gpu = False
  mapper.global_positioning.use_gpu = False
  mapper.bundle_adjustment.refine_focal_length = not camera['params']
  out = folder / database.stem
  out.mkdir()
  return pycolmap.global_mapping(database, folder / 'pictures', out, options)


def _arrays(model) -> dict[str, np.ndarray]:
  """Returns the arrays of `oracle.Run`."""
  frame = {i: int(pathlib.Path(x.name).stem) for i, x in model.images.items()}
  poses = [
    (frame[i], image.cam_from_world().matrix())
    for i, image in model.images.items()
    if image.has_pose
  ]
  observations = [
    (frame[element.image_id], number, *_pixel(model, element))
    for number, point in enumerate(model.points3D.values())
    for element in point.track.elements
  ]
  observations = np.array(observations).reshape(-1, 4)
  camera = next(iter(model.cameras.values()))
  return {
    'frames': np.array([i for i, _ in poses], int),
    'world_to_camera': np.array([pose for _, pose in poses]),
    'focal': np.array([camera.focal_length_x, camera.focal_length_y]),
    'principal': np.array([camera.principal_point_x, camera.principal_point_y]),
    'points': np.array([x.xyz for x in model.points3D.values()]).reshape(-1, 3),
    'observations': observations[:, :2].astype(int),
    'pixels': observations[:, 2:],
  }


def _pixel(model, element) -> np.ndarray:
  return model.image(element.image_id).point2D(element.point2D_idx).xy


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
