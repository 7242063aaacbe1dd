"""Trains the learned pose oracle and tests whether it passes its gate.

  python tools/train_pose_oracle.py --config=configs/pose_oracle.py \
      --workdir=runs/pose_oracle

Writes WORKDIR/pose_oracle.safetensors, which `python -m xfactor.eval
--oracle=learned --oracle_options=weights=WORKDIR` accepts if it passed.
Exit codes: 0 passed, 1 not passed (the oracle refuses the file), 2 bad input
(one line on stderr says what), 130 stopped by Ctrl-C (nothing is written).
"""

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from xfactor import cli, parsing
from xfactor.errors import UserError
from xfactor.evaluation.oracles.learned import gate as gate_lib
from xfactor.evaluation.oracles.learned import oracle as learned_oracle
from xfactor.evaluation.oracles.learned import training as learned_training
from xfactor.training import data

_CONFIG = parsing.define_config('Recipe.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the weights.')


def _run(config: ConfigDict, workdir: epath.Path) -> bool:
  """Makes data, trains and writes weights; returns whether they passed."""
  named = config.data.names.split(',')
  wanted = {k: v for k, v in config.data.make.items() if k in named}
  data.make(ConfigDict({'data': {'dir': config.data.dir, 'make': wanted}}))
  workdir.mkdir(parents=True, exist_ok=True)
  scenes = gate_lib.held_out(config)
  network = learned_training.fit(config, learned_training.load_footage(config))
  network, gate = gate_lib.examine(network, scenes, config.gate)
  path = workdir / learned_oracle.FILE
  learned_oracle.save(path, network, gate)
  print(gate_lib.table(gate['rows']))
  for failure in gate['failures']:
    print(f'gate: {failure}')
  verdict = 'passed' if gate['passed'] else 'NOT passed: the oracle refuses it'
  print(f'{path}: gate {verdict}')
  return gate['passed']


def main(_: list[str]) -> int:
  """Runs the tool; returns the exit code."""
  with cli.reporting_user_errors():
    if _CONFIG.value is None or not _WORKDIR.value:
      raise UserError('give --config=configs/pose_oracle.py and --workdir')
    return 0 if _run(_CONFIG.value, epath.Path(_WORKDIR.value)) else 1


if __name__ == '__main__':
  cli.run(main)
