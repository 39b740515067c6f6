"""``evaluate``: a model over a data set, chunk by chunk, so that nothing done is ever lost."""

from __future__ import annotations

import errno
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._mvn_cdf import Status
from ..host_memory import freed_memory_kept
from ..meter import Meter
from ..network import Network, TooLarge, first_line
from ..options import read_max_bytes
from ..robustness import robustness
from .arguments import (
    check_counts,
    check_target,
    device_of,
    methods_of,
    options_of,
    override,
    shard_of,
    sigmas_of,
)
from .examples import first_readable, read_tensor
from .folder import config_of, no_folder, open_run
from .folding import fold_batch_norms
from .half import DTYPES, in_half, lost
from .layout import channels_last as with_channels_last
from .layout import slow_depthwise
from .manifest import Config, OtherRun
from .models import LoadedModel, load_model
from .progress import Progress
from .ranks import Ranks
from .results import (
    HALF_PRECISION,
    OUT_OF_MEMORY,
    SECONDS,
    UNREADABLE,
    Evaluation,
    Parts,
)
from .sources import Example, Source, load_source, printable

#: Examples that pass together unless given: few of large inputs, many of small ones; more on a GPU, which
#: small passes leave idle. On one thread torch convolves fewer than 16 in a slower way.
_CHUNKS, _LARGE = {"cpu": (16, 64), "cuda": (96, 512)}, 10_000
#: Seconds between looks for chunks of other processes: a folder of many parts is long to list.
_LOOK_EVERY = 5.0


class Stopped(RuntimeError):
    """The model failed on a chunk, other than by running out of memory."""


def evaluate(
    model: str | Callable | LoadedModel,
    data,
    sigma: float | Sequence[float],
    *,
    out: str | Path,
    method: str | Sequence[str] = "taylor",
    target: str = "prediction",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_samples: int | None = None,
    abs_tol: float | None = None,
    weights: str | Path | None = None,
    input_size: int | None = None,
    crop: float | None = None,
    bounds: tuple[float, float] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    fold_batch_norm: bool = False,
    channels_last: bool = False,
    dtype: str | None = None,
    limit: int | None = None,
    shard: str | None = None,
    seed: int = 0,
    chunk: int | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    max_bytes: int | None = None,
    workers: int = 4,
    resume: bool = False,
    progress: bool = True,
) -> Evaluation:
    """P(noise leaves the answer as it is) for every example of a data set, into a folder.

    Args:
        model: a name such as ``"digits"`` or ``"timm:resnet50"``, a file, ``"path.py:factory"``, or a
            model in eval mode: see :func:`mvnrob.evaluation.load_model`.
        data: a name, a folder of pictures, an ``.npz`` file, ``.tar`` shards, a data set or ``(x, labels)``:
            see :func:`mvnrob.evaluation.load_source`.
        sigma: standard deviations of the noise, in units of the raw inputs (pixels in [0, 1]): a
            number, or several as a list or a NumPy array.
        out: the folder. Results appear in it chunk by chunk; a killed run goes on with ``resume``.
        method: one or several of :func:`mvnrob.robustness`'s.
        target: ``"prediction"``, the class at the clean input, or ``"label"``.
        options: for a method, what else :func:`mvnrob.robustness` takes:
            ``{"mmse": {"sampling": "iid"}}``.
        n_samples, abs_tol: for every method that reads them.
        weights: see :func:`mvnrob.evaluation.load_model`.
        input_size, crop, bounds, preprocessing: in place of what the model says: the side of a
            picture; the share of its shorter side that the square cut out of its middle has (1 for a
            model that says nothing); the range of raw inputs; ``dict(mean, std, axis)`` applied after
            the noise.
        fold_batch_norm: put batch norms into the convolutions before them: the same function up to
            rounding, in fewer operations. Layers that are called twice, have hooks or whose weights are
            read elsewhere keep theirs. Needs a model that ``torch.fx`` can trace.
        channels_last: lay convolutions' weights, and with them what passes between layers, out with the
            channels last: the same function up to rounding. For GPUs whose tensor cores compute the
            convolutions (TF32, float16, bfloat16); on a CPU it gains little, with depthwise convolutions
            nothing, and on a GPU these may take longer for it, which a RuntimeWarning says.
        dtype: ``"float16"`` or ``"bfloat16"``: what a float32 model computes in, all but its last linear
            layer; another function, of other derivatives near the kinks of its ReLUs. float16 rounds as TF32
            does, bfloat16 eight times as much; :func:`mvnrob.compare` sets such a run beside one in float32.
            A forward pass in float32 looks at each example, and one whose logits are lost has no answer
            and the status HALF_PRECISION; the float32 weights stay in memory for it. For GPUs: on a CPU
            float16 is slow.
        limit: only the first so many examples.
        shard: ``"i/k"``, i from 0: every k-th chunk, for processes that know nothing of each other. They
            may share ``out``, also without ``resume``; whoever finds all chunks there writes the table.
        seed: of all random numbers: an example's noise depends on the seed and its index alone.
        chunk: examples that pass through the network together: 16 of more than 10,000 numbers each, 64
            of others; on a GPU 96 and 512; all where they are fewer. Networks round differently in
            batches of other sizes, so it belongs to the result: by default it is that of the run that
            goes on, as are ``threads`` and ``max_bytes``.
        device: such as ``"cuda"`` (one for each rank of a host) or ``"cpu"``; CUDA where there is one.
        threads: of torch on the CPU, for each rank. Belongs to the result too: by default torch's own
            number (1 under torchrun, unless OMP_NUM_THREADS says otherwise).
        max_bytes: budget of :func:`mvnrob.robustness`.
        workers: threads that read examples ahead.
        resume: go on with what is in ``out``; a run of another configuration is refused. Of a finished
            run, chunks with inputs that could not be read or ran out of memory are tried again.
        progress: show it on stderr. Without it warnings are still said there.

    Under ``torchrun`` the ranks share the chunks; the table is the same for any number of ranks,
    shards and interruptions, to the bit, on one type of device with the same software and threads.

    A label that is no class of the model's (-1, say) counts as a wrong answer, and ``note`` says so.
    An example that cannot be read (or has another shape, or no label where it is the target), gives
    NaN logits, or does not fit into memory by itself is a row without probability and with a
    ``status`` and ``note`` that say so. Anything else that fails ends the run, whose finished chunks
    stay.

    Returns the :class:`mvnrob.Evaluation` of the folder, finished unless ``shard`` left chunks to others.

    Cost: for every example what :func:`mvnrob.robustness` takes with each method, and one forward pass for
    the prediction. Memory: that of ``robustness`` for a chunk, and two chunks of examples. Disk: some 100
    bytes for each example, method and sigma, in the table and its parts together.

    Raises:
        TypeError, ValueError: a bad argument; ``out`` cannot be made or written, or holds another run, or
            the same one without ``resume``.
        RuntimeError (mvnrob.evaluation.runner.Stopped): the model fails on examples, whose numbers the
            message says.
        OSError: a part cannot be written (a full disk): those before it stay, resume later.
        ImportError (MissingExtra): a package that is needed is not installed.
    """
    if not isinstance(out, (str, Path)):
        raise TypeError(f"evaluate: out must be a folder's path, got {type(out).__name__}")
    ranks = Ranks.join()
    try:
        loaded, source = load_model(model, weights=weights), load_source(data)
        override(loaded, input_size, crop, bounds, preprocessing)
        for name, flag in (("fold_batch_norm", fold_batch_norm), ("channels_last", channels_last)):
            if not isinstance(flag, bool):
                raise TypeError(f"evaluate: {name} must be a bool, got {type(flag).__name__}")
        sigmas = sigmas_of("evaluate", sigma)
        if dtype is not None and not (isinstance(dtype, str) and dtype in DTYPES):
            raise ValueError(f"evaluate: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        rewrites = [fold_batch_norms] * fold_batch_norm + [with_channels_last] * channels_last
        if dtype is not None:
            rewrites.append(in_half(dtype))
        chosen = device_of(device, ranks.local)
        if channels_last and ranks.leads and (why := slow_depthwise(loaded.model, chosen)):
            warnings.warn(f"evaluate: {why}", RuntimeWarning, stacklevel=2)
        run = _Run(loaded, source, chosen, rewrites, sigmas)
        loaded = run.loaded
        config = run.configure(
            sigmas=sigmas,
            methods=methods_of(method),
            target=target,
            options=options or {},
            shared={"n_samples": n_samples, "abs_tol": abs_tol},
            limit=limit,
            seed=seed,
            chunk=chunk,
            threads=threads,
            max_bytes=max_bytes,
            known=config_of(out),
        )
        mine = shard_of(shard)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"evaluate: workers must be a positive int, got {workers!r}")
        folder = Path(out)
        parts = Parts(folder, config)
        problem: Exception | None = None
        if ranks.leads:
            try:
                joins = resume or shard is not None
                if (text := open_run(folder, config, source, loaded, joins, parts)) is not None:
                    problem = OtherRun(text)
                elif resume:
                    parts.take_back()
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                problem = error if full else no_folder(out, error)
            except ValueError as error:
                problem = error
        if (problem := ranks.share(problem)) is not None:
            raise problem
        if any(other != config.as_json() for other in ranks.all_of(config.as_json())):
            raise OtherRun(
                "evaluate: ranks must have one configuration, model and data, got several"
            )
        before = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            with freed_memory_kept(run.device):
                run.go(parts, mine, ranks, workers, progress)
        finally:
            torch.set_num_threads(before)
        ranks.all_of(None)
        if ranks.leads and len(parts.finished()) == config.chunks:
            parts.join()
        ranks.all_of(None)
        return Evaluation(folder)
    finally:
        ranks.leave()


class _Run:
    """Reads chunks, asks ``robustness`` and makes rows."""

    def __init__(
        self,
        loaded: LoadedModel,
        source: Source,
        device: torch.device,
        rewrites: Sequence[Callable],
        sigmas: tuple[float, ...],
    ) -> None:
        self.source, self.device = source, device
        self.config: Config | None = None
        if isinstance(loaded.model, torch.nn.Module):
            loaded.model.to(device)
        self._like = first_readable(source, loaded)
        for rewrite in rewrites:
            loaded = rewrite(loaded, self._like[None].to(device), sigmas)
        self.loaded = loaded
        self._classes = 0
        self._warned: set[str] = set()
        self._say: Callable[[str], None] = lambda text: None

    def _chunk_size(self, examples: int) -> int:
        large, small = _CHUNKS["cpu" if self.device.type == "cpu" else "cuda"]
        size = large if self._like.numel() > _LARGE else small
        return max(1, min(size, examples))  # the last chunk is padded

    def configure(
        self,
        *,
        sigmas,
        methods,
        target,
        options,
        shared,
        limit,
        seed,
        chunk,
        threads,
        max_bytes,
        known,
    ) -> Config:
        """``known``: the configuration of a run that is there, for what was not given."""
        check_counts(limit=limit, chunk=chunk, threads=threads, max_bytes=max_bytes, seed=seed)
        check_target(target, self.source)
        of_method = options_of(methods, options, shared)
        loaded = self.loaded
        scaling = loaded.preprocessing
        examples = min(len(self.source), limit or len(self.source))
        chunk = chunk or known.get("chunk") or self._chunk_size(examples)
        if max_bytes is None:
            max_bytes = known.get("max_bytes") or read_max_bytes("evaluate", None, self.device)
        self.config = Config(
            model=loaded.name,
            model_fingerprint=loaded.fingerprint,
            data=self.source.name,
            data_fingerprint=self.source.fingerprint,
            examples=examples,
            sigmas=sigmas,
            methods=methods,
            target=target,
            options=of_method,
            seed=seed,
            chunk=chunk,
            device=self.device.type,
            threads=threads or known.get("threads") or torch.get_num_threads(),
            max_bytes=max_bytes,
            input_size=loaded.input_size,
            crop=loaded.crop,
            interpolation=loaded.interpolation,
            bounds=loaded.bounds,
            preprocessing=None
            if scaling is None
            else {k: v.tolist() if hasattr(v, "tolist") else v for k, v in scaling.items()},
        )
        # An empty batch has robustness check every option before anything long runs.
        empty = self._like.new_zeros(0, *self._like.shape, device=self.device)
        for m in methods:
            self._ask(m, empty, None, 0, max_bytes)
        for name in ("options", "bounds", "preprocessing"):  # the manifest has them as JSON
            value = getattr(self.config, name)
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"evaluate: {name} must be finite numbers and text, got {value!r}"
                ) from None
        self._try_out()
        return self.config

    def _try_out(self) -> None:
        """A chunk, and an input alone, which all methods pass, go through the network, so that a model
        that does not take such batches is refused before anything is written."""
        size = self.config.chunk
        x = self._like.expand(size, *self._like.shape).to(self.device).contiguous()
        try:
            self._classes = self._twice(self._logits, x).shape[1]
            size = 1
            self._twice(self._logits, x[:1])
        except torch.OutOfMemoryError as error:
            while size > 1 and not self._fits(x[: size // 2]):
                size //= 2
            fit = f"{size // 2} would" if size > 1 else "even one input would not"
            raise ValueError(
                f"evaluate: chunk must fit into the memory, got {len(x)} ({fit}): {first_line(error)}"
            ) from None
        except Exception as error:
            text = str(error)
            if size == len(x) and text.startswith("evaluate: x must be what the model takes"):
                raise ValueError(
                    f"{text} (a chunk: {size} inputs of shape {list(self._like.shape)})"
                ) from error
            if size == len(x) and text.startswith("evaluate: "):
                raise
            text = text.removeprefix("evaluate: ")
            raise ValueError(
                f"evaluate: model must take batches of any size, got for {self._like.dtype} inputs "
                f"{[size, *self._like.shape]} {type(error).__name__}: {text}"
            ) from error

    def _fits(self, x: Tensor) -> bool:
        try:
            self._logits(x)
        except torch.OutOfMemoryError:
            return False
        return True

    def _twice(self, ask: Callable, *arguments):
        """What ``ask`` returns. Out of memory, it is asked once more: another process may have had it
        for a moment, and answers in smaller batches may differ in the last bits."""
        try:
            return ask(*arguments)
        except torch.OutOfMemoryError:
            pass  # what the traceback holds is free only behind this block
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return ask(*arguments)

    def go(
        self, parts: Parts, shard: tuple[int, int], ranks: Ranks, workers: int, shown: bool
    ) -> None:
        config = self.config
        done = parts.finished()
        todo = [c for c in range(config.chunks) if c % shard[1] == shard[0]]
        todo = [c for c in todo[ranks.rank :: ranks.world] if c not in done]

        def count(chunks: set[int]) -> int:
            return sum(len(config.members(c)) for c in chunks)

        with (
            ThreadPoolExecutor(max(1, workers)) as pool,
            Progress(
                config.examples, count(done), shown=shown and ranks.leads, speaks=ranks.leads
            ) as progress,
        ):
            self._say, looked = progress.say, time.monotonic()
            ahead = self._read_ahead(pool, todo[0]) if todo else None
            for at, chunk in enumerate(todo):
                start = time.perf_counter()
                examples = [future.result() for future in ahead]
                waited = time.perf_counter() - start
                ahead = self._read_ahead(pool, todo[at + 1]) if at + 1 < len(todo) else None
                try:
                    rows, timings = self._chunk(chunk, examples, ranks.rank, waited)
                except Exception as error:  # models raise what they like
                    members, cause = config.members(chunk), error.__cause__ or error
                    raise Stopped(
                        f"evaluate: model must answer examples {members[0]} to {members[-1]}, got "
                        f"{type(cause).__name__}: {cause}"
                    ) from error
                parts.write(chunk, rows, timings)
                first = (config.methods[0], config.sigmas[0])
                probs = [
                    row["prob"]
                    for row in rows
                    if (row["method"], row["sigma"]) == first and row["prob"] is not None
                ]
                done.add(chunk)
                if time.monotonic() - looked > _LOOK_EVERY or chunk == todo[-1]:
                    done |= parts.finished()  # other processes' too
                    looked = time.monotonic()
                progress.advance(count(done), probs)

    def _read_ahead(self, pool: ThreadPoolExecutor, chunk: int):
        return [pool.submit(self._read, index) for index in self.config.members(chunk)]

    def _read(self, index: int) -> tuple[Example, str | None]:
        """The example, its x a tensor, or what is wrong with it."""
        try:
            example = self.source.read(index)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is about this example)
            return self.source.named(index), _why(error)
        try:
            x = read_tensor(example, self.source, self.loaded)
        except Exception as error:  # noqa: BLE001  (decoders raise what they like, too)
            return example, _why(error)
        if x.shape != self._like.shape or x.dtype != self._like.dtype:
            return example, (
                f"{x.dtype} {list(x.shape)} where the first example is {self._like.dtype} "
                f"{list(self._like.shape)}"
            )
        if self.config.target == "label" and example.label is None:
            return example, "no label"
        return Example(x, example.label, example.name), None

    def _chunk(
        self, chunk: int, examples: list[tuple[Example, str | None]], rank: int, waited: float
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        config, start = self.config, time.perf_counter()
        members = config.members(chunk)
        # Unreadable ones keep their place, and the last chunk is padded: all batches have one shape.
        blank = torch.zeros_like(self._like)
        stacked = [blank if wrong else example.x for example, wrong in examples]
        stacked += [blank] * (config.chunk - len(stacked))
        x = self._twice(torch.stack(stacked).to, self.device)
        self._look_at(x[: len(examples)])
        meter = Meter(0, self.device)
        with meter.clock("forward"):
            logits, unfit = self._clean(x, members.start, self.loaded.model)
            gone = {}
            if self.loaded.full is not None:
                full, more = self._clean(x, members.start, self.loaded.full)
                unfit |= more
                gone = {at: found for at, found in enumerate(lost(full, logits)) if found}
        classes = logits.shape[1]
        predicted = logits.argmax(1)
        unusable = logits.isnan().any(1)
        wrong = [text for _, text in examples]
        # What the status alone does not tell apart.
        inputs = x.flatten(1).isnan().any(1)
        unsaid = {
            at: "NaN in the input" if bool(inputs[at]) else "NaN logits"
            for at in range(len(examples))
            if bool(unusable[at])
        }
        target = predicted.clone()
        for at, (example, text) in enumerate(examples):
            if text is not None or example.label is None:
                continue
            if not 0 <= example.label < classes:
                strange = f"label {example.label} of {classes} classes"
                if config.target == "label":
                    wrong[at] = strange
                elif at not in unsaid:
                    unsaid[at] = strange
                    self._say_of_label(strange, members[at])
            elif config.target == "label":
                target[at] = example.label
        gone = {
            at: found
            for at, found in gone.items()
            if at < len(examples) and not wrong[at] and at not in unfit
        }
        for at, (gap, spread) in gone.items():
            wrong[at] = f"half precision changes its logits by {gap:.2g} of {spread:.2g}"
        rows: dict[int, list[dict[str, Any]]] = {at: [] for at in range(len(examples))}
        timings = []
        own = {"seconds_read": waited, "seconds_forward": meter.cost().seconds["forward"]}

        def timing(method: str | None, seconds: dict[str, float]) -> None:
            line = {"chunk": chunk, "method": method, "examples": len(examples), "rank": rank}
            seconds = {name: seconds.get(name, 0.0) for name in SECONDS}
            timings.append(line | seconds | {"seconds": sum(seconds.values())})

        for method in config.methods:
            result, notes = self._answer(method, x, target, members.start)
            notes |= unfit
            timing(method, result)
            for at, (example, _) in enumerate(examples):
                for s, sigma in enumerate(config.sigmas):
                    row = dict.fromkeys(_NUMBERS) | {
                        "index": members[at],
                        "name": printable(example.name),
                        "method": method,
                        "sigma": sigma,
                        "label": example.label,
                        "predicted": None
                        if wrong[at] or bool(unusable[at])
                        else int(predicted[at]),
                        "note": wrong[at] or notes.get(at) or unsaid.get(at),
                    }
                    if wrong[at]:
                        row["status"] = HALF_PRECISION if at in gone else UNREADABLE
                    elif at in notes:
                        row["status"] = OUT_OF_MEMORY
                    else:
                        row |= _plain(result, s, at)
                    rows[at].append(row)
        known = sum(line["seconds"] for line in timings) + own["seconds_forward"]
        timing(None, own | {"seconds_other": time.perf_counter() - start - known})
        return [row for at in rows for row in rows[at]], timings

    def _logits(self, x: Tensor, model: Callable | None = None) -> Tensor:
        with torch.no_grad():
            model = self.loaded.model if model is None else model
            network = Network("evaluate", model, self.loaded.preprocessing, x)
            return network(x.to(network.work_dtype)).double()

    def _clean(self, x: Tensor, first: int, model: Callable) -> tuple[Tensor, dict[int, str]]:
        """Logits ``[chunk, C]``; where the memory does not do even for one input at a time, NaN and a
        note for each input that it does not do for."""
        try:
            return self._twice(self._logits, x, model), {}
        except torch.OutOfMemoryError:
            self._say(f"evaluate: out of memory at example {first}; going on one by one")
        rows, notes = [], {}
        for at in range(len(x)):
            try:
                rows.append(self._logits(x[at : at + 1], model))
            except torch.OutOfMemoryError as error:
                notes[at] = first_line(error)
                rows.append(x.new_full((1, self._classes), math.nan, dtype=torch.float64))
        return torch.cat(rows), notes

    def _answer(
        self, method: str, x: Tensor, target: Tensor, first: int
    ) -> tuple[dict[str, Any], dict[int, str]]:
        """The method's answers ``[n_sigma, chunk]``; where the memory does not do even for one input
        at a time, a note for each input that it does not do for."""

        def ask(part: slice) -> dict[str, Any]:
            start = first + part.start
            return _fields(self._ask(method, x[part], target[part], start, self.config.max_bytes))

        try:
            return self._twice(ask, slice(0, len(x))), {}
        except (torch.OutOfMemoryError, TooLarge) as error:
            what = "max_bytes exceeded" if isinstance(error, TooLarge) else "out of memory"
        self._say(f"evaluate: {what} at example {first}; going on one by one")
        parts, notes = [], {}
        for at in range(len(x)):
            try:
                parts.append(ask(slice(at, at + 1)))
            except (torch.OutOfMemoryError, TooLarge) as error:
                notes[at] = first_line(error)
                parts.append(None)
        return _joined(parts, len(self.config.sigmas)), notes

    def _ask(self, method: str, x: Tensor, target: Tensor | None, first: int, max_bytes: int):
        config = self.config
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            result = robustness(
                self.loaded.model,
                x,
                list(config.sigmas),
                method=method,
                target=target,
                preprocessing=self.loaded.preprocessing,
                seed=config.seed,
                first_index=first,
                max_bytes=max_bytes,
                **config.options[method],
            )
        for warning in caught:
            text = str(warning.message)
            kind = text.split(";")[0].translate(str.maketrans("", "", "0123456789"))
            if kind not in self._warned:  # one of a kind: statuses are in the table
                self._warned.add(kind)
                self._say(text)
        return result

    def _say_of_label(self, strange: str, index: int) -> None:
        """Says once that a label is no class: the report counts its example as answered wrongly."""
        if "labels" not in self._warned:
            self._warned.add("labels")
            self._say(
                f"evaluate: example {index} has {strange}: it counts as wrong (notes say which do)"
            )

    def _look_at(self, x: Tensor) -> None:
        """Says once when the inputs leave their bounds, or look normalised without them."""
        if x.numel() == 0 or "range" in self._warned:
            return
        low, high = float(x.min()), float(x.max())
        if self.loaded.bounds is not None:
            if low < self.loaded.bounds[0] or high > self.loaded.bounds[1]:
                self._warned.add("range")
                self._say(
                    f"evaluate: inputs lie in [{low:.3g}, {high:.3g}], outside their bounds "
                    f"{self.loaded.bounds}: is sigma in their units?"
                )
        elif low >= 0 and 20 < high <= 255 and self.loaded.preprocessing is None and x.dim() >= 3:
            self._warned.add("range")
            self._say(
                f"evaluate: inputs lie in [{low:.3g}, {high:.3g}] and look like pixels in [0, 255]: "
                "sigma is in their units"
            )
        elif low < -0.5 and high < 20 and self.loaded.preprocessing is None and x.dim() == 4:
            self._warned.add("range")
            self._say(
                f"evaluate: inputs lie in [{low:.3g}, {high:.3g}] and look normalised: sigma is in "
                "their units. For raw pixels give the model's scaling as preprocessing"
            )


def _why(error: Exception) -> str:
    """The error as a note, without addresses of objects: those differ from process to process, and a
    table must not."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", printable(f"{type(error).__name__}: {error}"))


#: What only a row with an answer has.
_NUMBERS = ("target", "prob", "complement", "error", "lower", "upper", "runner_up")


def _fields(result) -> dict[str, Any]:
    names = ("prob", "complement", "error", "lower", "upper", "status", "runner_up", "n_screened")
    out = {name: getattr(result, name).cpu() for name in names}
    out["target"] = result.target.cpu()
    cost = result.cost
    out |= {"forward": cost.forward.cpu(), "jvp": cost.jvp.cpu(), "vjp": cost.vjp.cpu()}
    return out | {f"seconds_{phase}": seconds for phase, seconds in cost.seconds.items()}


def _joined(parts: list[dict[str, Any] | None], sigmas: int) -> dict[str, Any]:
    """Answers of single inputs side by side; None leaves a gap that nobody reads."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return dict.fromkeys(SECONDS, 0.0)
    filled = [known if part is None else part for part in parts]
    out = {}
    for name, value in known.items():
        if isinstance(value, float):
            out[name] = sum(part[name] for part in parts if part is not None)
        else:
            out[name] = torch.cat([part[name] for part in filled], -1)
    return out


def _plain(result: dict[str, Any], s: int, at: int) -> dict[str, Any]:
    """A row's numbers; what is not a number is null."""

    def real(name: str) -> float | None:
        value = float(result[name][s, at])
        return None if math.isnan(value) else value

    status = Status(int(result["status"][s, at]))
    answered = status not in (Status.NAN_INPUT, Status.INDEFINITE)
    row: dict[str, Any] = {
        name: real(name) for name in ("prob", "complement", "error", "lower", "upper")
    }
    row["target"] = int(result["target"][at]) if answered else None
    row["runner_up"] = int(result["runner_up"][s, at]) if answered else None
    row["n_screened"] = int(result["n_screened"][s, at])
    row["status"] = status.name
    row |= {name: int(result[name][at]) for name in ("forward", "jvp", "vjp")}
    return row
