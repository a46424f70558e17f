"""The command line: ``extract``, ``fit``, ``evaluate``, and ``eddp`` which has these and more as subcommands."""

from __future__ import annotations

import importlib

import click

from pipeline.options import run_command

# of each subcommand: its module, what is said of it in the list of all, and what it needs to work, which takes seconds to load
COMMANDS = {
    "correct": (
        "pipeline.commands.correct",
        "Suppress a concept the model should not use.",
        "pipeline.model_correction",
    ),
    "demo": ("pipeline.commands.demo", "Run everything on a small drawn world.", "pipeline.demo"),
    "evaluate": ("pipeline.commands.evaluate", "Score directions; write tables and a report.", "pipeline.evaluation"),
    "explain": ("pipeline.commands.explain", "Explain predictions by their concepts.", "pipeline.explanation"),
    "extract": ("pipeline.commands.extract", "Store the activations of a network's layers.", "extract.stream"),
    "fit": ("pipeline.commands.fit", "Find directions in a store's activations.", "pipeline.fitting"),
    "inspect": ("pipeline.commands.inspect", "Show what a result holds and how its run went.", "stores.store"),
    "report": ("pipeline.commands.report", "Make pages to read from an evaluation.", "pipeline.report"),
    "synthetic": ("pipeline.commands.synthetic", "Make a store whose directions are known.", "fit.synthetic"),
    "verify": ("pipeline.commands.inspect", "Check every byte of one.", "stores.store"),
}


class Subcommands(click.Group):
    """Commands that are loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def load(name: str) -> click.Command:
    """The command of a name."""
    command: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), name)
    return command


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="eddp", prog_name="eddp")
def group() -> None:
    """What has a vision network learned, and how does it write and read it?

    EDDP finds, without labels, the directions in a layer's activations that stand for concepts: for each one a decoding
    direction (is it there?) and an encoding direction (what is added when it is).

    \b
    Example:
      eddp demo
    """


def eddp() -> None:
    """Entry point of ``eddp``."""
    run_command(group, "eddp")


def extract_script() -> None:
    """Entry point of ``extract``."""
    run_command(load("extract"), "extract")


def fit_script() -> None:
    """Entry point of ``fit``."""
    run_command(load("fit"), "fit")


def evaluate_script() -> None:
    """Entry point of ``evaluate``."""
    run_command(load("evaluate"), "evaluate")


if __name__ == "__main__":
    eddp()
