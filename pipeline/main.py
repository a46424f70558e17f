"""The command line: ``extract``, ``fit``, ``evaluate``, and ``eddp`` which has these and more as subcommands."""

from __future__ import annotations

import click

from pipeline.commands.correct import correct
from pipeline.commands.demo import demo
from pipeline.commands.evaluate import evaluate
from pipeline.commands.explain import explain
from pipeline.commands.extract import extract
from pipeline.commands.fit import fit
from pipeline.commands.inspect import inspect, verify
from pipeline.commands.report import report
from pipeline.commands.synthetic import synthetic
from pipeline.options import run_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="eddp", prog_name="eddp")
def group() -> None:
    """What has a vision network learned, and how does it write and read it?

    EDDP finds, without labels, the directions in a layer's activations that stand for concepts: for each one a decoding
    direction (is it there?) and an encoding direction (what is added when it is).

    \b
    Example:
      eddp demo
    """


for command in (extract, fit, evaluate, demo, synthetic, inspect, verify, report, explain, correct):
    group.add_command(command)


def eddp() -> None:
    """Entry point of ``eddp``."""
    run_command(group, "eddp")


def extract_script() -> None:
    """Entry point of ``extract``."""
    run_command(extract, "extract")


def fit_script() -> None:
    """Entry point of ``fit``."""
    run_command(fit, "fit")


def evaluate_script() -> None:
    """Entry point of ``evaluate``."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    eddp()
