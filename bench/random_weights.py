"""Weights for networks that nobody trained."""

import torch


def draw_weights(model, seed):
    """Normal numbers from a generator of their own, of the variance that keeps a layer's output as large as its
    input; vectors stay as they are. In eval mode, without gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            spread = parameter[0].numel() ** -0.5
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    model.eval().requires_grad_(False)
