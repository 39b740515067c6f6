"""A vision transformer of DeiT's shape, for benchmarks: no trained weights.

The shape is that of Dosovitskiy et al. (arXiv 2010.11929) in the sizes of Touvron et al. (arXiv 2012.12877,
table 1), written as timm writes it: norms first, attention by torch's scaled_dot_product_attention, the class
token's last state to the last layer.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from bench.random_weights import draw_weights

#: Of the layers inside a block, to the block's width.
EXPANSION = 4


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, EXPANSION * width), nn.GELU(), nn.Linear(EXPANSION * width, width)
        )

    def attended(self, x):
        b, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(b, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, tokens, width))

    def forward(self, x):
        x = x + self.attended(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """``[B, 3, side, side] -> [B, classes]``, in eval mode; weights from a generator of their own."""

    def __init__(self, side=224, patch=16, width=192, blocks=12, heads=3, classes=1000, seed=0):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)
        draw_weights(self, seed)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])
