"""Crops of the eight photographs that the demo's packages ship, as a network of 224 x 224 takes them.

The first ones are the photographs' own centre crops, as the demo has them; the others are squares of
random size and place, every other one mirrored, as networks of photographs are trained with. Of a
machine without these packages a file of crops made elsewhere serves (`python -m bench.photo_crops
FILE [COUNT]`).
"""

import sys
from pathlib import Path

import numpy as np
import torch

#: Images that bench/bench_pipeline.py takes on a GPU, and chunks of them.
COUNT = 96
#: Least and largest side of a random crop, as parts of the photograph's shorter side.
SHARES = (0.4, 0.875)


def crops(count, size=224, seed=0):
    """The first ``count`` of an endless row of crops: uint8 ``[count, size, size, 3]``."""
    from PIL import Image

    from mvnrob.models import photos

    kept = photos.load_photos()
    made = [photos.centre_crop(photo.pixels, size) for photo in kept[:count]]
    for at in range(len(kept), count):
        chance = np.random.default_rng((seed, at))
        pixels = kept[at % len(kept)].pixels
        height, width = pixels.shape[:2]
        side = chance.uniform(*SHARES) * min(height, width)
        left, top = chance.uniform(0, width - side), chance.uniform(0, height - side)
        box = (left, top, left + side, top + side)
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box)
        crop = np.asarray(image)
        made.append(crop[:, ::-1] if at // len(kept) % 2 else crop)
    return np.stack(made)


def keep(path, count):
    np.savez_compressed(path, crops=crops(count))


def load(count, path=None):
    """``[count, 3, size, size]`` in [0, 1], from a file that ``keep`` made or from the photographs."""
    if path is None:
        made = crops(count)
    else:
        with np.load(path) as file:
            made = file["crops"][:count]
        if len(made) < count:
            raise ValueError(f"photo_crops: {path} must hold {count} crops, got {len(made)}")
    return torch.from_numpy(np.ascontiguousarray(made)).permute(0, 3, 1, 2).float().div(255)


def main():
    if not 2 <= len(sys.argv) <= 3 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    path = Path(sys.argv[1])
    keep(path, int(sys.argv[2]) if len(sys.argv) > 2 else COUNT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
