"""The training loop, read top to bottom."""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from xfactor.data import pipeline
from xfactor.errors import UserError
from xfactor.evaluation import heldout, motion, reconstruction
from xfactor.training import build as builds
from xfactor.training import (
  checkpoint,
  control,
  data,
  flops,
  guards,
  interruption,
  resume,
  sharding,
  writers,
)
from xfactor.training.goodput import Goodput
from xfactor.training.profiling import Profile
from xfactor.training.step import modules
from xfactor.training.watchdog import Watchdog

T = TypeVar('T')


def train(config: ConfigDict, workdir: str) -> None:
  """Trains a recipe in `workdir`, or goes on where it stopped there.

  Raises:
    UserError: If something that the user can mend is wrong.
    FloatingPointError: If too many steps in a row were not finite.
    interruption.Interrupted: If it was told to stop, and nothing is lost.
  """
  with contextlib.ExitStack() as stack:
    _train(
      config,
      workdir,
      stack.enter_context(interruption.handling()),
      lambda x: stack.enter_context(contextlib.closing(x)),
    )


def _train(
  config: ConfigDict,
  workdir: str,
  interrupted: interruption.Interruption,
  owned: Callable[[T], T],
) -> None:
  """`train`; what it opens is `owned`: closed however it ends."""
  check_devices(config.expected_devices)
  if config.compile_cache:
    keep_programs(workdir)
  main_process = jax.process_index() == 0
  writer = owned(writers.Writer(workdir, active=main_process))
  goodput = owned(Goodput(workdir, active=main_process))
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
  held_out = heldout.Heldout(config, build, lpips)
  moves = None if build.family.posed else motion.Motion(config, build)

  # ------------------------------------ state: go on where it stopped, or begin
  meta = {
    'config': json.loads(config.to_json_best_effort()),
    'data': fingerprint,
  }
  checkpoints = owned(checkpoint.Checkpoints(workdir, keep=config.train.keep))
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
      params, origin = checkpoint.warm_start(
        state.params,
        build.abstract_state().params,
        config.init_from,
        config.init_networks,
      )
      state = dataclasses.replace(state, params=params)
    saved = {}
  first = int(state.step)
  steps = config.train.steps

  # -------------------------------------------- compile: once, and never again
  goodput.add('init', time.monotonic() - began)
  watchdog.progress()
  began = time.monotonic()
  with goodput.measure('compile'):
    programs = {
      whole: build.compile(whole=whole, weights=weights, controlled=True)
      for whole in build.kinds()
    }
  watchdog.progress()
  facts = describe(config, build, stream, programs) | {
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
  # metrics of step n - 1 are fetched, so that the device never waits for us.
  batches = owned(stream.batches(start_step=first))
  requests = control.Requests(config.train.save_minutes, decides=main_process)
  spikes = guards.Spikes(
    config.train.spike_factor, first, saved.get('grad_norms', ())
  )
  diagnosis = guards.Diagnosis(
    workdir, config.train.max_skipped, stream.config, modules(state.params)
  )
  profile = owned(
    Profile(workdir, config.train.profile_at, config.train.profile_steps)
  )
  log = Log(build, requests, spikes, diagnosis)
  bar = owned(
    tqdm.tqdm(
      total=steps,
      initial=first,
      unit='step',
      desc='train',
      disable=not main_process,
      mininterval=0.5 if sys.stderr.isatty() else 30,
    )
  )
  with interrupted.deferred():
    for step in range(first, steps):
      profile.before(step)
      with log.waiting(), goodput.measure('data_wait'):
        batch = next(batches)
        examples = {key: batch[key] for key in ('part', 'clip')}
        batch = {key: batch[key] for key in build.family.arrays}
        batch = sharding.to_mesh(build.mesh, batch)
      whole = build.family.kind(config.seed, step, build.objective)
      told = control.make(
        build.mesh,
        requests.ask(stop=interrupted.requested),
        spikes.limit(step),
      )
      began = time.monotonic()
      with jax.transfer_guard('disallow'):
        state, metrics = programs[whole](state, batch, weights, told)
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
          + ''.join(f', {values[k]} {k}' for k in guards.COUNTED if values[k])
        )
      every = config.train.eval_every
      evaluates = every and done % every == 0 and done < steps
      if (
        done % config.train.save_every == 0
        or done == steps
        or evaluates
        or requests.agreed
      ):
        log.flush()  # What is saved with the state is up to this step.
        with goodput.measure('checkpoint'):
          checkpoints.save(state, meta | {'grad_norms': spikes.norms()})
        requests.saving()
      if checkpoints.poll() is not None:
        requests.saved()
      if requests.agreed == control.STOP:
        checkpoints.wait()
        if main_process:
          print(f'saved at step {done}', file=sys.stderr)
        raise interruption.Interrupted
      if evaluates:
        checkpoints.wait()
        requests.saved()
        with interrupted.at_once(), goodput.measure('evaluation'):
          results = held_out(state.params)
          explained = moves.explained(state.params, done) if moves else {}
          report(results, motion.scalars({}, explained), writer, done)
        if main_process:
          for name, values in explained.items():
            bar.write(f'step {done}: {motion.explained_line(name, values)}')
        watchdog.progress()
        log.restart()
    bar.close()
    checkpoints.wait()

  # ------------------------------------------------------------------ held out
  done = int(state.step)
  transfer, explained, film = {}, {}, None
  with goodput.measure('evaluation'):
    results = held_out(state.params)
    if moves:
      explained = moves.explained(state.params, done)
      transfer = moves.transfer(state.params, done)
      film = moves.films(state.params, done)
  if main_process:
    heldout.write(workdir, done, results, transfer, explained)
    if film:
      motion.write(workdir, film)
  report(results, motion.scalars(transfer, explained), writer, done)
  if main_process:
    print(heldout.tables(results, transfer, explained))
    print(f'checkpoints, curves and pictures are in {workdir}')
    if film:
      print(
        f'{workdir}/transfer.png, .mp4 and .gif: the motion of one clip moves '
        'the scene of another'
      )


def check_devices(expected: int) -> None:
  """Raises UserError if there are fewer than expected; 0 expects nothing."""
  found = jax.device_count()
  if found < expected:
    raise UserError(
      f'config.expected_devices={expected} but there are {found}, '
      f'{jax.local_device_count()} of them in this one of '
      f'{jax.process_count()} process(es): start the command on all hosts '
      '(gcloud ... --worker=all), or give --coordinator, --processes and '
      '--process'
    )


def keep_programs(workdir: str) -> None:
  """Keeps compiled programs with the run, unless JAX was told where to."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', f'{workdir}/compile_cache')


def report(
  results: dict[str, reconstruction.Result],
  scalars: dict[str, float],
  writer: writers.Writer,
  step: int,
) -> None:
  """Writes held-out scores, pictures and curves into the run's log."""
  writer.scalars(step, heldout.scalars(results) | scalars)
  for name, result in results.items():
    for kind, picture in heldout.panels(name, result).items():
      writer.image(step, kind, picture)
  writer.curves()


def describe(
  config: ConfigDict,
  build: builds.Build,
  stream: pipeline.Pipeline,
  programs: dict[bool, Any],
) -> dict[str, Any]:
  """What a run is, for the first lines of its log and for run.json."""
  devices = build.mesh.devices.flatten()
  parameters = sum(math.prod(x.shape) for x in build.functional.shapes.values())
  memory = [
    stats.temp_size_in_bytes + stats.argument_size_in_bytes
    for stats in (program.memory_analysis() for program in programs.values())
    if stats is not None
  ]
  return {
    'devices': f'{len(devices)} x {devices[0].device_kind}, '
    f'{jax.process_count()} process(es), mesh '
    + ' x '.join(f'{k}={v}' for k, v in build.mesh.shape.items()),
    'parameters': f'{parameters:,}',
    'step': f'{build.family.describe(build)}, '
    f'{build.family.flops(build) / 1e12:.3g} TFLOP',
    'memory': f'{max(memory, default=0) / 2**30:.2f} GiB a device for '
    'arguments and temporaries',
    'data': ', '.join(
      f'{part.name}/{part.split} {count} clips'
      for part, count in zip(stream.config.parts, stream.num_clips, strict=True)
    ),
    'config': json.loads(config.to_json_best_effort()),
  }


class Log:
  """Metrics fetched one step late, and where the time went meanwhile."""

  def __init__(
    self,
    build: builds.Build,
    requests: control.Requests,
    spikes: guards.Spikes,
    diagnosis: guards.Diagnosis,
  ):
    """Begins; the others are told what arrives."""
    self._requests = requests
    self._spikes = spikes
    self._diagnosis = diagnosis
    self._frames_per_step = build.batch * build.views
    self._flops = build.family.flops(build)
    kinds = [device.device_kind for device in build.mesh.devices.flat]
    peak = flops.peak_flops(kinds[0])
    # A share of the bfloat16 peak says nothing of a float32 model.
    half = build.model.dtype == 'bfloat16'
    self._peak = peak * len(kinds) if peak and half else None
    self._pending = None
    self.restart()

  def restart(self) -> None:
    """Begins a new interval; what happened since the last is not counted."""
    self._metrics = []
    self._steps = 0
    self._wait = 0.0
    self._started = time.monotonic()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time spent inside as waiting for data."""
    began = time.monotonic()
    yield
    self._wait += time.monotonic() - began

  def add(
    self,
    step: int,
    metrics: dict[str, jax.Array],
    examples: dict[str, np.ndarray],
  ) -> None:
    """Takes a step's metrics, still on the way, and fetches the last step's."""
    self.flush()
    self._pending = step, metrics, examples
    self._steps += 1

  def flush(self) -> None:
    """Fetches what is pending.

    Raises:
      FloatingPointError: If too many steps in a row were not finite.
    """
    if self._pending is None:
      return
    step, metrics, examples = self._pending
    self._pending = None
    module_norms = metrics.pop('module_norms')
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self._requests.hear(int(values.pop('request')))
    self._spikes.add(values['grad_norm'])
    self._diagnosis.take(step, values, module_norms, examples)
    self._metrics.append(values)

  def read(self) -> dict[str, float]:
    """Means of what has arrived, the interval's speed; begins a new one.

    Steps that were not finite are not in the means.
    """
    if not self._metrics:  # One step so far, and it is on its way.
      self.flush()
    seconds = time.monotonic() - self._started
    finite = [x for x in self._metrics if not x['skipped']] or self._metrics
    values = {
      key: float(np.mean([metrics[key] for metrics in finite]))
      for key in self._metrics[0]
    }
    values |= {
      key: int(sum(metrics[key] for metrics in self._metrics))
      for key in guards.COUNTED
    }
    values |= {
      'learning_rate': self._metrics[-1]['learning_rate'],
      'steps_per_s': self._steps / seconds,
      'frames_per_s': self._steps * self._frames_per_step / seconds,
      'data_wait': self._wait / seconds,
    }
    if self._peak:
      values['mfu'] = self._steps * self._flops / seconds / self._peak
    self.restart()
    return values
