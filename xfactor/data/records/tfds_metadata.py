"""Writes the metadata files with which TFDS reads the records."""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from xfactor.data.records import codec
from xfactor.data.records import shards as shards_lib


def write_tfds_metadata(
  folder: str | os.PathLike[str],
  *,
  name: str,
  config: str,
  version: str,
  description: str,
  shards: dict[str, Sequence[shards_lib.Shard]],
  depth: bool = False,
  encoding: str | None = 'jpeg',
) -> None:
  """Writes dataset_info.json and features.json next to finished records.

  Args:
    folder: Folder of the records.
    name: Name of the data set.
    config: 'frames' or 'clips'.
    version: Semantic version.
    description: Description of the data set in one sentence.
    shards: Files of each split, in order.
    depth: Whether all frames have depth.
    encoding: 'jpeg', 'png', or None if there are both.
  """
  # Imported here, since readers and workers do not need TFDS.
  import tensorflow_datasets as tfds

  def raw(shape, dtype):
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding='bytes')

  if config == 'frames':
    features = {
      'image': tfds.features.Image(
        shape=(None, None, 3), encoding_format=encoding
      )
    }
    if depth:
      features['depth'] = tfds.features.Image(
        shape=(None, None, 1), dtype=np.uint16, encoding_format='png'
      )
  else:
    features = {'id': tfds.features.Text()}
    features |= {key: tfds.features.Scalar(np.int64) for key in codec.INTEGERS}
    features |= {
      key: raw(tuple(None if n < 0 else n for n in shape), dtype.type)
      for key, (dtype, shape) in codec.ARRAYS.items()
    }
  info = tfds.core.DatasetInfo(
    builder=tfds.core.dataset_info.DatasetIdentity(
      name=name,
      version=tfds.core.Version(version),
      data_dir=os.fspath(folder),
      module_name='',
      config_name=config,
    ),
    features=tfds.features.FeaturesDict(features),
    description=description,
  )
  info.set_file_format('array_record')
  template = tfds.core.ShardedFileTemplate(
    data_dir=epath.Path(folder),
    dataset_name=name,
    filetype_suffix='array_record',
  )
  info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[s.records for s in files],
          num_bytes=sum(s.bytes for s in files),
          filename_template=template.replace(split=split),
        )
        for split, files in shards.items()
      ]
    )
  )
  info.write_to_directory(folder)
