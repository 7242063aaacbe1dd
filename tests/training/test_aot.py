"""Reading XLA's programs, and what is said of topologies that do not fit."""

import jax
import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.methods.base import StepKind
from xfactor.training import aot, build

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


def test_collectives_are_counted_with_the_turns_of_loops():
  found = aot.collectives(HLO)
  assert {k: (x.count, x.bytes, x.sent) for k, x in found.items()} == {
    'all-gather': (1, 3 * 64, 3 * 48),
    'reduce-scatter': (1, 3 * 256, 3 * 192),
    'all-reduce': (1, 50, 2 * 25),
    'all-to-all': (1, 32, 28),
    'collective-permute': (1, 8, 8),
    'over the network': (1, 12, 0),
  }


@pytest.mark.parametrize('most', [0, 1, 2, 3, 7, 8, 9, 99, 100, 1000])
@pytest.mark.parametrize('known', [0, 1, 5])
def test_the_largest_that_fits_is_found_in_few_tries(most, known):
  tried = []

  def fits(n):
    tried.append(n)
    return n <= most

  if known > most:
    return
  assert aot.largest(fits, 100, known) == min(most, 100)
  assert len(tried) == len(set(tried)) <= 14
  assert all(known < n <= 100 for n in tried)


@pytest.fixture
def environment(monkeypatch):
  """Takes back what `describe` sets: other tests start processes."""
  for key, value in aot.ENVIRONMENT.items():
    monkeypatch.setenv(key, value)


@pytest.mark.usefixtures('environment')
@pytest.mark.parametrize('name', ['v9:2x2', 'v5e:3x5', 'v5e', 'h100:8'])
def test_unknown_topologies_are_refused_with_those_that_are(name):
  with pytest.raises(UserError, match=f'--topology={name} .*v5e:16x16'):
    aot.describe(name, 1)


@pytest.mark.usefixtures('environment')
def test_topologies_have_a_device_a_chip():
  assert len(aot.describe('v4:2x2x1', 1)) == 4
  devices = aot.describe('v5e:2x2', 2)
  assert [device.slice_index for device in devices] == [0] * 4 + [1] * 4


def stand_in(compile_):
  """A build whose compilation is another function."""
  built = build.build(small.recipe('data', mesh__data=8))
  object.__setattr__(built, 'compile', compile_)
  return built


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
  def fail(*_, **__):
    raise jax.errors.JaxRuntimeError(message)

  report = aot.compile_step(stand_in(fail), StepKind.WHOLE)
  assert (report.program, report.fits) == ('whole', False)
  assert (report.needed, report.capacity) == (pytest.approx(needed), 15.75)
  assert 'DOES NOT FIT' in str(report)


def test_other_failures_are_raised():
  def fail(*_, **__):
    raise jax.errors.JaxRuntimeError('INTERNAL: Mosaic failed')

  with pytest.raises(jax.errors.JaxRuntimeError, match='Mosaic'):
    aot.compile_step(stand_in(fail), StepKind.SPLIT)
