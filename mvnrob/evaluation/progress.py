"""What a run shows while it goes: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from .._extras import require

#: Seconds between lines where no bar can be shown.
_EVERY = 30.0


class Progress:
    """Examples done, rate, time left, and the mean of the first method's prob at the first sigma.

    ``shown``: the progress. ``speaks``: what ``say`` is told, which is said without progress, too.
    """

    def __init__(self, total: int, done: int, *, shown: bool, speaks: bool) -> None:
        self._total, self._at_start, self._done = total, done, done
        self._start = self._said = time.monotonic()
        self._sum, self._count = 0.0, 0
        self._bar = None
        self._shown, self._speaks = shown, speaks
        if shown and sys.stderr.isatty():
            rich = require("rich.progress", "rich", "evaluate")
            console = require("rich.console", "rich", "evaluate").Console(stderr=True)
            self._bar = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TextColumn("{task.fields[rate]}"),
                rich.TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("evaluate", total=total, completed=done, rate="")

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if not self._speaks:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def advance(self, done: int, probs: list[float]) -> None:
        """``done`` examples in all by now; ``probs`` are the new ones' first probabilities."""
        self._done = done
        self._sum += sum(probs)
        self._count += len(probs)
        now = time.monotonic()
        rate = (done - self._at_start) / max(now - self._start, 1e-9)
        text = f"{rate:.3g}/s"
        if self._count:
            text += f", mean p {self._sum / self._count:.3f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=text)
        elif self._shown and (now - self._said > _EVERY or done == self._total):
            left = (self._total - done) / max(rate, 1e-9)
            self._said = now
            self.say(f"evaluate: {done} of {self._total}, {text}, {left:.0f} s left")
