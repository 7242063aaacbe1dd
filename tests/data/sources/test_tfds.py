"""Prepared TFDS data sets become clips, without TensorFlow."""

import importlib.util
import json

import numpy as np
import pytest

from tests.data.sources import test_msn
from xfactor import errors
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.records import codec, shards
from xfactor.data.records import store as store_lib
from xfactor.data.sources import tfds

COUNTS = {'train': [130, 0, 5], 'validation': [2]}


def picture(seed, height=20, width=30):
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (height // 5, width // 5, 3))
  return np.kron(small, np.ones((5, 5, 1))).astype(np.uint8)


def frames_of(number):
  """The frames of example `number` of a split: two or three."""
  return [picture(10 * number + i) for i in range(2 + number % 2)]


def image(dtype='uint8', channels='3'):
  """An image in features.json, as TFDS 4.9 writes it."""
  return {
    'pythonClassName': 'tensorflow_datasets.core.features.image_feature.Image',
    'image': {
      'dtype': dtype,
      'shape': {'dimensions': ['-1', '-1', channels]},
    },
  }


def sequence(feature):
  return {
    'pythonClassName': (
      'tensorflow_datasets.core.features.sequence_feature.Sequence'
    ),
    'sequence': {'feature': feature, 'length': '-1'},
  }


def video():
  return {
    'pythonClassName': 'tensorflow_datasets.core.features.video_feature.Video',
    'video': {
      'dtype': 'uint8',
      'encodingFormat': 'png',
      'shape': {'dimensions': ['-1', '20', '30', '3']},
    },
  }


def dictionary(**features):
  return {
    'pythonClassName': (
      'tensorflow_datasets.core.features.features_dict.FeaturesDict'
    ),
    'featuresDict': {'features': features},
  }


LEGACY = {'shape': [None, None, 3], 'dtype': 'uint8', 'encoding_format': 'png'}


def legacy(kind, shape):
  """A dictionary of one feature as early versions of TFDS wrote it."""
  core = 'tensorflow_datasets.core.features'
  content = LEGACY | {'shape': shape, 'ffmpeg_extra_args': []}
  return {
    'type': f'{core}.features_dict.FeaturesDict',
    'content': {
      'left': {
        'type': f'{core}.{kind}',
        'content': content,
      }
    },
  }


LABEL = {
  'pythonClassName': 'tensorflow_datasets.core.features.tensor_feature.Tensor',
  'tensor': {'dtype': 'int64', 'encoding': 'none', 'shape': {}},
}


def write(root, features, key, file_format='array_record', counts=None):
  """Writes pictures as the feature `key` of the data set ds/cfg:1.0.0."""
  folder = root / 'ds' / 'cfg' / '1.0.0'
  folder.mkdir(parents=True)
  (folder / 'features.json').write_text(json.dumps(features))
  splits = []
  for split, lengths in (counts or COUNTS).items():
    number = 0
    for shard, length in enumerate(lengths):
      name = f'ds-{split}.{file_format}-{shard:05d}-of-{len(lengths):05d}'
      examples = []
      for _ in range(length):
        pngs = [images.encode_png(f) for f in frames_of(number)]
        examples.append({key: pngs, 'label': np.array([number])})
        number += 1
      if file_format == 'tfrecord':
        test_msn.write_tfrecord(folder / name, examples)
      else:
        writer = shards.ShardWriter(folder / name)
        for values in examples:
          example = codec.Example()
          feature = example.features.feature[key]
          feature.bytes_list.value.extend(values[key])
          writer.write(example.SerializeToString())
        writer.close()
    splits.append(
      {
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        'name': split,
        'numBytes': '1000000',
        'shardLengths': [str(length) for length in lengths],
      }
    )
  info = {
    'name': 'ds',
    'configName': 'cfg',
    'version': '1.0.0',
    'fileFormat': file_format,
    'splits': splits,
  }
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  return folder


def make(root, builder='ds/cfg:1.0.0', **options):
  return tfds.Source(source=str(root), builder=builder, **options)


@pytest.mark.slow
@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_videos_of_all_splits(tmp_path, file_format):
  features = dictionary(video=video(), label=LABEL)
  write(tmp_path / 'in', features, 'video', file_format)
  source = make(tmp_path / 'in', size=None)
  items = source.items()
  assert [(item.id, item.split, item.size) for item in items] == [
    ('train/0000000', 'train', 100 * (1000000 // 135)),
    ('train/0000100', 'train', 30 * (1000000 // 135)),
    ('train/0000130', 'train', 5 * (1000000 // 135)),
    ('validation/0000000', 'validation', 1000000),
  ]
  assert all(item.bundle for item in items)
  summary = convert_run.convert(source, tmp_path / 'out', workers=0, quiet=True)
  assert not summary.skipped
  for split, lengths in COUNTS.items():
    store = store_lib.open_split(tmp_path / 'out', 'tfds', split)
    count = sum(lengths)
    assert store.clip_ids() == [f'{split}/{i:07d}' for i in range(count)]
    for i in {0, 1, 99, 100, 130, 134} & set(range(count)):
      expected = frames_of(i)
      assert store.num_frames[i] == len(expected)
      got = [
        images.decode(f) for f in store.clip_frames(i, range(len(expected)))
      ]
      np.testing.assert_array_equal(got, expected)
    clip = store.clip(0)
    assert clip.intrinsics is None
    assert clip.timestamps is None


def test_squares(tmp_path):
  write(tmp_path, dictionary(video=video()), 'video', counts={'test': [2]})
  source = make(tmp_path, size=10, min_length=3)
  (item,) = source.items()
  clips = source.clips(item)
  clip = next(clips)
  # The first has two frames.
  assert (clip.id, len(clip.frames)) == ('test/0000001', 3)
  expected = images.centre_crop_resize(frames_of(1)[2], 10)
  got = images.decode_jpeg(clip.frames[2])
  assert np.abs(got.astype(int) - expected).mean() < 8
  with pytest.raises(errors.UserError, match='1 of 2 sequences .*0 has 2'):
    next(clips)


@pytest.mark.parametrize(
  ('features', 'feature', 'key'),
  [
    (dictionary(image=image(), label=LABEL), None, 'image'),
    (dictionary(image=image(channels='1')), None, 'image'),
    (dictionary(frames=sequence(image())), None, 'frames'),
    (
      dictionary(
        video=video(),
        depth=sequence(image('uint16', '1')),
        normal=sequence(image('uint16', '3')),
        flow=sequence(image('float32', '3')),
        segmentations=sequence(image(channels='1')),
      ),
      None,
      'video',
    ),
    (
      dictionary(
        steps=sequence(dictionary(observation=dictionary(rgb=image()))),
        episodes=sequence(sequence(image())),
        clips=sequence(video()),
      ),
      None,
      'steps/observation/rgb',
    ),
    (dictionary(left=video(), right=video()), 'right', 'right'),
    (legacy('image_feature.Image', [None, None, 3]), None, 'left'),
    (
      dictionary(
        left={
          'pythonClassName': image()['pythonClassName'],
          'jsonFeature': {'json': json.dumps(LEGACY)},
        },
      ),
      None,
      'left',
    ),
    (
      dictionary(video=video(), depth=sequence(image('uint16', '1'))),
      'depth',
      'depth',
    ),
  ],
)
def test_which_feature_is_read(tmp_path, features, feature, key):
  write(tmp_path, features, key, counts={'train': [1]})
  source = make(tmp_path, feature=feature, size=None)
  (item,) = source.items()
  (clip,) = source.clips(item)
  np.testing.assert_array_equal(images.decode(clip.frames[1]), frames_of(0)[1])


@pytest.mark.parametrize(
  ('features', 'feature', 'reason'),
  [
    (dictionary(left=video(), right=video()), None, 'has left, right as vid'),
    (dictionary(label=LABEL), None, 'has none as videos'),
    (dictionary(left=video()), 'right', "no picture 'right'; it has left"),
    (
      dictionary(left=video(), flow=sequence(image('float32'))),
      'flow',
      "no picture 'flow'",
    ),
    ({'type': 'Nonsense', 'content': {}}, None, 'json cannot be read'),
  ],
)
def test_no_feature_to_read(tmp_path, features, feature, reason):
  write(tmp_path, features, 'left', counts={'train': [1]})
  with pytest.raises(errors.UserError, match=reason):
    make(tmp_path, feature=feature).items()


@pytest.mark.skipif(
  importlib.util.find_spec('tensorflow') is not None,
  reason='TensorFlow is installed',
)
def test_early_videos_need_tensorflow(tmp_path):
  features = legacy('video_feature.Video', [None, 20, 30, 3])
  write(tmp_path, features, 'left', counts={'train': [1]})
  with pytest.raises(errors.UserError, match='pip install tensorflow'):
    make(tmp_path).items()


def test_what_is_broken_is_left_out(tmp_path):
  folder = write(
    tmp_path / 'in', dictionary(v=video()), 'v', 'tfrecord', {'train': [3, 2]}
  )
  path = folder / 'ds-train.tfrecord-00001-of-00002'
  path.write_bytes(path.read_bytes()[:-9])
  summary = convert_run.convert(
    make(tmp_path / 'in', size=16), tmp_path / 'out', workers=0, quiet=True
  )
  assert summary.splits['train'].clips == 4
  ((item, reason),) = summary.skipped
  assert item == 'train/0000003'
  assert 'damaged at record 1' in reason


def test_missing_and_broken_array_records(tmp_path):
  folder = write(tmp_path, dictionary(v=video()), 'v', counts={'train': [3]})
  source = make(tmp_path)
  (item,) = source.items()
  path = folder / 'ds-train.array_record-00000-of-00001'
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(errors.UserError, match='00001 cannot be read'):
    list(source.clips(item))
  path.unlink()
  with pytest.raises(errors.UserError, match='00001 cannot be read'):
    list(source.clips(item))


def test_finding_the_data_set(tmp_path):
  folder = write(tmp_path, dictionary(v=video()), 'v', counts={'train': [3]})
  newer = folder.parent / '1.10.0'
  folder.rename(folder.parent / '1.9.0')
  newer.mkdir()
  for builder in ('ds/cfg', 'ds/cfg:1.9.0'):  # Only that one is complete.
    (item,) = make(tmp_path, builder).items()
    assert '/1.9.0/' in item.payload.path
  for file in ('features.json', 'dataset_info.json'):
    (newer / file).write_bytes((folder.parent / '1.9.0' / file).read_bytes())
  (item,) = make(tmp_path, 'ds/cfg').items()
  assert '/1.10.0/' in item.payload.path
  for builder, reason in (
    ('ds', 'holds cfg; expected a version with features.json'),
    ('ds/cfg:2.0.0', 'holds 1.10.0, 1.9.0; expected 2.0.0 with'),
    ('other', 'holds ds; expected other as prep'),
  ):
    with pytest.raises(errors.UserError, match=reason):
      make(tmp_path, builder).items()
  with pytest.raises(errors.UserError, match='no folder .*nowhere'):
    make(tmp_path / 'nowhere').items()


def test_other_formats(tmp_path):
  folder = write(tmp_path, dictionary(v=video()), 'v', counts={'train': [1]})
  info = json.loads((folder / 'dataset_info.json').read_text())
  info['fileFormat'] = 'riegeli'
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  with pytest.raises(errors.UserError, match='stored as riegeli'):
    make(tmp_path).items()
