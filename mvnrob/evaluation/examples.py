"""Examples of a data set as a model's raw inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .images import to_tensor
from .models import LoadedModel
from .sources import Example, Source


def read_tensor(example: Example, source: Source, loaded: LoadedModel) -> Tensor:
    """The example's x as the model's raw input; pictures are cut to its size."""
    x = example.x
    if not isinstance(x, Tensor):
        x = to_tensor(x, loaded) if hasattr(x, "convert") else torch.as_tensor(x)
    if not x.is_floating_point():
        raise ValueError(
            f"evaluate: data must be floating point or pictures, got {x.dtype} from {source.name}"
        )
    return x


def first_readable(source: Source, loaded: LoadedModel) -> Tensor:
    """The first example that can be read: the shape and dtype that all must have."""
    last: Exception | None = None
    for index in range(len(source)):
        try:
            example = source.read(index)
        except Exception as error:  # noqa: BLE001  (readers raise what they like)
            last = error
        else:
            pictures = loaded.transform is not None or loaded.input_size is not None
            if not (pictures and hasattr(example.x, "convert")):
                return read_tensor(example, source, loaded)
            try:
                return read_tensor(example, source, loaded)
            except Exception as error:  # noqa: BLE001  (decoders raise what they like, too)
                last = error
    raise ValueError(
        f"evaluate: data must hold a readable example, got {last or 'none'} in {source.name}"
    )
