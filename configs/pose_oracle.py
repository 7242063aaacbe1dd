"""The learned pose oracle: relative poses of pairs of 64 x 64 pixel pictures.

  python tools/train_pose_oracle.py --config=configs/pose_oracle.py \
      --workdir=runs/pose_oracle

Makes its data where they are missing: 1024 rooms of 24 frames, six minutes of
two CPU cores, once. 0.4 M parameters. Hardware: two CPU cores, another six
minutes; then a gate decides whether the oracle may be used. It serves what it
was trained on alone; for other data sets with cameras, say a converted vizdoom,
give --config.data.dir=data --config.data.names=vizdoom (or NAME,NAME).
"""

import dataclasses

from ml_collections import ConfigDict

from xfactor.evaluation.oracles.learned import network as learned_network


def get_config() -> ConfigDict:
  """The recipe of `--oracle=learned`."""
  return ConfigDict(
    {
      'seed': 0,
      'model': dataclasses.asdict(learned_network.Config()),
      'data': {
        # Its own: other recipes make fewer rooms of the same name.
        'dir': 'data/pose_oracle',
        'names': 'synthetic',  # Data sets with cameras.
        # Source's name to its options: made where missing, if it is named.
        'make': {'synthetic': {'scenes': 1024, 'frames': 24, 'size': 64}},
        'max_gib': 4.0,  # Of training frames, which are all in memory.
      },
      'train': {
        'steps': 2000,  # Optimizer updates.
        'windows': 8,  # Of an update: 3 frames, 6 ordered pairs each.
        'gap': 10,  # Most frames from one of the three to the next.
        'degraded': 0.5,  # Share of blurred, noisy, recoloured, warped ones.
        'still': 0.03,  # Share that shows one frame three times.
        'matching': 5.0,  # Weight of the matches' loss, where there is depth.
        'learning_rate': 1.5e-3,
        'warmup_steps': 100,
        'weight_decay': 1e-2,
        'log_every': 100,
      },
      # Of the held-out clips, half calibrate and half decide.
      'gate': {
        'windows': (12, 16, 20),  # Frames that a clip's views are spread over.
        'frames': 5,  # Views of a clip.
        'keep': 0.95,  # Share of clean clips that the oracle shall accept.
        'min_auc': 0.45,  # AUC@30 on clean clips.
        'max_loss': 0.15,  # Of it, by any corruption.
        'margin': 0.2,  # Above the constant motion and shuffled pictures.
      },
    }
  )
