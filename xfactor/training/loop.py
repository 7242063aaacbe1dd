"""The training loop, from top to bottom."""

import contextlib
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from xfactor import streams
from xfactor.data import files
from xfactor.data.pipeline import training as pipeline_training
from xfactor.errors import UserError
from xfactor.methods import scores as methods_scores
from xfactor.methods.base import StepKind
from xfactor.nn import sharding
from xfactor.training import build as builds
from xfactor.training import control, data
from xfactor.training import held_out as held_out_lib
from xfactor.training import state as state_lib
from xfactor.training.resilience import (
  checkpoint_files,
  divergence,
  lock,
  resume,
  shutdown,
)
from xfactor.training.resilience import checkpoints as checkpoints_lib
from xfactor.training.resilience import requests as requests_lib
from xfactor.training.resilience.watchdog import Watchdog
from xfactor.training.step import modules
from xfactor.training.telemetry import log as log_lib
from xfactor.training.telemetry import trackers, writers
from xfactor.training.telemetry.goodput import Goodput
from xfactor.training.telemetry.profiling import Profile

T = TypeVar('T')


MakeProbe = Callable[[ConfigDict, builds.Build], held_out_lib.Probe]


def train(
  config: ConfigDict, workdir: str, make_probe: MakeProbe | None = None
) -> None:
  """Trains a recipe in `workdir`, or resumes the run there.

  Args:
    config: The recipe.
    workdir: Folder of the run.
    make_probe: Makes the probe of evaluations, such as
      `evaluation.motion.make`.

  Raises:
    UserError: If there is a problem that the user can fix.
    FloatingPointError: If too many steps in a row were not finite.
    shutdown.Interrupted: If a stop was requested; nothing is lost.
  """
  with contextlib.ExitStack() as stack:
    _train(
      config,
      workdir,
      make_probe or (lambda config, build: held_out_lib.Probe()),
      stack.enter_context(shutdown.handling()),
      lambda x: stack.enter_context(contextlib.closing(x)),
    )


def _train(
  config: ConfigDict,
  workdir: str,
  make_probe: MakeProbe,
  interrupted: shutdown.Interruption,
  owned: Callable[[T], T],
) -> None:
  """Implements `train`; resources are `owned`, which closes them at the end."""
  check_devices(config.expected_devices)
  main_process = jax.process_index() == 0
  if main_process:
    writers.check(workdir)
    trackers.check(config.log)
  if config.compile_cache:
    keep_programs(workdir)
  began = time.monotonic()

  # ---------------------------------------------------- model, optimizer, loss
  build = builds.build(config)
  weights = builds.load_perceptual(
    config, build.mesh, required=build.needs_lpips
  )

  # ---------------------------------------------------------------------- data
  data.make(config)
  watchdog = owned(
    Watchdog(workdir, config.train.watchdog_minutes, jax.process_index())
  )
  stream = data.open_pipeline(config)
  fingerprint = stream.fingerprint()
  lpips = {'lpips': weights} if weights and config.eval.lpips else {}
  held_out = held_out_lib.HeldOut(config, build, lpips)
  probe = make_probe(config, build)

  # ----------------------------- the workdir: nothing is written before here
  owned(
    checkpoint_files.together(lambda: lock.Lock(workdir, active=main_process))
  )
  recipe = json.loads(config.to_json_best_effort())
  writer = owned(
    writers.Writer(workdir, active=main_process, log=config.log, config=recipe)
  )
  goodput = owned(Goodput(workdir, active=main_process))

  # --------------------------------------------------- state: resume, or start
  meta = {'config': recipe, 'data': fingerprint}
  checkpoints = owned(
    checkpoints_lib.Checkpoints(
      workdir, keep=config.train.keep, keep_step=build.decay_start
    )
  )
  checkpoints.check_room(build.abstract_state())
  if checkpoints.resumable():
    state, saved = checkpoints.restore(build.abstract_state())
    origin = f'{checkpoints.folder / str(int(state.step))}'
    changes = resume.check(saved, meta, origin, allow=config.allow_change)
    if changes:
      origin += f', with {", ".join(changes)}'
  else:
    state = build.init()
    origin = f'random, seed {config.seed}'
    if config.init_from:
      params, origin = checkpoints_lib.warm_start(
        state.params,
        build.abstract_state().params,
        config.init_from,
        config.init_networks,
      )
      state = dataclasses.replace(state, params=params)
      if state.ema:
        state = state_lib.restart_average(state)
    saved = {}
  first = int(state.step)
  steps = config.train.steps

  # ------------------------------------------------------ compile all programs
  goodput.add('init', time.monotonic() - began)
  watchdog.progress()
  began = time.monotonic()
  with goodput.measure('compile'):
    compiled = {
      kind: build.compile(kind, weights=weights, controlled=True)
      for kind in build.step_kinds()
    }
  watchdog.progress()
  facts = describe(config, build, stream, compiled) | {
    'state': origin,
    'compile': f'{time.monotonic() - began:.1f} s',
  }
  writer.header(facts)
  if main_process:
    for key, value in facts.items():
      if key != 'config':
        print(f'{key:>11}  {value}', flush=True)

  # ---------------------------------------------------------------- train loop
  # The order within an iteration matters: step n is dispatched before the
  # metrics of step n - 1 are fetched, so that the device never waits.
  batches = owned(stream.batches(start_step=first))
  requests = requests_lib.Requests(
    config.train.save_minutes, decides=main_process
  )
  spikes = divergence.Spikes(
    config.train.spike_factor, first, saved.get('grad_norms', ())
  )
  diagnosis = divergence.Diagnosis(
    workdir, config.train.max_skipped, stream.config, modules(state.params)
  )
  profile = owned(
    Profile(workdir, config.train.profile_at, config.train.profile_steps)
  )
  log = log_lib.Log(build, requests, spikes, diagnosis)
  log.restore(saved.get('log', ()))
  every = config.train.eval_every

  def evaluate(done: int) -> None:
    with interrupted.at_once(), goodput.measure('evaluation'):
      results = held_out(state.eval_params)
      findings = probe.brief(state.eval_params, done)
      report(results, findings, writer, done)
    if main_process:
      for line in itertools.chain(*findings.lines.values()):
        bar.write(f'step {done}: {line}')
    watchdog.progress()
    log.restart()

  bar = owned(
    streams.progress(
      total=steps,
      initial=first,
      unit='step',
      desc='train',
      disable=not main_process,
    )
  )
  with interrupted.deferred():
    if first:
      writer.resume(first)
    due = first and every and first % every == 0 and first < steps
    if due and not resume.is_evaluated(workdir, first):  # It was interrupted.
      evaluate(first)
    for step in range(first, steps):
      profile.before(step)
      with log.waiting(), goodput.measure('data_wait'):
        batch = next(batches)
        examples = {key: batch[key] for key in ('part', 'clip')}
        batch = {key: batch[key] for key in build.method.arrays}
        batch = sharding.to_mesh(build.mesh, batch)
      kind = build.method.step_kind(config.seed, step, build.objective)
      control_args = control.make(
        build.mesh,
        requests.ask(stop=interrupted.requested),
        spikes.limit(step),
      )
      began = time.monotonic()
      with jax.transfer_guard('disallow'):
        state, metrics = compiled[kind](state, batch, weights, control_args)
        log.add(step, metrics, examples)
      done = step + 1
      goodput.add('step', time.monotonic() - began, step=done)
      profile.after(step, state.step)
      watchdog.progress()
      bar.update()
      if done == steps:
        log.flush()
      if done % config.train.log_every == 0 or done == steps:
        bad = {k: n for k, n in batches.bad.items() if n}
        values = log.read() | {'bad_examples': batches.bad_count()}
        values |= {f'bad_examples/{name}': n for name, n in bad.items()}
        writer.scalars(done, values)
        goodput.flush()
        bar.set_postfix_str(
          f'loss {values["loss"]:.4f}, {values["frames_per_s"]:.0f} frames/s'
          + ''.join(f', {n} unreadable of {name}' for name, n in bad.items())
          + ''.join(
            f', {values[k]} {k}' for k in divergence.COUNTED if values[k]
          )
        )
      evaluates = every and done % every == 0 and done < steps
      if (
        done % config.train.save_every == 0
        or done in (build.decay_start, steps)
        or evaluates
        or requests.agreed
      ):
        log.flush()  # The norms saved with the state include this step.
        with goodput.measure('checkpoint'):
          kept = {'grad_norms': spikes.norms(), 'log': log.kept()}
          if evaluates:  # Which starts a new interval.
            kept['log'] = []
          checkpoints.save(state, meta | kept)
        writer.flush()
        goodput.flush(upload=True)
        requests.saving()
      if checkpoints.poll() is not None:
        requests.saved()
      if requests.agreed == control.STOP:
        checkpoints.wait()
        if main_process:
          print(f'saved at step {done}', file=sys.stderr)
        raise shutdown.Interrupted
      if evaluates:
        checkpoints.wait()
        requests.saved()
        evaluate(done)
    bar.close()
    checkpoints.wait()

  # ------------------------------------------------------------------ held out
  done = int(state.step)
  with goodput.measure('evaluation'):
    results = held_out(state.eval_params)
    findings = probe.full(state.eval_params, done)
  report(results, findings, writer, done)
  if main_process:
    held_out_lib.write(workdir, done, results, findings)
    pictures = findings.save(workdir) if findings.save else ''
    print(held_out_lib.tables(results, findings))
    print(f'checkpoints, curves and pictures are in {workdir}')
    if pictures:
      print(pictures)


def check_devices(expected: int) -> None:
  """Raises UserError if there are fewer devices than expected; 0: any."""
  found = jax.device_count()
  if found < expected:
    raise UserError(
      f'config.expected_devices={expected} but there are {found} devices, '
      f'{jax.local_device_count()} of them local, in '
      f'{jax.process_count()} process(es): start the command on all hosts '
      '(gcloud ... --worker=all), or give --coordinator, --processes and '
      '--process'
    )


def keep_programs(workdir: str) -> None:
  """Keeps compiled programs in the workdir, unless JAX has a cache folder."""
  if jax.config.jax_compilation_cache_dir is None:
    if files.is_remote(workdir):  # XLA's own caches are files.
      jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
    jax.config.update('jax_compilation_cache_dir', f'{workdir}/compile_cache')


def report(
  results: dict[str, methods_scores.Result],
  findings: held_out_lib.Findings,
  writer: writers.Writer,
  step: int,
) -> None:
  """Writes held-out scores, pictures and curves into the run's log."""
  writer.scalars(step, held_out_lib.scalars(results) | findings.scalars)
  for name, result in results.items():
    for kind, picture in held_out_lib.panels(name, result).items():
      writer.image(step, kind, picture)
  writer.curves()


def describe(
  config: ConfigDict,
  build: builds.Build,
  stream: pipeline_training.Pipeline,
  compiled: dict[StepKind, Any],
) -> dict[str, Any]:
  """Describes a run for the first lines of its log and for run.json."""
  devices = build.mesh.devices.flatten()
  parameters = sum(math.prod(x.shape) for x in build.functional.shapes.values())
  memory = [
    stats.temp_size_in_bytes + stats.argument_size_in_bytes
    for stats in (step.memory_analysis() for step in compiled.values())
    if stats is not None
  ]
  return {
    'devices': f'{len(devices)} x {devices[0].device_kind}, '
    f'{jax.process_count()} process(es), mesh '
    + ' x '.join(f'{k}={v}' for k, v in build.mesh.shape.items()),
    'parameters': f'{parameters:,}',
    'step': f'{build.method.describe(build)}, '
    f'{build.method.flops(build) / 1e12:.3g} TFLOP',
    'memory': f'{max(memory, default=0) / 2**30:.2f} GiB a device for '
    'arguments and temporaries',
    'data': ', '.join(
      f'{part.name}/{part.split} {count} clips'
      for part, count in zip(stream.config.parts, stream.num_clips, strict=True)
    ),
    'config': json.loads(config.to_json_best_effort()),
  }
