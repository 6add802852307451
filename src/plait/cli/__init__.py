"""The command line: parse, call the API, print; exit codes 0 fine, 2 the user can fix it, 1 a bug."""

from __future__ import annotations

import logging
import os
import sys

from plait.cli.ending import Stopped, drop_output, open_streams, stoppable
from plait.errors import PlaitError, as_line
from plait.processes import SaidByFirstError, speaks

INTERRUPTED = 130
RESUMABLE = ("amalgamate", "ensemble", "finetune", "merge", "run")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: one `error:` line and 2 for anything the user can fix."""
    sys.exit(invoke(sys.argv[1:] if arguments is None else arguments))


def invoke(arguments: list[str]) -> int:  # noqa: PLR0911 - one return a kind of ending
    """Returns the exit code of one command line."""
    import typer

    open_streams()
    configure_logging(quiet="--quiet" in arguments or "-q" in arguments or not speaks())
    try:
        result = _result(arguments)
        sys.stdout.flush()
    except PlaitError as error:
        return refuse(error)
    except typer.Exit as stop:
        return (
            complain(interruption(arguments), INTERRUPTED)
            if stop.exit_code == INTERRUPTED
            else stop.exit_code
        )
    except (typer.Abort, KeyboardInterrupt):
        return complain(interruption(arguments), INTERRUPTED)
    except Stopped as stop:
        return complain(interruption(arguments, "terminated"), stop.code)
    except (BrokenPipeError, SystemExit):
        # The reader of our output (say, `head`) has gone, of which the argument parser makes an exit of its own.
        drop_output()
        return 0
    except OSError as error:
        drop_output()
        return complain(f"{error.filename or 'cannot write the output'}: {error.strerror or error}")
    except Exception as error:
        if message := _mistake(error):
            return complain(message)
        raise
    if result == INTERRUPTED:  # the argument parser turns Ctrl-C into an exit code of its own
        return complain(interruption(arguments), INTERRUPTED)
    return result if isinstance(result, int) else 0


def _mistake(error: Exception) -> str | None:
    """Returns what a user can mend of an error that is none of ours; None where it is a bug."""
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # the library's only word for it
        return "a path begins with ~ and names a user without a folder: write the whole path"
    said = getattr(error, "format_message", None)  # a usage error of the argument parser
    return None if said is None else str(said())


def _result(arguments: list[str]) -> object:
    """Returns what the argument parser makes of a command line, which signals may stop."""
    # They register their commands.
    from plait.cli import amalgamate, artifacts, compare, ensemble, jobs, report, train  # noqa: F401
    from plait.cli.app import app

    with stoppable():
        return app(args=arguments, prog_name="plait", standalone_mode=False)


def interruption(arguments: list[str], how: str = "interrupted") -> str:
    """Returns what is left of a command that was interrupted."""
    said = f"{how}, the output was not written"
    if arguments[:1] == ["posteriors"]:
        return f"{how}; finished shards are kept, and the same command goes on from there"
    if arguments[:1] == ["compare"]:
        return f"{how}; finished candidates are kept, and the same command goes on from there"
    if not set(RESUMABLE) & set(arguments[:1]):
        return said
    return f"{said}; where a state was saved beside it, the same command with --resume goes on"


def refuse(error: PlaitError) -> int:
    """Prints what the user can mend, a line each; nothing where another process prints it."""
    if not isinstance(error, SaidByFirstError):
        for line in getattr(error, "lines", (str(error),)):
            complain(line)
    return 2


def complain(message: str, code: int = 2) -> int:
    """Prints one `error:` line on stderr and returns the exit code."""
    sys.stderr.write(f"error: {as_line(message)}\n")
    return code


def configure_logging(*, quiet: bool) -> None:
    """Sends our log to stderr, from INFO on (from ERROR on when quiet); libraries speak only of errors."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason to write a traceback
    from plait.progress import Notes, send_to

    send_to(Notes(), logging.ERROR if quiet else logging.INFO)
    # The libraries' own bars and hints would stand between the lines of a table or a JSON document.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
