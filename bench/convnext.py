"""A ConvNeXt, for benchmarks: no trained weights.

The shape is that of Liu et al. (arXiv 2201.03545), ConvNeXt-T unless other numbers are given, written as its
authors write it: norms over channels by permuting, layer scale.
"""

import torch
from torch import nn

from bench.random_weights import draw_weights

#: Of the layers inside a block, to the block's width.
EXPANSION = 4


class ChannelNorm(nn.LayerNorm):
    """Over the channels of ``[b, C, h, w]``."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, EXPANSION * width), nn.GELU(), nn.Linear(EXPANSION * width, width)
        )
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x):
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """``[B, 3, side, side] -> [B, classes]``, in eval mode; weights from a generator of their own."""

    def __init__(self, blocks=(3, 3, 9, 3), widths=(96, 192, 384, 768), classes=1000, seed=0):
        super().__init__()
        parts = [nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6)]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            if stage:
                before = widths[stage - 1]
                parts += [ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)]
            parts += [Block(width) for _ in range(count)]
        self.body = nn.Sequential(*parts)
        self.norm, self.head = nn.LayerNorm(widths[-1], eps=1e-6), nn.Linear(widths[-1], classes)
        draw_weights(self, seed)

    def forward(self, x):
        return self.head(self.norm(self.body(x).mean((2, 3))))
