"""XFactor in PyTorch, for inference: one file, without xfactor or JAX.

  from safetensors.torch import load_file
  model = XFactor(json.loads(Path('model.json').read_text())['model'])
  model.load_state_dict(load_file('model.safetensors'))
  pose = model.encode(reference, frame)
  picture = model.render(context, context_poses, pose)

Pictures are float32 [batch, height, width, 3] in [-1, 1]. A latent pose is that
of a frame relative to a reference, whose own pose is zero. The networks are
those of arXiv 2510.13063; every layer is as in xfactor/nn/layers.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def gelu(x):
  return F.gelu(x, approximate='tanh')


class MLP(nn.Module):
  """Linear layers with GELU between them."""

  def __init__(self, *sizes):
    super().__init__()
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairs)

  def forward(self, x):
    for layer in self.layers[:-1]:
      x = gelu(layer(x))
    return self.layers[-1](x)


class Scale(nn.Module):
  """A learned gain of each channel."""

  def __init__(self, *shape):
    super().__init__()
    self.scale = nn.Parameter(torch.ones(shape))

  def forward(self, x):
    return x * self.scale


class HeadNorm(Scale):
  """RMSNorm over the channels of each head."""

  def forward(self, x):
    mean_square = x.square().mean(-1, keepdim=True)
    return super().forward(x * torch.rsqrt(mean_square + 1e-5))


class Block(nn.Module):
  """Attention over all views and within each view, then an MLP."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.norm_attention = nn.LayerNorm(width, eps=1e-6, bias=False)
    self.qkv = nn.Linear(width, 6 * width, bias=False)
    head = heads, width // heads
    self.norm_q, self.norm_k = HeadNorm(*head), HeadNorm(*head)
    self.norm_self_q, self.norm_self_k = HeadNorm(*head), HeadNorm(*head)
    self.out = nn.Linear(2 * width, width)
    self.scale_attention = Scale(width)
    self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
    self.mlp = MLP(width, 4 * width, width)
    self.scale_mlp = Scale(width)

  def forward(self, x, rope):
    b, v, t, c = x.shape
    q, k, v_, self_q, self_k, self_v = (
      part.unflatten(-1, (self.heads, -1))
      for part in self.qkv(self.norm_attention(x)).chunk(6, -1)
    )
    q, k = turn(self.norm_q(q), rope), turn(self.norm_k(k), rope)
    self_q = turn(self.norm_self_q(self_q), rope)
    self_k = turn(self.norm_self_k(self_k), rope)
    across = attend(*(a.flatten(1, 2) for a in (q, k, v_)))
    within = attend(*(a.flatten(0, 1) for a in (self_q, self_k, self_v)))
    both = [across.reshape(b, v, t, c), within.reshape(b, v, t, c)]
    x = x + self.scale_attention(self.out(torch.cat(both, -1)))
    return x + self.scale_mlp(self.mlp(gelu(self.norm_mlp(x))))


def attend(q, k, v):
  """Full attention; [batch, tokens, heads, channels]."""
  q, k, v = (a.transpose(1, 2) for a in (q, k, v))
  return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def turn(x, rope):
  """Rotates neighbouring pairs of channels; `rope` is (cos, sin) of [t, d]."""
  cos, sin = (table[:, None] for table in rope)
  even, odd = x[..., 0::2], x[..., 1::2]
  return x * cos + torch.stack([-odd, even], -1).flatten(-2) * sin


class Trunk(nn.Module):
  """Blocks and a final norm."""

  def __init__(self, model, depth):
    super().__init__()
    self.head_dim = model['features'] // model['heads']
    self.grid = model['position_grid']
    self.blocks = nn.ModuleList(
      Block(model['features'], model['heads']) for _ in range(depth)
    )
    self.norm = nn.LayerNorm(model['features'], eps=1e-6)

  def forward(self, x, rows, columns):
    device, extra = x.device, x.shape[2] - rows * columns
    place = torch.cartesian_prod(
      torch.arange(rows, device=device), torch.arange(columns, device=device)
    ).float()[..., None]
    if self.grid:
      octave = 2.0 ** (torch.arange(x.shape[-1] // 4, device=device) % 4)
      angles = place * (math.pi / self.grid * octave)
      waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
      x = x + F.pad(waves, (0, 0, 0, extra))
    quarter = self.head_dim // 4
    steps = torch.arange(quarter, device=device) / quarter
    angles = (place * 10000.0**-steps).flatten(-2).repeat_interleave(2, -1)
    angles = F.pad(angles, (0, 0, 0, extra))  # Registers are not turned.
    rope = angles.cos(), angles.sin()
    for block in self.blocks:
      x = block(x, rope)
    return x

  def read(self, x):
    return gelu(self.norm(x))


class PoseEncoder(nn.Module):
  """Latent poses of views relative to the first."""

  def __init__(self, model):
    super().__init__()
    width = model['features']
    self.embed = nn.Linear(3 * model['patch_size'] ** 2, width)
    self.registers = nn.Parameter(torch.zeros(model['registers'], width))
    self.trunk = Trunk(model, model['encoder_layers'])
    self.head = MLP(2 * width, 4 * width, width, model['pose_dim'])

  def forward(self, patches, rows, columns):
    registers = self.registers.expand(*patches.shape[:2], -1, -1)
    x = torch.cat([self.embed(patches), registers], 2)
    z = self.trunk.read(self.trunk(x, rows, columns)[:, :, patches.shape[2]])
    first = z[:, :1].expand_as(z)
    return self.head(torch.cat([z, first], -1)) - self.head(
      torch.cat([first, first], -1)
    )


class Renderer(nn.Module):
  """The patches of a view from patches of others and latent poses."""

  def __init__(self, model):
    super().__init__()
    width, patch = model['features'], 3 * model['patch_size'] ** 2
    pose = model['pose_dim']
    self.embed_context = MLP(patch + pose, 4 * width, width)
    self.embed_target = MLP(pose, 4 * width, width)
    self.trunk = Trunk(model, model['renderer_layers'])
    self.head = MLP(width, 4 * width, width, patch)

  def forward(self, context, poses, rows, columns):
    tokens = context.shape[2]
    poses = poses[:, :, None].expand(-1, -1, tokens, -1)
    x = torch.cat([context, poses[:, :-1]], -1)
    x = torch.cat([self.embed_context(x), self.embed_target(poses[:, -1:])], 1)
    x = self.trunk.read(self.trunk(x, rows, columns)[:, -1])
    return 2 * torch.sigmoid(self.head(x)) - 1


class XFactor(nn.Module):
  """Pose encoder and renderer; `model` is that of model.json."""

  def __init__(self, model):
    super().__init__()
    self.patch = model['patch_size']
    self.pose_encoder = PoseEncoder(model)
    self.renderer = Renderer(model)

  def encode(self, reference, frame):
    """Returns the pose [b, z] of frames [b, h, w, 3] from references."""
    pair = torch.stack([reference, frame], 1)
    return self.pose_encoder(*self.patches(pair))[:, 1]

  def render(self, context, context_poses, pose):
    """Draws pictures [b, h, w, 3].

    Args:
      context: Views of each scene, [b, c, h, w, 3].
      context_poses: Their poses, [b, c, z]; zero is the reference's.
      pose: Pose to draw from, [b, z].
    """
    poses = torch.cat([context_poses, pose[:, None]], 1)
    patches, rows, columns = self.patches(context)
    drawn = self.renderer(patches, poses, rows, columns)
    drawn = drawn.unflatten(1, (rows, columns))
    drawn = drawn.unflatten(-1, (self.patch, self.patch, 3))
    return drawn.transpose(2, 3).flatten(3, 4).flatten(1, 2)

  def patches(self, images):
    """Cuts [b, v, h, w, 3] into patches [b, v, t, p], and their grid."""
    rows, columns = (n // self.patch for n in images.shape[2:4])
    cut = images.unflatten(3, (columns, self.patch))
    cut = cut.unflatten(2, (rows, self.patch)).transpose(3, 4)
    return cut.flatten(4).flatten(2, 3), rows, columns
