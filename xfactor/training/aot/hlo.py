"""Reads the text of optimized XLA programs."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEAD = re.compile(r'^(ENTRY )?%([\w.\-]+) \(.*\{$')
_NAME = re.compile(r'^\s*(ROOT )?%([\w.\-]+) = ')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_ARRAY = re.compile(r'\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|\w+_computation)=%([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
# In the backend config of CPUs and GPUs; TPUs have a constant in the condition.
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of a program.

  Attributes:
    name: Unique name.
    shape: Shape of the result, as text.
    opcode: Operation.
    operands: Names of the operands.
    attributes: Everything behind the operands.
    root: Whether its computation returns it.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool

  @functools.cached_property
  def sizes(self) -> list[int]:
    """Bytes of each array of the result."""
    return [n for n, _ in arrays(self.shape)]

  @functools.cached_property
  def called(self) -> list[str]:
    """Names of the computations that it calls."""
    names = _CALLED.findall(self.attributes)
    for branches in _BRANCHES.findall(self.attributes):
      names += re.findall(r'%([\w.\-]+)', branches)
    return names

  def attribute(self, pattern: str) -> str:
    """Returns the first group of a pattern, or '' if it is not found."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class Program:
  """A program by computations.

  Attributes:
    computations: Instructions by name, for each computation.
    entry: Name of the computation that is run.
  """

  computations: dict[str, dict[str, Instruction]]
  entry: str

  @functools.cached_property
  def turns(self) -> dict[str, int]:
    """How often each computation runs in a step, callers first."""
    calls = {name: list(self._calls(name)) for name in self.computations}
    order, seen = [], set()

    def visit(name):
      if name in seen:
        return
      seen.add(name)
      for callee, _ in calls[name]:
        visit(callee)
      order.append(name)

    visit(self.entry)
    turns = collections.Counter({self.entry: 1})
    for name in reversed(order):
      for callee, times in calls[name]:
        turns[callee] += turns[name] * times
    return turns

  def instructions(self) -> Iterator[tuple[str, Instruction, int]]:
    """Yields computation, instruction and runs in a step of all that runs."""
    for name, turns in self.turns.items():
      for instruction in self.computations[name].values():
        yield name, instruction, turns

  def _calls(self, name: str) -> Iterator[tuple[str, int]]:
    for instruction in self.computations[name].values():
      times = 1
      if instruction.opcode == 'while':
        known = instruction.attribute(_KNOWN_TRIPS.pattern)
        condition = instruction.attribute(r'condition=%([\w.\-]+)')
        times = int(known) if known else self._limit(condition)
      for callee in instruction.called:
        if callee in self.computations:
          yield callee, times

  def _limit(self, condition: str) -> int:
    """Returns the length of a scan, the constant in its loop condition."""
    limits = [
      int(x.operands[0])
      for x in self.computations[condition].values()
      if x.opcode == 'constant' and x.operands[0].isdigit()
    ]
    return max(limits, default=1)


def parse(text: str) -> Program:
  """Parses the text of a compiled program."""
  computations, body, entry = {}, {}, ''
  for line in text.splitlines():
    if head := _HEAD.match(line):
      body = computations[head[2]] = {}
      entry = head[2] if head[1] else entry
    elif name := _NAME.match(line):
      instruction = _instruction(name, line)
      body[instruction.name] = instruction
  return Program(computations, entry)


def arrays(shape: str) -> list[tuple[int, str]]:
  """Returns bytes and layout of each array of a shape."""
  return [
    (
      math.prod(int(n) for n in dims.split(',') if n)
      * (1 if kind == 'pred' else max(int(bits or 0) // 8, bits != '')),
      layout,
    )
    for kind, bits, dims, layout in _ARRAY.findall(shape)
    if kind != 'token'
  ]


def parts(shape: str) -> list[str]:
  """Returns the elements of a tuple, or the shape itself."""
  if not shape.startswith('('):
    return [shape]
  found, depth, start = [], 0, 1
  for i, character in enumerate(shape):
    depth += character in '([{'
    depth -= character in ')]}'
    if (character == ',' and depth == 1) or depth == 0:
      found.append(shape[start:i].strip())
      start = i + 1
  return found


def _instruction(name: re.Match, line: str) -> Instruction:
  start = name.end()
  if line[start] == '(':
    end = _closing(line, start) + 1
  else:
    end = line.index(' ', start)
  opcode = _OPCODE.match(line, end)
  first = opcode.end()
  last = _closing(line, first - 1)
  inside = line[first:last]
  operands = re.findall(r'%([\w.\-]+)', inside) or [inside]
  return Instruction(
    name=name[2],
    shape=line[start:end],
    opcode=opcode[1],
    operands=tuple(operands),
    attributes=line[last + 1 :],
    root=bool(name[1]),
  )


def _closing(line: str, start: int) -> int:
  """Returns the position of the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(line)):
    depth += line[i] == '('
    depth -= line[i] == ')'
    if depth == 0:
      return i
  return len(line)
