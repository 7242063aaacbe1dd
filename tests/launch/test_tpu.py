"""launch/tpu.sh against a gcloud whose TPU is two folders."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUB = pathlib.Path(__file__).with_name('stub_gcloud.py')
# Counts its tries, all workers together one, in $STUB/tries.
TRY = 'cd $STUB; [ $HOSTNAME != worker-0 ] || echo >>tries; '


@pytest.fixture
def cloud(tmp_path):
  """A machine with gcloud, uv and a folder of code under git."""
  cloud = Cloud(tmp_path)
  yield cloud
  subprocess.run(
    [sys.executable, '-c', 'import stub_gcloud as s; s.kill_processes()'],
    cwd=STUB.parent,
    env=cloud.env,
    check=True,
  )


class Cloud:
  """The stub's folder and what runs beside it."""

  def __init__(self, folder):
    self.stub = folder / 'stub'
    self.code = folder / 'code'
    tools = folder / 'bin'
    for path in (self.stub, self.code, tools):
      path.mkdir()
    (self.code / 'model.py').write_text('first')
    (self.code / '.gitignore').write_text('/runs/\n')
    subprocess.run(['git', 'init', '--quiet'], cwd=self.code, check=True)
    python = f'exec {sys.executable} -SE {STUB} "$@"'
    self._tool(tools / 'gcloud', python)
    self._tool(
      tools / 'uv',
      'echo "$HOSTNAME $*" >>$STUB/uv\n'
      '[ $1 != venv ] || mkdir -p "${@: -1}/bin"',
    )
    self._tool(tools / 'gcsfuse', 'echo "$*" >>$STUB/gcsfuse')
    self._tool(tools / 'sudo', 'exec "$@"')
    self.env = {
      'PATH': f'{tools}:/usr/bin:/bin',
      'HOME': str(folder),
      'STUB': str(self.stub),
      'XFACTOR_SOURCE': str(self.code),
      'XFACTOR_CREATE': 'on-demand',
      'XFACTOR_POLL': '0.1',
      'XFACTOR_GRACE': '2',
    }

  def _tool(self, path, text):
    path.write_text(f'#!/usr/bin/env bash\n{text}\n')
    path.chmod(0o755)

  def tpu(self, *args, code=0, **env):
    """Runs tpu.sh, which must end with `code`; returns what it prints."""
    result = subprocess.run(
      ['bash', str(ROOT / 'launch/tpu.sh'), *args],
      env={**self.env, **env},
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr

  def second_line(self, host, **env):
    """Returns the second line of a host's log; the first names the host."""
    with subprocess.Popen(
      ['bash', str(ROOT / 'launch/tpu.sh'), 'logs', host],
      env={**self.env, **env},
      stdout=subprocess.PIPE,
      text=True,
      start_new_session=True,
    ) as follow:
      lines = [follow.stdout.readline() for _ in range(2)]
      os.killpg(follow.pid, 15)
    return lines[1]

  def up(self):
    self.tpu('create')
    self.tpu('setup')

  def plan(self, **plan):
    (self.stub / 'plan.json').write_text(json.dumps(plan))

  def calls(self):
    path = self.stub / 'calls.jsonl'
    return [json.loads(x) for x in path.read_text().splitlines()]

  def verbs(self):
    """Calls without the repeated questions; ssh as worker.sh's verb."""
    verbs = []
    for _, _, _, verb, _, *rest in self.calls():
      if verb == 'ssh':
        command = next(x for x in rest if x.startswith('--command='))
        verb = command.split('xfactor-worker.sh ')[-1].split()[0]
      if verb not in ('describe', 'status', ']; then'):
        verbs.append(verb)
    return [x for x in verbs if x != ']; then']

  def tries(self):
    path = self.stub / 'tries'
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_dry_run_prints_every_command_and_runs_none(cloud):
  before = sorted(cloud.code.rglob('*'))
  command = ('python', '-m', 'xfactor.main')
  says = {
    ('create',): 'tpu-vm create',
    ('setup',): '--command=bash xfactor-worker.sh setup TREE',
    ('run', *command): 'start train python -m xfactor.main',
    ('convert', '--dataset=video'): 'start convert python tools/convert',
    ('logs',): '--worker=0',
    ('status',): 'xfactor-worker.sh status',
    ('wait',): 'xfactor-worker.sh status',
    ('stop',): 'xfactor-worker.sh stop train',
    ('babysit', *command): 'tpu-vm delete',
    ('delete',): 'tpu-vm delete',
  }
  for arguments, text in says.items():
    assert text in cloud.tpu('--dry-run', *arguments)
    assert text in cloud.tpu(arguments[0], '--dry-run', *arguments[1:])
  assert not (cloud.stub / 'calls.jsonl').exists()
  assert sorted(cloud.code.rglob('*')) == before


@pytest.mark.parametrize(
  ('mode', 'kind', 'own'),
  [
    ('on-demand', 'tpu-vm', ['--version=v2-alpha-tpuv6e']),
    ('spot', 'tpu-vm', ['--version=v2-alpha-tpuv6e', '--spot']),
    ('queued', 'queued-resources', ['--runtime-version=v2-alpha-tpuv6e']),
    (
      'queued-spot',
      'queued-resources',
      ['--runtime-version=v2-alpha-tpuv6e', '--spot'],
    ),
  ],
)
def test_create_waits_until_the_tpu_is_there(cloud, mode, kind, own):
  cloud.plan(queued=[['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']])
  told = cloud.tpu(
    'create',
    XFACTOR_CREATE=mode,
    XFACTOR_TPU='mine',
    XFACTOR_TYPE='v6e-16',
    XFACTOR_PROJECT='p',
    XFACTOR_ZONE='z',
    XFACTOR_CREATE_FLAGS='--labels=a=b --network=n',
  )
  assert told.count('waiting for mine') == 2 * (kind == 'queued-resources')
  made, *asked = cloud.calls()
  assert made[:5] == ['compute', 'tpus', kind, 'create', 'mine']
  assert set(made[5:]) == {
    *own,
    *(['--node-id=mine'] if kind == 'queued-resources' else []),
    *('--accelerator-type=v6e-16', '--labels=a=b', '--network=n'),
    *('--project=p', '--zone=z', '--quiet'),
  }
  assert all(call[3] == 'describe' for call in asked)


def test_slices_are_one_run(cloud):
  """Of two nodes of one queued resource, all workers run the command."""
  env = {'XFACTOR_SLICES': '2', 'XFACTOR_CREATE': 'queued'}
  cloud.tpu('create', **env)
  made = cloud.calls()[0]
  assert made[2:4] == ['queued-resources', 'create']
  assert {'--node-count=2', '--node-prefix=xfactor'} <= set(made)
  assert cloud.tpu('setup', **env).count('installed') == 4
  script = 'echo from $HOSTNAME; [ $HOSTNAME != slice-1-worker-0 ] || exit 42'
  cloud.tpu('run', 'bash', '-c', script, **env)
  told = cloud.tpu('wait', code=42, **env)
  assert told.count('ended 0') == 3
  assert 'worker slice-1-worker-0 ended 42' in told
  names = {call[4] for call in cloud.calls() if call[3] == 'ssh'}
  assert names == {'xfactor-0', 'xfactor-1'}
  assert cloud.second_line('1:0', **env) == 'from slice-1-worker-0\n'
  cloud.plan(nodes={'xfactor-1': 'PREEMPTED'})
  assert 'xfactor GONE' in cloud.tpu('status', **env)
  cloud.tpu('delete', **env)
  assert cloud.calls()[-1][2:5] == ['queued-resources', 'delete', 'xfactor']


def test_slices_need_a_queue(cloud):
  told = cloud.tpu('create', code=2, XFACTOR_SLICES='2', XFACTOR_CREATE='spot')
  assert 'XFACTOR_SLICES=2 needs XFACTOR_CREATE=queued' in told
  assert 'number from 1' in cloud.tpu('create', code=2, XFACTOR_SLICES='0')
  assert not (cloud.stub / 'calls.jsonl').exists()


def test_babysit_brings_all_slices_back(cloud):
  script = (
    f'{TRY.replace("worker-0", "slice-0-worker-0")} [ -e again ] || '
    '{ [ $HOSTNAME != slice-1-worker-1 ] || touch again preempt; sleep 60; }'
  )
  told = cloud.tpu(
    *('babysit', 'bash', '-c', script),
    XFACTOR_SLICES='2',
    XFACTOR_CREATE='queued-spot',
  )
  assert 'was pre-empted' in told
  assert 'ended with exit code 0' in told
  assert cloud.verbs().count('create') == 2
  assert cloud.verbs().count('start') == 4


def test_bad_names_are_refused_before_anything_is_called(cloud):
  assert 'on-demand, spot' in cloud.tpu('create', code=2, XFACTOR_CREATE='now')
  assert 'unknown flag --wet' in cloud.tpu('--wet', 'create', code=2)
  assert 'unknown command x' in cloud.tpu('x', code=2)
  for name in ('a b', '..', '.', '', '-x', '../x'):
    assert f'--name={name}' in cloud.tpu(f'--name={name}', 'status', code=2)
  assert 'give run the command' in cloud.tpu('run', code=2)
  assert 'launch/tpu.sh create' in cloud.tpu(code=2)
  assert not (cloud.stub / 'calls.jsonl').exists()


def test_setup_installs_the_folder_as_it_is_and_only_once(cloud):
  (cloud.code / 'runs').mkdir()
  (cloud.code / 'runs' / 'big').write_text('ignored')
  (cloud.code / 'new.py').write_text('not yet under git')
  cloud.tpu('create')
  told = cloud.tpu('setup')
  assert told.count('installed') == 2
  for worker in ('worker-0', 'worker-1'):
    source = cloud.stub / worker / 'xfactor' / 'src'
    assert {x.name for x in source.iterdir()} == {
      '.gitignore',
      'model.py',
      'new.py',
    }
  installs = (cloud.stub / 'uv').read_text()
  assert installs.count('--editable') == 2
  assert 'src[tpu,gcs,perceptual]' in installs

  assert cloud.tpu('setup').count('is installed') == 2
  assert (cloud.stub / 'uv').read_text() == installs

  (cloud.code / 'model.py').write_text('second')
  cloud.tpu('setup')
  assert (source / 'model.py').read_text() == 'second'
  assert (cloud.stub / 'uv').read_text().count('--editable') == 4
  # The user's own index is as it was: empty.
  listed = subprocess.run(
    ['git', 'ls-files'], cwd=cloud.code, capture_output=True, check=True
  )
  assert listed.stdout == b''


def test_setup_from_a_repository_takes_one_commit_everywhere(cloud):
  git = ('git', '-c', 'user.name=n', '-c', 'user.email=e')
  for step in (('add', '.'), ('commit', '-qm', 'c'), ('branch', '-M', 'new')):
    subprocess.run([*git, *step], cwd=cloud.code, check=True)
  cloud.tpu('create')
  cloud.tpu(
    'setup', XFACTOR_SOURCE=f'file://{cloud.code}', XFACTOR_BRANCH='new'
  )
  head = subprocess.run(
    ['git', 'rev-parse', 'new'],
    cwd=cloud.code,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()
  for worker in ('worker-0', 'worker-1'):
    folder = cloud.stub / worker / 'xfactor'
    assert (folder / 'src' / 'model.py').read_text() == 'first'
    assert head in (folder / 'installed').read_text()


def test_setup_says_what_it_cannot_read(cloud):
  cloud.tpu('create')
  told = cloud.tpu('setup', code=1, XFACTOR_SOURCE='file:///nowhere')
  assert 'cannot read XFACTOR_SOURCE=file:///nowhere' in told
  told = cloud.tpu('setup', code=128, XFACTOR_SOURCE=str(cloud.stub))
  assert 'not a git repository' in told
  assert cloud.verbs() == ['create']


def test_setup_mounts_the_bucket(cloud, tmp_path):
  cloud.tpu('create')
  mount = tmp_path / 'mount'
  cloud.tpu('setup', XFACTOR_BUCKET='mine', XFACTOR_MOUNT=str(mount))
  assert (cloud.stub / 'gcsfuse').read_text().endswith(f'mine {mount}\n')


def test_run_goes_on_alone_with_the_very_words(cloud):
  cloud.up()
  words = ['a b', "it's", '"q"', '$HOME', '*', 'two\nlines', '', 'ü']
  script = (
    'printf "%s\\0" "$@" >$STUB/words-$HOSTNAME; pwd; '
    'echo slices ${MEGASCALE_NUM_SLICES-one}; '
    'until [ -e $STUB/end ]; do sleep 0.1; done'
  )
  cloud.tpu(
    'run', 'bash', '-c', script, 'name', *words, MEGASCALE_NUM_SLICES='2'
  )
  assert cloud.tpu('status').count('running bash -c') == 2
  for pid in cloud.stub.glob('worker-*/xfactor/runs/train/pid'):
    number = int(pid.read_text())
    assert os.getsid(number) == number  # No terminal that closes ends it.
  told = cloud.tpu('run', 'true', code=1)
  assert 'train is running on xfactor' in told
  cloud.tpu('--name=other', 'run', 'true')
  (cloud.stub / 'end').touch()
  assert cloud.tpu('wait').count('ended 0') == 2
  for worker in ('worker-0', 'worker-1'):
    text = (cloud.stub / f'words-{worker}').read_text()
    assert text.split('\0')[:-1] == words
    log = (cloud.stub / worker / 'xfactor/runs/train/log.txt').read_text()
    assert f'{worker}/xfactor/src\n' in log
    assert 'slices one' in log  # Those of another cluster are not heeded.
    assert 'exit code 0' in log


def test_run_needs_setup_and_logs_follow(cloud):
  cloud.tpu('create')
  assert 'No such file' in cloud.tpu('run', 'true', code=127)
  cloud.tpu('setup')
  cloud.tpu('run', 'bash', '-c', 'echo hello from $HOSTNAME; sleep 60')
  assert cloud.second_line('1') == 'hello from worker-1\n'


def test_stop_lets_the_command_save_and_ends_only_its_own(cloud):
  cloud.up()
  saves = 'trap "echo saved >>$STUB/saved; exit 42" TERM; sleep 60 & wait'
  deaf = 'trap "" TERM; while true; do sleep 0.1; done'
  cloud.tpu('--name=other', 'run', 'sleep', '60')
  cloud.tpu('run', 'bash', '-c', saves)
  assert cloud.tpu('stop').count('ended 42') == 2
  assert (cloud.stub / 'saved').read_text() == 'saved\nsaved\n'
  cloud.tpu('run', 'bash', '-c', deaf)
  assert cloud.tpu('stop', XFACTOR_GRACE='1').count('ended 137') == 2
  assert cloud.tpu('--name=other', 'status').count('running') == 2


def test_a_start_clears_what_its_last_run_left(cloud):
  cloud.plan(workers=1)
  cloud.up()
  script = 'sleep 60 & echo $! >$STUB/orphan; kill -KILL $PPID $$'
  cloud.tpu('run', 'bash', '-c', script)
  cloud.tpu('wait', code=137)  # No exit code was left.
  orphan = pathlib.Path('/proc', (cloud.stub / 'orphan').read_text().strip())
  assert b'sleep' in (orphan / 'cmdline').read_bytes()
  cloud.tpu('run', 'true')
  assert not orphan.exists() or not (orphan / 'cmdline').read_bytes()


def test_a_pid_used_again_is_left_alone(cloud):
  cloud.plan(workers=1)
  cloud.up()
  cloud.tpu('run', 'true')
  cloud.tpu('wait')
  pid = cloud.stub / 'worker-0/xfactor/runs/train/pid'
  with subprocess.Popen(['sleep', '60']) as stranger:
    pid.write_text(str(stranger.pid))
    assert 'ended 0' in cloud.tpu('stop')
    cloud.tpu('run', 'true')
    assert stranger.poll() is None
    stranger.kill()


def test_wait_waits_for_all_and_any_failure_is_one(cloud):
  cloud.up()
  script = '[ $HOSTNAME = worker-1 ] && exit 3; sleep 1; echo late >$STUB/late'
  cloud.tpu('run', 'bash', '-c', script)
  told = cloud.tpu('wait', code=3)
  assert 'worker-0 ended 0' in told
  assert 'worker-1 ended 3' in told
  assert (cloud.stub / 'late').exists()


def test_convert_is_a_run_of_its_own_name(cloud):
  tools = cloud.code / 'tools'
  tools.mkdir()
  (tools / 'convert_datasets.py').write_text(
    'import os, sys\n'
    'path = os.path.join(os.environ["STUB"], "of-" + os.environ["HOSTNAME"])\n'
    'open(path, "w").write(" ".join(sys.argv[1:]))\n'
  )
  cloud.up()
  python = cloud.stub.parent / 'bin' / 'python'
  python.symlink_to(sys.executable)
  cloud.tpu('convert', '--dataset=video', '--source=/gcs/my films')
  cloud.tpu('--name=convert', 'wait')
  for worker in ('worker-0', 'worker-1'):
    text = (cloud.stub / f'of-{worker}').read_text()
    assert text == '--dataset=video --source=/gcs/my films'


# ---------------------------------------------------------------------- babysit


@pytest.mark.parametrize('mode', ['spot', 'queued-spot'])
def test_babysit_goes_on_after_preemption(cloud, mode):
  script = (
    # One of the workers: a second could come after the first was noticed.
    f'{TRY} [ -e again ] || {{ [ $HOSTNAME = worker-1 ] || '
    f'{{ echo changed >{cloud.code}/model.py; touch again preempt; }}; '
    'sleep 60; }; cp ~/xfactor/src/model.py ran'
  )
  told = cloud.tpu('babysit', 'bash', '-c', script, XFACTOR_CREATE=mode)
  assert (cloud.stub / 'ran').read_text() == 'first'
  assert 'was pre-empted' in told
  assert 'ended with exit code 0' in told
  assert cloud.verbs() == ['create', 'scp', 'setup', 'start', 'delete'] + [
    *('create', 'scp', 'setup', 'start')
  ]


def test_babysit_deletes_a_suspended_request(cloud):
  cloud.plan(
    queued=[['WAITING_FOR_RESOURCES', 'SUSPENDING', 'SUSPENDED'], ['ACTIVE']]
  )
  cloud.tpu('babysit', 'true', XFACTOR_CREATE='queued-spot')
  assert cloud.verbs()[:3] == ['create', 'delete', 'create']
  assert cloud.verbs().count('start') == 1


def test_babysit_stops_at_bad_input(cloud):
  told = cloud.tpu('babysit', 'bash', '-c', TRY + 'exit 2', code=2)
  assert 'bad input' in told
  assert cloud.tries() == 1


def test_babysit_runs_again_what_was_saved_or_killed(cloud):
  codes = 'case $(wc -l <tries) in 1) exit 42;; 2) kill -9 $$;; esac'
  script = f'{TRY} sleep 0.2; {codes}'
  told = cloud.tpu('babysit', 'bash', '-c', script, XFACTOR_FAILURES='2')
  ends = [x for x in told.splitlines() if 'exit code' in x]
  assert [int(x.split()[-1]) for x in ends] == [42, 137, 0]
  assert cloud.tries() == 3
  assert cloud.verbs().count('create') == 1


def test_babysit_gives_up_after_failures_in_a_row(cloud):
  told = cloud.tpu(
    'babysit', 'bash', '-c', TRY + 'exit 1', code=1, XFACTOR_FAILURES='3'
  )
  assert '(3 of at most 3)' in told
  assert cloud.tries() == 3


def test_babysit_follows_a_run_and_no_other(cloud):
  cloud.up()
  script = TRY + 'until [ -e end ]; do sleep 0.1; done'
  cloud.tpu('run', 'bash', '-c', script)
  told = cloud.tpu('babysit', 'bash', '-c', script + ' ', code=1)
  assert 'another command' in told
  with subprocess.Popen(
    ['bash', str(ROOT / 'launch/tpu.sh'), 'babysit', 'bash', '-c', script],
    env=cloud.env,
    stderr=subprocess.PIPE,
    text=True,
  ) as follow:
    assert 'following it' in follow.stderr.readline()
    (cloud.stub / 'end').touch()
    assert follow.wait(60) == 0
  assert cloud.tries() == 1


def test_babysit_ends_workers_that_lost_another(cloud):
  script = (
    f'{TRY} [ -e again ] && exit; '
    '[ $HOSTNAME = worker-0 ] && sleep 600; sleep 0.3; touch again; exit 5'
  )
  told = cloud.tpu('babysit', 'bash', '-c', script, XFACTOR_GRACE='1')
  assert 'stopping the others' in told
  assert cloud.tries() == 2


def test_babysit_waits_for_capacity_but_not_for_mistakes(cloud):
  cloud.plan(create_errors=3 * ['There is no more capacity in the zone'])
  cloud.tpu('babysit', 'true', XFACTOR_FAILURES='2')
  assert cloud.verbs().count('create') == 4
  cloud.tpu('delete')
  cloud.plan(create_errors=9 * ['INVALID_ARGUMENT'])
  told = cloud.tpu('babysit', 'true', code=1, XFACTOR_FAILURES='2')
  assert told.count('INVALID_ARGUMENT') == 2


def test_babysit_replaces_workers_that_fall_silent(cloud):
  script = TRY + '[ -e again ] || { touch again unreachable; sleep 60; }'
  told = cloud.tpu('babysit', 'bash', '-c', script, XFACTOR_FAILURES='2')
  assert told.count('not all workers respond') == 2
  assert cloud.verbs().count('create') == 2


def test_babysit_deletes_nothing_that_it_never_reached(cloud):
  cloud.tpu('create')
  (cloud.stub / 'unreachable').touch()
  told = cloud.tpu('babysit', 'true', code=1, XFACTOR_FAILURES='2')
  assert 'cannot be reached' in told
  assert cloud.verbs() == ['create']


def test_babysit_says_when_gcloud_cannot_be_asked(cloud):
  cloud.plan(describe_error='PERMISSION_DENIED')
  told = cloud.tpu('babysit', 'true', code=1)
  assert 'PERMISSION_DENIED' in told
  assert 'gcloud cannot describe xfactor' in told
  assert len(cloud.calls()) == 1
