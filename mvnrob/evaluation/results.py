"""Parts and tables of a run: Parquet files that are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._extras import require
from ..meter import PHASES
from .manifest import Config, Manifest, clear_temporaries, probe, write_atomically
from .models import EXTRA

RESULTS, TIMINGS, PARTS = "results.parquet", "timings.parquet", "parts"
#: What ``seconds`` of a chunk are made of: waiting for examples, and the phases of ``robustness``.
SECONDS = ("seconds_read", *(f"seconds_{phase}" for phase in PHASES))
#: Rows that have no probability say why in ``status``, beside the names of :class:`mvnrob.Status`.
UNREADABLE, OUT_OF_MEMORY, HALF_PRECISION = "UNREADABLE", "OUT_OF_MEMORY", "HALF_PRECISION"


def arrow():
    parquet = require("pyarrow.parquet", "pyarrow", EXTRA)
    return require("pyarrow", "pyarrow", EXTRA), parquet


def schema(config: Config):
    """One row per example, method and sigma, in this order."""
    pa, _ = arrow()
    fields = [
        ("index", pa.int64()),
        ("name", pa.string()),
        ("method", pa.string()),
        ("sigma", pa.float64()),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("target", pa.int64()),
        ("prob", pa.float64()),
        ("complement", pa.float64()),
        ("error", pa.float64()),
        ("lower", pa.float64()),
        ("upper", pa.float64()),
        ("runner_up", pa.int64()),
        ("status", pa.string()),
        ("n_screened", pa.int64()),
        ("forward", pa.int64()),
        ("jvp", pa.int64()),
        ("vjp", pa.int64()),
        ("note", pa.string()),
    ]
    metadata = {"mvnrob.config": json.dumps(config.as_json(), sort_keys=True)}
    return pa.schema(fields, metadata=metadata)


def timing_schema():
    """One row per chunk and method, and one without a method for the rest of the chunk's time."""
    pa, _ = arrow()
    return pa.schema(
        [
            ("chunk", pa.int64()),
            ("method", pa.string()),
            ("examples", pa.int64()),
            ("seconds", pa.float64()),
            *((name, pa.float64()) for name in SECONDS),
            ("rank", pa.int64()),
        ]
    )


def _write(path: Path, table) -> None:
    pa, parquet = arrow()
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_atomically(path, sink.getvalue().to_pybytes())


def _read(path: Path, columns: list[str] | None = None):
    """A part or a whole table, or some columns of it; a damaged one is named."""
    pa, parquet = arrow()
    try:
        return parquet.read_table(path, columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"evaluate: out must hold readable tables, got {path} ({error}); delete it and resume"
        ) from None


class Parts:
    """The parts of a run: for each finished chunk its rows, and its timings in a file of its own."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.parts = folder / PARTS

    def prepare(self) -> None:
        """Makes the folders, and sees before anything long runs that they can be written."""
        self.parts.mkdir(parents=True, exist_ok=True)
        clear_temporaries(self.folder, self.parts)
        probe(self.folder)
        probe(self.parts)

    def _path(self, chunk: int) -> Path:
        return self.parts / f"{chunk:08d}.parquet"

    def finished(self) -> set[int]:
        """Chunks whose part is there. A part is renamed into place, so what is there is whole."""
        there = {int(p.stem) for p in self.parts.glob("[0-9]*.parquet") if p.stem.isdecimal()}
        return {chunk for chunk in there if chunk < self.config.chunks}

    def write(self, chunk: int, rows: list[dict[str, Any]], timings: list[dict[str, Any]]) -> None:
        """The timings first: a chunk is finished when its rows are there."""
        pa, _ = arrow()
        timing = pa.Table.from_pylist(timings, schema=timing_schema())
        _write(self.parts / f"timing-{chunk:08d}.parquet", timing)
        _write(self._path(chunk), pa.Table.from_pylist(rows, schema=schema(self.config)))

    def take_back(self) -> None:
        """Makes a finished run an unfinished one, of whose chunks those are to be done again that have
        inputs which could not be read or ran out of memory: both may be otherwise by now."""
        if not (self.folder / RESULTS).is_file():
            return
        table = _read(self.folder / RESULTS, ["index", "status"]).to_pydict()
        gaps = {
            index // self.config.chunk
            for index, status in zip(table["index"], table["status"], strict=True)
            if status in (UNREADABLE, OUT_OF_MEMORY)
        }
        for chunk in gaps:
            self._path(chunk).unlink(missing_ok=True)
        if gaps:
            (self.folder / RESULTS).unlink()

    def join(self) -> None:
        """The finished table and the timings from all parts: the same bytes from the same parts."""
        pa, _ = arrow()
        tables = [self._rows(c) for c in range(self.config.chunks)]
        paths = (self.parts / f"timing-{c:08d}.parquet" for c in range(self.config.chunks))
        times = [_read(path) for path in paths if path.is_file()]
        times = pa.concat_tables(times) if times else timing_schema().empty_table()
        _write(self.folder / TIMINGS, times.combine_chunks())
        # Last, since a run is finished when it is there. One chunk per column, whatever the parts
        # were: the writer's pages depend on it.
        _write(self.folder / RESULTS, pa.concat_tables(tables).combine_chunks().replace_schema_metadata(
            schema(self.config).metadata
        ))  # fmt: skip

    def _rows(self, chunk: int):
        """A part, if it is this run's and has all its rows."""
        path, wanted = self._path(chunk), schema(self.config)
        table = _read(path)
        rows = len(self.config.members(chunk)) * len(self.config.methods) * len(self.config.sigmas)
        if not table.schema.equals(wanted, check_metadata=True) or table.num_rows != rows:
            raise ValueError(
                f"evaluate: out must hold parts of this run, got {path} of another one"
            )
        return table


class Evaluation:
    """A run's folder: what :func:`mvnrob.evaluate` returns, or the folder opened again.

    Args:
        folder: what ``evaluate`` was given as ``out``.

    - ``folder``: its path.
    - ``config``: what the table depends on: ``model``, ``data``, ``examples``, ``sigmas``, ``methods``,
      ``target``, ``options``, ``seed``, ``chunk``, ``device``, ``threads``, ``max_bytes`` and what
      becomes of pictures.
    - ``manifest``: dict, the manifest as it stands in the folder.
    - ``is_complete``: bool, whether the table is there; ``progress()``: finished chunks, and all.
    - ``table()``, ``timings()``: ``pyarrow.Table``: answers, and seconds.

    Cost: reads the manifest; ``table()`` and ``timings()`` read their files at every call.

    Raises:
        ValueError: the folder holds no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = Manifest.read(self.folder)
        if manifest is None:
            raise ValueError(f"evaluate: out must hold a run, got {folder}")
        self.manifest = manifest.content
        self.config = Config(**_as_tuples(manifest.content["config"]))

    @property
    def is_complete(self) -> bool:
        return (self.folder / RESULTS).is_file()

    def progress(self) -> tuple[int, int]:
        """Finished chunks, and all."""
        return len(Parts(self.folder, self.config).finished()), self.config.chunks

    def table(self):
        """The finished table as ``pyarrow.Table``: a row per example, method and sigma.

        ``index`` (in the data set), ``name``, ``method``, ``sigma``, ``label`` (or null),
        ``predicted``, ``target``, ``prob``, ``complement``, ``error``, ``lower``, ``upper``,
        ``runner_up``, ``status`` (of :class:`mvnrob.Status`, or UNREADABLE, OUT_OF_MEMORY,
        HALF_PRECISION),
        ``n_screened``; ``forward``, ``jvp``, ``vjp``: passes of the example with that method, all
        sigmas together; ``note``: why a row has no probability, or that its label is no class. Null
        where there is nothing to say.

        Raises:
            ValueError: the run is not finished.
        """
        if not self.is_complete:
            done, every = self.progress()
            raise ValueError(
                f"evaluate: out must hold a finished run, got {done} of {every} chunks in "
                f"{self.folder}; go on with resume"
            )
        return _read(self.folder / RESULTS)

    def timings(self):
        """Seconds per chunk and method, ``pyarrow.Table``; they vary from run to run.

        ``seconds`` is the sum of ``seconds_read``, ``seconds_forward``, ``seconds_jvp``,
        ``seconds_vjp``, ``seconds_covariance``, ``seconds_sketch``, ``seconds_cdf`` and
        ``seconds_other``. A method's are those of :class:`mvnrob.meter.Cost`. The row of a chunk whose
        ``method`` is null has the rest of its time but for writing its part: waiting for examples
        (read), the predictions (forward), copies and rows of the table (other).
        """
        return _read(self.folder / TIMINGS)

    def __repr__(self) -> str:
        done, every = self.progress()
        state = "complete" if self.is_complete else f"{done} of {every} chunks"
        return (
            f"Evaluation({str(self.folder)!r}, {self.config.model} on {self.config.data}, {state})"
        )


def _as_tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
