"""A residual network of bottleneck blocks with ResNet-50's shape, for benchmarks: no trained weights.

The shape is that of He, Zhang, Ren & Sun (arXiv 1512.03385), table 1, with the stride of a stage's first
block in its 3 x 3 convolution, as torchvision has it: 25,557,032 parameters, 4.1e9 multiply-adds at
224 x 224.
"""

import math

import torch
from torch import nn

#: A block's output has so many times the channels of its 3 x 3 convolution.
EXPANSION = 4


class Bottleneck(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        out = EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = None
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """``[B, 3, side, side] -> [B, classes]``; ``features`` gives what the last layer is given.

    Weights by He's rule from a generator of its own, in eval mode, without gradients of their own; batch
    norms know nothing of any data before :func:`calibrate`.
    """

    def __init__(self, blocks=(3, 4, 6, 3), width=64, classes=1000, seed=0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            wide = width * 2**stage
            for at in range(count):
                stages.append(Bottleneck(channels, wide, 2 if stage and not at else 1))
                channels = EXPANSION * wide
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                gain = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
                module.weight.data = gain * torch.randn(module.weight.shape, generator=generator)
            elif isinstance(module, Bottleneck):
                # less than the shortcut's: a change of the input grows slowly from block to block
                module.bn3.weight.data.fill_(0.2)
        self.eval().requires_grad_(False)

    def features(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        return self.stages(x).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


def calibrate(model, x):
    """Means and variances of all batch norms from one batch of inputs."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(x)
    model.eval()
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def set_last_layer(model, images_of, per_class, batch):
    """The last layer by linear discriminant analysis of the features: class means, in the metric of
    the covariance within the classes (three tenths of its mean variance added).

    ``images_of(first, count)`` gives the images ``first ...``, of which image i is of class i modulo
    the number of classes; ``per_class`` of each are seen. The logits' differences are those of log
    likelihoods, divided by the number of features.
    """
    classes, width = model.fc.weight.shape
    device = model.fc.weight.device
    sums = torch.zeros(classes, width, dtype=torch.float64, device=device)
    products = torch.zeros(width, width, dtype=torch.float64, device=device)
    total = classes * per_class
    with torch.no_grad():
        for first in range(0, total, batch):
            count = min(batch, total - first)
            features = model.features(images_of(first, count)).double()
            label = torch.arange(first, first + count, device=device) % classes
            sums.index_add_(0, label, features)
            products += features.T @ features
        means = sums / per_class
        within = products / total - means.T @ means / classes
        within.diagonal().add_(0.3 * within.diagonal().mean())
        centre = means.mean(0)
        weight = torch.linalg.solve(within, (means - centre).T).T
        bias = -0.5 * ((means - centre) * weight).sum(1) - weight @ centre
        model.fc.weight.copy_(weight / width)
        model.fc.bias.copy_(bias / width)
