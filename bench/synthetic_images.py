"""Images of made-up classes from a seed, any number of them, on any device.

A class is a colour and a smooth random pattern of colours. An image of it shows both with a random
contrast and shift, mixed with those of another class, under texture of a random strength: some images
are plain, others near two classes.
"""

import math

import torch

#: Cosine waves of a pattern, and the most periods of one across an image.
_WAVES, _PERIODS = 4, 12.0


class SyntheticImages:
    """Image i is of class i mod ``classes``: ``[3, side, side]`` in [0, 1], the same whatever else is
    asked for, on one type of device."""

    def __init__(self, classes, side, seed=0, device="cpu"):
        self.classes, self.side, self.seed = classes, side, seed
        self.device = torch.device(device)
        # on the CPU, so that the classes are the same everywhere
        g = torch.Generator().manual_seed(seed)
        shape = (classes, 3, _WAVES)
        direction = 2 * math.pi * torch.rand(shape, generator=g)
        periods = 0.5 + (_PERIODS - 0.5) * torch.rand(shape, generator=g)
        waves = [periods * direction.cos(), periods * direction.sin()]
        waves.append(torch.rand(shape, generator=g))
        waves.append(torch.randn(shape, generator=g))
        waves.append(torch.randn(classes, 3, 1, 1, generator=g))
        self._across, self._down, self._phase, self._size, self._colour = (
            w.to(device) for w in waves
        )

    def patterns(self, labels, right, down):
        """Of classes ``[n]``, shifted by parts of an image: ``[n, 3, side, side]``, variance about 2."""
        at = torch.arange(self.side, device=self.device) / self.side
        u, v = (at + shift[:, None] for shift in (right, down))
        u = u[:, None, None] * self._across[labels][..., None]  # [n, 3, waves, side]
        v = v[:, None, None] * self._down[labels][..., None]
        u, v = 2 * math.pi * (u + self._phase[labels][..., None]), 2 * math.pi * v
        size = self._size[labels][..., None] * math.sqrt(2 / _WAVES)
        # cos(u + v) = cos u cos v - sin u sin v: products of small matrices
        waves = (size * v.cos()).mT @ u.cos() - (size * v.sin()).mT @ u.sin()
        return waves + self._colour[labels]

    def images(self, first, count, salt=0):
        """Images ``first ...`` of the stream ``salt``: ``[count, 3, side, side]``."""
        generators = [
            torch.Generator().manual_seed(hash((self.seed, salt, i)) & (2**62 - 1))
            for i in range(first, first + count)
        ]
        draw = torch.stack([torch.rand(8, generator=g) for g in generators]).to(self.device)
        labels = torch.arange(first, first + count, device=self.device) % self.classes
        other = (labels + 1 + (draw[:, 0] * (self.classes - 1)).long()) % self.classes
        shift = 0.05 * (draw[:, 1:5] - 0.5)
        share = 0.3 * draw[:, 5, None, None, None]
        mixed = (1 - share) * self.patterns(labels, shift[:, 0], shift[:, 1])
        mixed += share * self.patterns(other, shift[:, 2], shift[:, 3])
        contrast = (0.06 + 0.09 * draw[:, 6])[:, None, None, None]
        texture = torch.stack([self._texture(g) for g in generators])
        strength = (0.01 + 0.03 * draw[:, 7])[:, None, None, None]
        return (0.5 + contrast * mixed + strength * texture).clamp_(0, 1)

    def _texture(self, generator):
        """Noise of one image, its own on every type of device."""
        if self.device.type != "cpu":
            seed = generator.initial_seed()
            generator = torch.Generator(self.device).manual_seed(seed)
        shape = (3, self.side, self.side)
        return torch.randn(shape, generator=generator, device=self.device)
