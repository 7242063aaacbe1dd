"""A gcloud that has a TPU of folders: records calls, runs ssh's commands here.

$STUB is its memory: calls.jsonl; plan.json, what a test wants to happen; a home
for each worker: worker-W, or slice-S-worker-W of several slices. A file
$STUB/preempt, which a run can make, takes the TPU away.
Flags are those of the real commands (Google Cloud SDK 528), others are refused.
"""

import glob
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

HERE = pathlib.Path(os.environ['STUB'])
COMMON = {'--project', '--zone', '--quiet', '--format'}
CREATE = {'--accelerator-type', '--spot', '--network', '--labels'}
SSH = {'--worker', '--internal-ip'}
FLAGS = {
  ('tpu-vm', 'create'): CREATE | {'--version'},
  ('tpu-vm', 'describe'): set(),
  ('tpu-vm', 'delete'): set(),
  ('tpu-vm', 'ssh'): SSH | {'--command', '--ssh-flag'},
  ('tpu-vm', 'scp'): SSH,
  ('queued-resources', 'create'): CREATE
  | {'--node-id', '--node-prefix', '--node-count', '--runtime-version'},
  ('queued-resources', 'describe'): set(),
  ('queued-resources', 'delete'): {'--force'},
}


def load(name, default):
  path = HERE / name
  return json.loads(path.read_text()) if path.exists() else default


def save(name, value):
  partial = HERE / f'{name}-{os.getpid()}'  # Others read it meanwhile.
  partial.write_text(json.dumps(value))
  partial.replace(HERE / name)


def fail(message):
  print(f'ERROR: (gcloud.compute.tpus) {message}', file=sys.stderr)
  sys.exit(1)


def kill_processes():
  """Kills every run that worker.sh has started below $STUB."""
  mark = f'XFACTOR_RUN={HERE}/'.encode()
  for path in glob.glob('/proc/[0-9]*/environ'):
    try:
      if mark in pathlib.Path(path).read_bytes():
        os.kill(int(path.split('/')[2]), signal.SIGKILL)
    except OSError:
      continue


def remove():
  kill_processes()
  for home in HERE.glob('*worker-*'):
    shutil.rmtree(home)


def preempt(tpu):
  if (HERE / 'preempt').exists():
    (HERE / 'preempt').unlink(missing_ok=True)
    remove()
    tpu['node'] = 'PREEMPTED'
    if 'queued' in tpu:
      tpu['queued'] = ['SUSPENDED']
    save('tpu.json', tpu)


def create(kind, tpu, plan, slices):
  errors = plan.get('create_errors', [])
  if errors:
    error = errors.pop(0)
    save('plan.json', plan)
    fail(error)
  if tpu:
    fail('ALREADY_EXISTS')
  if kind == 'queued-resources':
    requests = plan.get('queued', [])
    tpu['queued'] = requests.pop(0) if requests else ['ACTIVE']
    save('plan.json', plan)
  tpu['node'] = 'READY'
  tpu['slices'] = slices
  (HERE / 'unreachable').unlink(missing_ok=True)
  for prefix in [f'slice-{i}-' for i in range(slices)] if slices else ['']:
    for worker in range(plan.get('workers', 2)):
      (HERE / f'{prefix}worker-{worker}').mkdir()


def describe(kind, name, tpu, plan):
  if 'describe_error' in plan:
    fail(plan['describe_error'])
  key = 'queued' if kind == 'queued-resources' else 'node'
  if key not in tpu:
    fail('NOT_FOUND: Resource was not found')
  if key == 'node':
    print(plan.get('nodes', {}).get(name, tpu['node']))
  else:
    print(tpu['queued'][0])
    tpu['queued'] = tpu['queued'][1:] or tpu['queued']


def homes(node, worker, tpu):
  prefix = f'slice-{node[-1]}-' if tpu['slices'] else ''
  found = sorted(HERE.glob(f'{prefix}worker-*'))
  return found if worker == 'all' else [found[int(worker)]]


def ssh(node, worker, tpu, command):
  """All workers at once; the exit code is that of the first that failed."""
  processes = [
    subprocess.Popen(
      ['bash', '-c', command],
      cwd=home,
      env={**os.environ, 'HOME': str(home), 'HOSTNAME': home.name},
    )
    for home in homes(node, worker, tpu)
  ]
  codes = [process.wait() for process in processes]
  return next((code for code in codes if code), 0)


def main():
  arguments = sys.argv[1:]
  with (HERE / 'calls.jsonl').open('a') as f:
    f.write(json.dumps(arguments) + '\n')
  group, section, kind, verb, *rest = arguments
  assert (group, section) == ('compute', 'tpus')
  flags = dict(x.partition('=')[::2] for x in rest if x.startswith('-'))
  unknown = flags.keys() - COMMON - FLAGS[kind, verb]
  if unknown:
    fail(f'unrecognized arguments: {unknown}')
  names = [x for x in rest if not x.startswith('-')]
  plan = load('plan.json', {})
  tpu = load('tpu.json', {})
  preempt(tpu)
  code = 0
  if verb == 'create':
    create(kind, tpu, plan, int(flags.get('--node-count', 0)))
  elif verb == 'describe':
    describe(kind, names[0], tpu, plan)
  elif verb == 'delete':
    remove()
    tpu = {}
  elif tpu.get('node') != 'READY':
    fail('the TPU is in an unusable state')
  elif (HERE / 'unreachable').exists():
    code = 255
  elif verb == 'scp':
    node = names[-1].partition(':')[0]
    for home in homes(node, flags['--worker'], tpu):
      for source in names[:-1]:
        shutil.copy(source, home)
  else:
    code = ssh(names[0], flags['--worker'], tpu, flags['--command'])
  if verb not in ('ssh', 'scp'):  # Of several slices at the same time.
    save('tpu.json', tpu)
  sys.exit(code)


if __name__ == '__main__':
  main()
