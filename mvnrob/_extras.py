"""Imports of optional packages, with one message that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def require(module: str, package: str, extra: str) -> ModuleType:
    """Imports ``module``; when it is missing, names ``package`` and ``pip install mvnrob[extra]``.

    An error inside an installed package passes through unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise MissingExtra(
            f"mvnrob: the package {package} is needed here and not installed; "
            f"`pip install --no-build-isolation 'mvnrob[{extra}]'` brings it"
        ) from None
