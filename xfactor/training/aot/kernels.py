"""Names the kernels of a program, and counts what they read and write."""

import collections
import re
from collections.abc import Iterator

from xfactor.training.aot import hlo

_NAMES = (
  (r'__cudnn\$fmha\w*Backward', 'cuDNN attention, backward'),
  (r'__cudnn\$fmha', 'cuDNN attention'),
  (r'__cudnn\$conv', 'cuDNN convolution'),
  (r'__cudnn', 'cuDNN'),
  (r'__cublas', 'cuBLAS'),
  (r'__triton\w*gemm', 'Triton GEMM'),
  (r'__onednn', 'oneDNN'),
)
_MOSAIC = 'Mosaic'  # Pallas; for example Splash attention.
_PRODUCT, _OTHER = 'matrix product', 'element-wise and reductions'
PRODUCTS = (
  *('cuDNN attention', 'cuDNN attention, backward', 'cuDNN convolution'),
  *('cuBLAS', 'Triton GEMM', 'Splash', _MOSAIC, _PRODUCT),
)
# They compute nothing, or are counted as traffic.
_FREE = re.compile(
  r'(parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|'
  r'call|after-all|partition-id|replica-id|iota|opt-barrier|domain|send|recv|'
  r'.*-done|.*-update|(all|reduce|collective)-\w+(-start)?)$'
)
_CALLERS = ('while', 'conditional', 'call')


def names(program: hlo.Program) -> dict[str, int]:
  """Counts the instructions of a program by kernel."""
  found = collections.Counter(
    _kernel(program, x) for _, x, _ in _launched(program)
  )
  return dict(found.most_common())


def moved(program: hlo.Program) -> dict[str, float]:
  """Returns bytes read and written in a step, by kernel.

  An operand of which a fusion reads a slice counts as the slice. What lies in
  the fast memory of a TPU does not count.
  """
  found = collections.Counter()
  for computation, instruction, turns in _launched(program):
    kernel = _kernel(program, instruction)
    found[kernel] += turns * _bytes(program, computation, instruction)
  return dict(found.most_common())


def _launched(
  program: hlo.Program,
) -> Iterator[tuple[str, hlo.Instruction, int]]:
  """Yields what runs by itself, that is, not as a part of a fusion."""
  todo, seen = [program.entry], set()
  while todo:
    computation = todo.pop()
    if computation in seen:
      continue
    seen.add(computation)
    for instruction in program.computations[computation].values():
      if instruction.opcode in _CALLERS:
        condition = instruction.attribute(r'condition=%([\w.\-]+)')
        todo += [x for x in instruction.called if x != condition]
      if not _FREE.match(instruction.opcode):
        yield computation, instruction, program.turns[computation]


def _kernel(program: hlo.Program, instruction: hlo.Instruction) -> str:
  target = instruction.attribute(r'custom_call_target="([^"]*)"')
  if target == 'tpu_custom_call':
    return 'Splash' if 'splash' in instruction.attributes else _MOSAIC
  label = target or instruction.attribute(r'"kind":"(__[^"]*)"')
  for pattern, name in _NAMES:
    if re.match(pattern, label):
      return name
  if target:
    return target
  return _PRODUCT if _multiplies(program, instruction) else _OTHER


def _multiplies(program: hlo.Program, instruction: hlo.Instruction) -> bool:
  if instruction.opcode in ('dot', 'convolution'):
    return True
  return instruction.opcode == 'fusion' and any(
    _multiplies(program, x)
    for name in instruction.called
    for x in program.computations[name].values()
  )


def _bytes(
  program: hlo.Program, computation: str, instruction: hlo.Instruction
) -> float:
  body = program.computations[computation]
  operands = [
    _outside(body[name].shape) if name in body else 0
    for name in instruction.operands
  ]
  if instruction.opcode.endswith('-start'):  # A copy to or from fast memory.
    return operands[0] + _outside(hlo.parts(instruction.shape)[0])
  result = _outside(instruction.shape)
  if instruction.opcode == 'dynamic-slice':
    return 2 * result
  if instruction.opcode == 'dynamic-update-slice':
    return 2 * operands[1]
  if instruction.opcode == 'fusion':
    inner = program.computations[instruction.called[0]]
    operands = _read(inner, operands)
    result = _written(inner, result)
  return result + sum(operands)


def _outside(shape: str) -> int:
  """Returns the bytes of a shape in HBM."""
  return sum(n for n, layout in hlo.arrays(shape) if 'S(1)' not in layout)


def _read(inner: dict[str, hlo.Instruction], operands: list[int]) -> list[int]:
  users = collections.defaultdict(list)
  for instruction in inner.values():
    for name in instruction.operands:
      users[name].append(instruction)

  def read(name):
    """Bytes read of a value, through bitcasts, or None for all."""
    total = 0
    for user in users[name]:
      if user.opcode in ('bitcast', 'reshape'):
        part = read(user.name)
      elif user.opcode in ('dynamic-slice', 'slice', 'gather'):
        part = sum(user.sizes)
      elif user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
        part = 0
      else:
        part = None
      if part is None:
        return None
      total += part
    return total

  found = list(operands)
  for instruction in inner.values():
    if instruction.opcode == 'parameter':
      number = int(instruction.operands[0])
      part = read(instruction.name)
      if part is not None and number < len(found):
        found[number] = min(found[number], part)
  return found


def _written(inner: dict[str, hlo.Instruction], result: int) -> int:
  """Bytes written: of an array that is updated in place, the update."""
  root = next(x for x in inner.values() if x.root)
  roots = root.operands if root.opcode == 'tuple' else [root.name]
  total = 0
  for name in roots:
    x = inner[name]
    while x.opcode == 'bitcast' and x.operands[0] in inner:
      x = inner[x.operands[0]]
    if x.opcode == 'dynamic-update-slice':
      total += sum(inner[x.operands[1]].sizes)
    else:
      total += sum(x.sizes)
  return min(total, result)
