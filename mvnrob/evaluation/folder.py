"""The folder of a run: a new one, or one that a run goes on in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from .manifest import FILE, Config, Manifest
from .models import LoadedModel
from .results import PARTS, Parts
from .sources import Source


def open_run(
    folder: Path, config: Config, source: Source, loaded: LoadedModel, joins: bool, parts: Parts
) -> str | None:
    """Makes the folder, or finds it fit to go on with, where this process ``joins`` a run that is
    there; otherwise says what is wrong."""
    manifest = Manifest.read(folder)
    if manifest is None:
        if folder.exists() and any(map(_is_foreign, folder.iterdir())):
            return f"evaluate: out must be a new or empty folder, or hold a run, got {folder}"
        parts.prepare()
        names = loaded.class_names or source.class_names
        if Manifest.create(folder, config, {"class_names": names}):
            return None
        manifest = Manifest.read(folder)  # another process was faster
    if different := manifest.differences(config):
        return (
            f"evaluate: out must hold a run of this configuration, got another one in {folder}: "
            + "; ".join(different)
        )
    if not joins:
        return f"evaluate: out must be a new folder unless resume is set, got a run in {folder}"
    if manifest.note_environment():
        warnings.warn(
            "evaluate: this machine or its software differs from the run's first one (see "
            "environments in the manifest): rows may differ in the last bits",
            RuntimeWarning,
            stacklevel=3,
        )
    parts.prepare()
    return None


def no_folder(out: str | Path, error: OSError) -> ValueError:
    return ValueError(
        f"evaluate: out must be a folder that can be made, read and written, got {out} "
        f"({error.strerror or error}: {error.filename or out})"
    )


def _is_foreign(path: Path) -> bool:
    """Whether it is not what a run leaves that is killed before its manifest is written."""
    if path.name == PARTS and path.is_dir():
        return any(path.iterdir())
    return not path.name.startswith(f".{FILE}.")


def config_of(out: str | Path) -> dict[str, Any]:
    """The configuration of the run there; nothing where there is none."""
    try:
        manifest = Manifest.read(Path(out))
    except OSError as error:
        raise no_folder(out, error) from None
    return {} if manifest is None else manifest.content["config"]
