"""Reading XLA's programs, and what is said of topologies that do not fit."""

import jax
import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.methods.base import StepKind
from xfactor.training import build, chips
from xfactor.training.aot import (
  hlo,
  kernels,
  report,
  search,
  topologies,
  traffic,
)

# What TPU programs look like: a scan of three turns that gathers (twice the
# same, as asynchronous ones appear) and scatters, a network of two slices.
HLO = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: f32[16,4]) -> f32[4,4] {
  %all-reduce.1 = f32[16,4]{1,0:T(8,128)} all-reduce(%input), channel_id=3, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%start (param: bf16[2,4]) -> bf16[8,4] {
  %all-gather.1 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%param), \
channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (wide: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %fusion.1 = bf16[8,4] fusion(%x), kind=kCustom, calls=%start
  %all-gather.2 = bf16[8,4]{1,0} all-gather(%x), channel_id=2, \
replica_groups=[2,4]<=[8], dimensions={0}
  %fusion.2 = f32[4,4] fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (wide: (s32[], f32[16,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[16,4]) while(%t), condition=%condition, body=%body
  %all-reduce.2 = (f32[10]{0}, bf16[5]{0}) all-reduce(%a, %b), channel_id=4, \
replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) \
{'axis_0'}, to_apply=%add
  %all-to-all.1 = f32[8]{0} all-to-all(%a), channel_id=5, \
replica_groups=[1,8]<=[8], dimensions={0}
  %collective-permute-start = (f32[2]{0}, f32[2]{0}, u32[]{:S(2)}) \
collective-permute-start(%a), source_target_pairs={{0,1}}
  %send.1 = (f32[3]{0}, u32[], token[]) send(%a, %after), \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
""".replace('\\\n', '')


MESH = {'data': 2, 'fsdp': 4}


def sent(text):
  """(full bytes, sent bytes) by kind and axes."""
  found = traffic.transfers(hlo.parse(text), MESH, (0,) * 8)
  assert len(found) == len({(x.kind, x.axes) for x in found})
  return {(x.kind, x.axes): (x.bytes, x.sent) for x in found}


def test_collectives_are_counted_with_the_turns_of_loops():
  assert sent(HLO) == {
    ('all-gather', 'fsdp'): (3 * 64, 3 * 48),
    ('reduce-scatter', 'fsdp'): (3 * 256, 3 * 192),
    ('all-reduce', 'fsdp'): (50, 2 * 25),
    ('all-to-all', 'data x fsdp'): (32, 28),
    ('collective-permute', 'fsdp'): (8, 8 / 8),
    ('send', 'data'): (12, 12),
  }


# GPUs start collectives, several arrays at once, and say how often loops turn.
GPU = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%dot_computation (p: bf16[8,4], q: bf16[4,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[4,4]{1,0} parameter(1)
  ROOT %dot = bf16[8,4]{1,0} dot(%p, %q), lhs_contracting_dims={1}
}

%slice_computation (w: f32[24,8,4], i: s32[]) -> f32[1,8,4] {
  %w = f32[24,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = f32[1,8,4]{2,1,0} dynamic-slice(%w, %i), \
dynamic_slice_sizes={1,8,4}
}

%update_computation (w: f32[24,8,4], u: f32[1,8,4]) -> f32[24,8,4] {
  %w = f32[24,8,4]{2,1,0} parameter(0)
  %u = f32[1,8,4]{2,1,0} parameter(1)
  ROOT %update = f32[24,8,4]{2,1,0} dynamic-update-slice(%w, %u, %zero)
}

%body (t: (s32[], f32[24,8,4])) -> (s32[], f32[24,8,4]) {
  %w = f32[24,8,4]{2,1,0} get-tuple-element(%t), index=1
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[8,4]{1,0} bitcast(%t)
  %all-gather-start = ((f32[2], bf16[2,4]{1,0}), (f32[8], bf16[8,4]{1,0})) \
all-gather-start(%a, %b), channel_id=3, replica_groups=mesh['axis_0'=2,\
'axis_1'=4] {'axis_1'}, dimensions={0}
  %all-gather-done = (f32[8], bf16[8,4]{1,0}) all-gather-done(\
%all-gather-start)
  %reduce-scatter-start = ((bf16[8,4]{1,0}), (bf16[2,4]{1,0})) \
reduce-scatter-start(%x), channel_id=4, replica_groups=[2,4]<=[8], \
dimensions={0}, to_apply=%add
  %all-reduce-start = (f32[2]{0}, f32[3]{0}) all-reduce-start(%a, %b), \
channel_id=5, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %gemm = bf16[8,4]{1,0} fusion(%x, %x), kind=kCustom, \
calls=%dot_computation, backend_config={"fusion_backend_config":{"kind":\
"__triton_nested_gemm_fusion"}}
  %read = f32[1,8,4]{2,1,0} fusion(%w, %i), kind=kLoop, \
calls=%slice_computation
  %write = f32[24,8,4]{2,1,0} fusion(%w, %read), kind=kLoop, \
calls=%update_computation
  %attend = (bf16[8,4]{1,0}, u8[0]{0}) custom-call(%x), \
custom_call_target="__cudnn$fmhaSoftmax"
}

%condition (t: (s32[], f32[24,8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[24,8,4]) while(%t), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %lt = bf16[8,4]{1,0} custom-call(%a), custom_call_target=\
"__cublas$lt$matmul"
}
""".replace('\\\n', '')


def test_asynchronous_collectives_have_operands_and_results():
  assert sent(GPU) == {
    ('all-gather', 'fsdp'): (24 * 96, 24 * 72),
    ('reduce-scatter', 'fsdp'): (24 * 64, 24 * 48),
    ('all-reduce', 'data'): (24 * 20, 24 * 20),
  }


def test_kernels_have_names():
  assert kernels.names(hlo.parse(GPU)) == {
    'element-wise and reductions': 2,
    'cuBLAS': 1,
    'Triton GEMM': 1,
    'cuDNN attention': 1,
  }


def test_kernels_move_what_they_read_and_write():
  """Of an array that is sliced or updated in a loop, the slice."""
  moved = kernels.moved(hlo.parse(GPU))
  assert moved['Triton GEMM'] == 24 * 3 * 64
  assert moved['element-wise and reductions'] == 24 * (4 * 128 + 4)  # An index.


def test_groups_of_parts_of_axes_are_read():
  text = HLO.replace(
    ", device_ids=([4,2]T(1,0)) {'axis_0'}", " {'axis_1':(2)2}"
  )
  assert sent(text)['all-reduce', 'fsdp'] == (50, 2 * 25)


@pytest.mark.parametrize('most', [0, 1, 2, 3, 7, 8, 9, 99, 100, 1000])
@pytest.mark.parametrize('known', [0, 1, 5])
def test_the_largest_that_fits_is_found_in_few_tries(most, known):
  tried = []

  def fits(n):
    tried.append(n)
    return n <= most

  if known > most:
    return
  assert search.largest(fits, 100, known) == min(most, 100)
  assert len(tried) == len(set(tried)) <= 14
  assert all(known < n <= 100 for n in tried)


@pytest.fixture
def environment(monkeypatch):
  """Takes back what `describe` sets: other tests start processes."""
  for key, value in topologies.ENVIRONMENT.items():
    monkeypatch.setenv(key, value)


@pytest.mark.usefixtures('environment')
@pytest.mark.parametrize(
  'name', ['v9:2x2', 'v5e:3x5', 'v5e', 'h100', 'h300:8', 'h100:2x2x2', 'cpu:0']
)
def test_unknown_topologies_are_refused_with_those_that_are(name):
  with pytest.raises(UserError, match=f'--topology={name} .*v5e:16x16.*h200:8'):
    topologies.describe(name)


def test_what_is_missing_is_told(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match=r'pip install -e \.\[cuda\]'):
    topologies.describe('h200:8')
  with pytest.raises(UserError, match=r'pip install -e \.\[tpu\]'):
    topologies.describe('v5e:2x2')
  assert len(jax.devices()) == 8  # JAX has started.
  with pytest.raises(UserError, match='device_count=16'):
    topologies.describe('cpu:16')
  with pytest.raises(UserError, match='write h200:2x8 for 2 hosts'):
    topologies.describe('h200:8', 2)


@pytest.mark.usefixtures('environment')
def test_topologies_have_a_device_a_chip():
  assert len(topologies.describe('v4:2x2x1').devices) == 4
  assert topologies.describe('v5e:2x2', 2).hosts == [0] * 4 + [1] * 4
  assert topologies.describe('cpu:2x4').hosts == [0] * 4 + [1] * 4
  assert topologies.gpus() == ['a100', 'b200', 'h100', 'h200']


@pytest.mark.skipif(
  not topologies.has_cuda(), reason='the extra [cuda] is not installed'
)
@pytest.mark.parametrize('name', topologies.gpus())
def test_gpus_are_described(name):
  place = topologies.describe(f'{name}:2x4')
  assert place.platform == 'gpu'
  assert place.hosts == [0] * 4 + [1] * 4
  assert chips.chip(place.devices[0].device_kind)


class StandIn:
  """A traced step whose compilation fails."""

  def __init__(self, message):
    self.message = message

  def lower(self):
    return self

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.message)


def compile_failing(message, kind):
  built = build.build(small.recipe('data', mesh__data=8))
  object.__setattr__(built, 'trace', lambda *_, **__: StandIn(message))
  return report.compile_step(built, kind, topologies.describe('cpu:8'))


@pytest.mark.parametrize(
  ('message', 'needed'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (97.85G) exceeds available HBM (15.75G).',
      97.85,
    ),
    ('E1000: CompileTimeHbmOom: (2.50T) exceeds available HBM (15.75G)', 2560),
  ],
)
def test_what_does_not_fit_is_reported_not_raised(message, needed):
  found = compile_failing(message, StepKind.WHOLE)
  assert (found.program, found.fits) == ('whole', False)
  assert found.memory_bytes == pytest.approx(needed * 2**30)
  assert found.capacity_bytes == 15.75 * 2**30
  assert 'DOES NOT FIT' in str(found)
  assert f'{needed - 15.75:.2f} GiB too much' in search.over(found)


def test_other_failures_are_raised():
  with pytest.raises(jax.errors.JaxRuntimeError, match='Mosaic'):
    compile_failing('INTERNAL: Mosaic failed', StepKind.SPLIT)
