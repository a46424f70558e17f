"""Where an option's value comes from: the command line, then the environment, then ``--config FILE.toml``."""

from __future__ import annotations

import difflib
import errno
import io
import os
import signal
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from pipeline.logging import (
    INTERRUPTED,
    INTERRUPTED_ELSEWHERE,
    ended,
    error,
    is_json,
    logging_to_stderr,
    ranks,
    visible,
)
from pipeline.out_of_memory import shortage, shortage_in
from stores.errors import EDDPError, MissingPathError, OutOfMemoryError, UnknownNameError, UsageError

LONGEST = 200  # characters of what is quoted from a configuration file
TRUE = ("1", "true", "t", "yes", "y", "on")  # as click reads a flag from the environment
MOST_BYTES = 2**16  # of a configuration file
LONGEST_LINE = 2**13  # of a configuration file: tomllib's time grows with the square of a dotted key's length
COMMON = ("quiet", "json", "debug")  # options of every command: they change no result
F = TypeVar("F", bound=Callable[..., Any])


def wants_json(command: str, arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``--log-json`` holds, looked up before click does: its own errors are to be lines as well.

    The command line, then ``EDDP_COMMAND_LOG_JSON``, then ``log_json`` in the command's section of ``--config``.
    """
    given = list(arguments)
    if "--" in given:
        given = given[: given.index("--")]
    if "--log-json" in given:
        return True
    prefix = f"EDDP_{command.upper()}"
    chosen = environ.get(f"{prefix}_LOG_JSON")
    if chosen:
        return chosen.strip().lower() in TRUE
    config = environ.get(f"{prefix}_CONFIG")
    for at, text in enumerate(given):
        if text == "--config" and at + 1 < len(given):
            config = given[at + 1]
        elif text.startswith("--config="):
            config = text.partition("=")[2]
    if not config:
        return False
    try:  # what is wrong with the file is said by who reads it
        section = read_config(Path(config))[command]
        return section.get("log_json", section.get("log-json")) is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def read_config(path: Path) -> dict[str, Any]:
    """Read a small TOML file; a pipe or a device is not opened. Raises OSError, ValueError, or RecursionError for deep nesting."""
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES or max(map(len, data.split(b"\n"))) > LONGEST_LINE:
        raise ValueError(f"it has more than {MOST_BYTES} bytes, or more than {LONGEST_LINE} in a line")
    return tomllib.loads(data.decode())


def load_config(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Take the command's section of a TOML file as its defaults. Raises for unknown options, listing the nearest."""
    # an option goes by its name on the command line, whatever the function calls it
    known = {opt.lstrip("-").replace("-", "_"): p for p in context.command.params for opt in p.opts if p.name}
    for name, option in known.items():
        if option.envvar is None and context.auto_envvar_prefix:
            option.envvar = f"{context.auto_envvar_prefix}_{name.upper()}"
    if value is None:
        return None
    path = Path(value)
    try:
        document = read_config(path)
    except FileNotFoundError as error:
        raise MissingPathError(
            f"There is no configuration file '{path}' (--config), or it is no regular file."
        ) from error
    except OSError as error:
        raise UsageError(f"'{path}' (--config) cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:LONGEST]
        raise UsageError(f"'{path}' (--config) is no valid TOML: {reason}.") from error
    section = str(context.info_name)
    values = document.get(section, {})
    if not isinstance(values, dict):
        raise UsageError(f"'{path}' (--config): '{section}' must be a section, [{section}], with options in it.")
    chosen: dict[str, Any] = {}
    for key, given in values.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name[:LONGEST], known, n=2)
            raise UnknownNameError(
                f"'{path}', section [{section}]: there is no option '{key[:LONGEST]}'."
                + (f" Did you mean {' or '.join(near)}?" if near else "")
            )
        option = known[name]
        parts = given if isinstance(given, list) else [given]
        several = getattr(option, "multiple", False) or option.nargs != 1
        if (isinstance(given, list) and not several) or not all(_is_plain(part, option) for part in parts):
            what = "true or false" if getattr(option, "is_flag", False) else "text or a number"
            raise UsageError(
                f"'{path}', section [{section}]: '{key}' must be {what}{', or a list of such' if several else ''}."
            )
        texts = [part if isinstance(part, bool) else str(part) for part in parts]
        chosen[str(option.name)] = texts if several else texts[0]
    context.default_map = {**(context.default_map or {}), **chosen}
    return value


def _is_plain(part: Any, option: click.Parameter) -> bool:
    """Whether a value can stand for what is typed after an option: true and false only for flags, numbers of 64 bits."""
    if isinstance(part, bool):
        return getattr(option, "is_flag", False)
    return isinstance(part, str | float) or (isinstance(part, int) and part.bit_length() <= 64)


def common(command: F) -> F:
    """Options that every command has."""
    decorators = [
        click.option("--config", callback=load_config, is_eager=True, expose_value=False, metavar="FILE.toml",
                     help="Take options from this file's section named after the command."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout."),
        click.option("--log-json", is_flag=True, expose_value=False,  # run_command looks it up before click reads anything
                     help="Write everything on stderr, progress too, as one JSON object a line."),
        click.option("--debug", is_flag=True, help="Show a traceback when something fails."),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def given() -> dict[str, Any]:
    """The running command's own options and arguments, by the names that users type."""
    context = click.get_current_context()
    named = {str(p.name): max(p.opts, key=len).lstrip("-").replace("-", "_") for p in context.command.params}
    return {named[name]: value for name, value in context.params.items() if named[name] not in COMMON}


def typed(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Give the value, if it was typed: files and variables may be somebody else's. Raises UsageError where it was not."""
    if value is not None and context.get_parameter_source(str(parameter.name)) is not ParameterSource.COMMANDLINE:
        raise UsageError(
            f"--{parameter.name} allows code to be run: it is taken only from the command line, not from the "
            f"environment (EDDP_{str(context.info_name).upper()}_{str(parameter.name).upper()}) or --config."
        )
    return value


def model_option(command: F) -> F:
    """``--model``: the user's word that the code which a store names as its model may be run."""
    return click.option("--model", default=None, callback=typed, metavar="MODULE:CALLABLE",
                        help="The store's model, where that is your own code: allows it to be run. Models of torchvision and timm "
                             "need no such word.")(command)  # fmt: skip


def class_names_option(command: F) -> F:
    """``--class-names``: the names of the network's classes, where the store has none or others."""
    return click.option("--class-names", type=click.Path(path_type=Path), metavar="FILE",
                        help="Names of the network's classes, where the store has none: a name a line in its order, or JSON.")(command)  # fmt: skip


def names_in(file: Path | None) -> list[str] | None:
    """The class names of a file that was given, or None."""
    from extract.classes import read_class_names

    return None if file is None else read_class_names(file)


def share_of(option: str, text: str | None) -> tuple[int, int] | None:
    """``2/8`` -> (2, 8). Raises UsageError for anything else."""
    if text is None:
        return None
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UsageError(f"{option} must be I/N with I from 0 to N-1, such as 0/8, got '{text}'.")
    return int(i), int(n)


class Interrupted(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


def _terminate(number: int, frame: Any) -> NoReturn:
    raise Interrupted


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a click command as a program: exit codes 0, 1, 2, 130, and one sentence on stderr instead of a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, _terminate)
    meant = _meant(command, name, arguments)
    started = time.monotonic()
    with logging_to_stderr(meant, as_json=wants_json(meant, arguments), debug=debug):
        code = _run(command, name, arguments, meant, debug)
        try:
            sys.stdout.flush()
        except OSError as problem:  # a full disk behind a redirection, a reader that is gone
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (nothing tries to flush it again)
            code = code or 1
            error(f"what was printed could not be written: {problem.strerror or problem}.", code)
        ended(meant, code, started)
    sys.exit(code)


def _run(command: click.Command, name: str, arguments: list[str], meant: str, debug: bool) -> int:
    """Run a command and say what went wrong, if anything did; gives the exit code."""

    def failed(text: str, code: int = 1) -> int:
        trace = traceback.format_exc() if debug else ""
        if trace and not is_json():
            sys.stderr.write(visible(trace))
        error(text, code, **({"traceback": trace} if trace else {}))
        return code

    stdout = sys.stdout
    prefix = "EDDP" if name == "eddp" else f"EDDP_{name.upper()}"
    try:
        command.main(arguments, prog_name=name, standalone_mode=False, auto_envvar_prefix=prefix)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        if is_json() and sys.stdout is not stdout:  # so click leaves it when its reader is gone, without a word
            return failed(f"what was printed could not be written: {os.strerror(errno.EPIPE)}.")
        return stop.code if isinstance(stop.code, int) else 1
    except click.ClickException as wrong:
        if ranks()[0] == 0:  # what was typed is the same for all processes, and said once
            if is_json():
                error(wrong.format_message(), 2)
            else:
                usage = io.StringIO()
                wrong.show(usage)
                sys.stderr.write(visible(usage.getvalue()))
        return 2
    except (KeyboardInterrupt, click.Abort):
        error(INTERRUPTED if meant == "extract" else INTERRUPTED_ELSEWHERE, 130)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as problem:  # noqa: BLE001  (the last resort: a user gets a message, a developer --debug)
        return failed(*_reason(problem, meant))
    return 0


def _reason(error: Exception, command: str) -> tuple[str, int]:
    """Why a command failed, and its exit code."""
    if (cause := shortage_in(error)) and not isinstance(error, OutOfMemoryError):
        return shortage(cause, command), 1
    if isinstance(error, EDDPError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f"'{error.filename}': " if error.filename else ""
        return f"{where}{error.strerror or error}.", 2 if error.errno == errno.ENAMETOOLONG else 1
    text = str(error).strip().split("\n")[0][:LONGEST]
    return f"unexpected {type(error).__name__}: {text} (run again with --debug for the traceback, and report it).", 1


def _meant(command: click.Command, name: str, arguments: Sequence[str]) -> str:
    """The command that is run: of ``eddp fit --store …`` it is fit."""
    if isinstance(command, click.Group):
        names = command.list_commands(click.Context(command))
        return next((text for text in arguments if text in names), name)
    return name


def _prepare_streams() -> None:
    """Have somewhere to print to, whatever the process was started with, and print what an encoding lacks as ``?``."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
