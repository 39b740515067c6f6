"""What the counted floors of a GPU (cuda_floor*.py) write: results that say that nothing was measured."""

import json
import time

from bench import cuda_environment


def write(path, kernel, command, data, lines, counted="instructions"):
    """``data`` to the .json file ``path``, ``lines`` of Markdown beside it, both with their origin."""
    about = {
        "status": f"predicted from counted {counted}, nothing measured",
        "device": "H200: 132 multiprocessors at 1.98 GHz",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": cuda_environment.commit(),
        "nvcc": cuda_environment.nvcc_version(),
        "command": f"python -m bench.{command}",
    }
    path.write_text(json.dumps({**about, **data}, indent=1) + "\n")
    head = [f"# {kernel} on one H200: predicted, not measured", ""]
    text = "\n".join([*head, *(f"- {name}: {value}" for name, value in about.items()), "", *lines])
    path.with_suffix(".md").write_text(text + "\n")
    print(text)
