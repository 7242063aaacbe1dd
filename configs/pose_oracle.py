"""Learned pose oracle: relative poses of pairs of 64 x 64 pixel pictures.

  python tools/train_pose_oracle.py --config=configs/pose_oracle.py \
      --workdir=runs/pose_oracle

Makes missing data: 1024 rooms of 24 frames, six minutes on two CPU cores, once.
0.4 M parameters. Hardware: two CPU cores, another six minutes; then a gate
decides whether the oracle may be used. The oracle is only valid on the data
that it was trained on; for other data sets with cameras, such as a converted
vizdoom, set --config.data.dir=data --config.data.names=vizdoom (or NAME,NAME).
"""

import dataclasses

from ml_collections import ConfigDict

from xfactor.evaluation.oracles.learned import network as learned_network


def get_config() -> ConfigDict:
  """Returns the recipe of `--oracle=learned`."""
  return ConfigDict(
    {
      'seed': 0,
      'model': dataclasses.asdict(learned_network.Config()),
      'data': {
        # Own folder: other recipes make fewer rooms with the same name.
        'dir': 'data/pose_oracle',
        'names': 'synthetic',  # Data sets with cameras.
        # Options by source name: made if missing and in `names`.
        'make': {'synthetic': {'scenes': 1024, 'frames': 24, 'size': 64}},
        'max_gib': 4.0,  # Maximum of the training frames, kept in memory.
      },
      'train': {
        'steps': 2000,  # Optimizer updates.
        'windows': 8,  # Per update: 3 frames, 6 ordered pairs each.
        'gap': 10,  # Maximum frames from one of the three to the next.
        'degraded': 0.5,  # Share of blurred, noisy, recoloured, warped windows.
        'still': 0.03,  # Share of windows of one repeated frame.
        'matching': 5.0,  # Weight of the matching loss, for data with depth.
        'learning_rate': 1.5e-3,
        'warmup_steps': 100,
        'weight_decay': 1e-2,
        'log_every': 100,
      },
      # Half of the held-out clips calibrate, the other half decide.
      'gate': {
        'windows': (12, 16, 20),  # Frames that views are spread over.
        'frames': 5,  # Views per clip.
        'keep': 0.95,  # Target share of accepted clean clips.
        'min_auc': 0.45,  # Minimum AUC@30 on clean clips.
        'max_loss': 0.15,  # Maximum loss of AUC@30 by any corruption.
        'margin': 0.2,  # Minimum above constant motion and shuffled pictures.
      },
    }
  )
