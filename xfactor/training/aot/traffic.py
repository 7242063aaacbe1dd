"""Counts the bytes that the collectives of a program send."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from xfactor.training.aot import hlo

KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
)
# Between slices, hosts of TPUs send parts of all-reduces.
BETWEEN_SLICES = 'send'
_PASSES = {'all-reduce': 2}


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A collective of a program, in all its turns of a step.

  Attributes:
    kind: One of `KINDS`, or `BETWEEN_SLICES`.
    axes: Axes of the mesh over which it communicates, for example 'fsdp'.
    bytes: Size of the full arrays that it gathers, reduces or exchanges.
    sent: Bytes sent by a device, with ring algorithms.
    network: Bytes of those that leave the host or slice.
    source: Operation of the model that it belongs to.
  """

  kind: str
  axes: str
  bytes: float
  sent: float
  network: float
  source: str = ''


def transfers(
  program: hlo.Program, mesh: Mapping[str, int], hosts: Sequence[int]
) -> list[Transfer]:
  """Lists the collectives of an optimized program.

  TPUs reduce-scatter in fusions named all-reduce-scatter, which contain an
  all-reduce. Their asynchronous collectives appear several times with the same
  channel.

  Args:
    program: Program.
    mesh: Devices along each axis of the mesh.
    hosts: Host (or slice) of each device, in the order of the mesh.
  """
  found, seen = [], set()
  for computation, instruction, turns in program.instructions():
    kind = instruction.opcode.removesuffix('-start')
    source = instruction.attribute(r'op_name="([^"]*)"')
    if kind == 'send' and '_megascale_transfer' in instruction.attributes:
      size = turns * max(instruction.sizes)
      found.append(Transfer(BETWEEN_SLICES, 'data', size, size, size, source))
    if kind not in KINDS:
      continue
    channel = instruction.attribute(r'channel_id=(\d+)')
    if channel and kind != 'collective-permute':
      if (kind, channel) in seen:
        continue
      seen.add((kind, channel))
    groups = _groups(instruction, len(hosts))
    ways = groups.shape[1]
    started = instruction.opcode.endswith('-start')
    size = turns * _full_size(instruction.shape, kind, ways, started)
    if 'all-reduce-scatter' in computation and kind == 'all-reduce':
      kind = 'reduce-scatter'
    share = (ways - 1) / ways
    across = len({hosts[i] for i in groups[0]})
    # Within hosts first, as NCCL's trees and hierarchical rings do.
    outside = (across - 1) / ways
    if kind == 'collective-permute':
      moved = [a != b for a, b in groups]
      share = sum(moved) / len(hosts)
      outside = sum(hosts[a] != hosts[b] for a, b in groups) / len(hosts)
    passes = _PASSES.get(kind, 1)
    found.append(
      Transfer(
        kind,
        _axes(groups, mesh),
        size,
        sent=passes * size * share,
        network=passes * size * outside,
        source=source,
      )
    )
  return found


def total(
  found: Iterable[Transfer], key: Callable[[Transfer], str]
) -> dict[str, float]:
  """Sums the sent bytes by a property of the transfers, largest first."""
  sums = {}
  for transfer in found:
    sums[key(transfer)] = sums.get(key(transfer), 0.0) + transfer.sent
  return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _full_size(shape: str, kind: str, ways: int, started: bool) -> float:
  """Returns the bytes of the full arrays of a collective.

  The shape of a start instruction has operands and results, except that of an
  all-reduce, which has only results.
  """
  everything = sum(n for n, _ in hlo.arrays(shape))
  if kind == 'all-reduce':
    return everything
  if started and kind == 'collective-permute':
    operand = hlo.parts(shape)[0]  # And two numbers of the context.
    return sum(n for n, _ in hlo.arrays(operand))
  if started and kind == 'all-to-all':
    return everything / 2
  if started:
    return everything * ways / (1 + ways)
  return everything * ways if kind == 'reduce-scatter' else everything


def _groups(instruction: hlo.Instruction, devices: int) -> np.ndarray:
  """Returns the groups of devices, or the pairs of a permutation."""
  text = instruction.attributes
  listed = re.search(
    r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}', text
  )
  if listed:
    groups = re.findall(r'\{([\d,]+)\}', listed[1])
    return np.array([[int(n) for n in group.split(',')] for group in groups])
  if found := re.search(
    r'(?:replica_groups|source_target_pairs)=\[(\d+),(\d+)\]<=(\S+?),? ',
    text + ' ',
  ):
    return _iota(found[3]).reshape(int(found[1]), int(found[2]))
  if found := re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\))\))? '
    r'\{([^}]*)\}',
    text,
  ):
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    ids = np.arange(math.prod(sizes.values()))
    if found[2]:
      ids = _iota(found[2])
    return _named_groups(ids.reshape(*sizes.values()), list(sizes), found[3])
  return np.arange(devices)[None]


def _iota(text: str) -> np.ndarray:
  """Reads [4,2]T(1,0): numbers in this shape, transposed."""
  shape = [int(n) for n in re.search(r'\[([\d,]+)\]', text)[1].split(',')]
  ids = np.arange(math.prod(shape)).reshape(shape)
  if turned := re.search(r'T\(([\d,]+)\)', text):
    ids = ids.transpose([int(n) for n in turned[1].split(',')])
  return ids.reshape(-1)


def _named_groups(ids: np.ndarray, names: list[str], text: str) -> np.ndarray:
  """Groups devices along axes, of which 'x':(2)3 is a part of size 3."""
  for name, before, size in re.findall(r"'(\w+)':\((\d+)\)(\d+)", text):
    at, before, size = names.index(name), int(before), int(size)
    after = ids.shape[at] // before // size
    ids = ids.reshape(
      *ids.shape[:at], before, size, after, *ids.shape[at + 1 :]
    )
    names = [*names[:at], f'{name}<', name, f'{name}>', *names[at + 1 :]]
  axes = re.findall(r"'(\w+)'", text)
  inside = [i for i, name in enumerate(names) if name in axes]
  ways = math.prod(ids.shape[i] for i in inside)
  ids = np.moveaxis(ids, inside, range(-len(inside), 0))
  return ids.reshape(-1, ways)


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
  """Names the axes of the mesh along which the members of a group differ."""
  places = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)
  differ = (places != places[:, :1]).any(axis=(0, 1))
  names = [name for name, yes in zip(mesh, differ, strict=True) if yes]
  return ' x '.join(names) or 'none'
