"""The command line ``mvnrob``; every command is a thin shell over a function of the package."""

from __future__ import annotations

import os
import sys

from .._extras import MissingExtra, require

#: Exit statuses. 2 is click's own for bad usage.
FINISHED, STOPPED, USAGE, WITH_GAPS, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0: done. 1: stopped before the end (a full disk, a failing model); ``--resume`` goes on. 2: bad
    usage, or a package is missing. 3: done, but some examples have no answer (under torchrun 0: it
    would stop the other ranks and call the run failed). 130: interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # a class or a file may have letters that these lack
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    evaluates = "evaluate" in words[:1]
    resume = "; what was finished is kept, evaluate --resume goes on" if evaluates else ""
    try:
        click = require("click", "click", "evaluate")
        from .commands import group

        return group.main(arguments, prog_name="mvnrob", standalone_mode=False) or FINISHED
    except MissingExtra as error:
        print(error, file=sys.stderr)
        return USAGE
    except click.exceptions.Abort:
        print(f"mvnrob: interrupted{resume}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads any more: `mvnrob info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return USAGE
    except RuntimeError as error:
        print(f"{error}{resume}", file=sys.stderr)
        return STOPPED
    except OSError as error:
        print(f"mvnrob: {error}{resume}", file=sys.stderr)
        return STOPPED
