"""Directives that show what the program itself says: ``commands`` (the help of each), ``table-columns`` (evaluate/dictionary.py) and
``glossary-terms`` (evaluate/glossary.py)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from evaluate.dictionary import SUMMARY, TABLES
from evaluate.glossary import COMMON, PARTS, Term
from pipeline.main import COMMANDS, load

ORDER = ("extract", "fit", "evaluate", "report", "explain", "correct", "inspect", "verify", "demo", "synthetic")


def escaped(text: str) -> str:
    """Text without meaning in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~$:])", r"\\\1", text)


def rows(columns: Mapping[str, Term], first: str) -> Iterable[str]:
    yield f"| {first} | type | definition |"
    yield "|---|---|---|"
    for name, term in columns.items():
        kind = f"{term.type}, {term.unit}" if term.unit else term.type
        source = f" *({escaped(term.source.removeprefix('paper: '))})*" if term.source != "ours" else ""
        yield f"| `{name}` | {escaped(kind)} | {escaped(term.definition)}{source} |"


def options(context: click.Context, parameters: Iterable[click.Parameter]) -> Iterable[str]:
    yield "| option | what it does |"
    yield "|---|---|"
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record:
            yield f"| `{record[0].replace('|', chr(92) + '|')}` | {escaped(record[1])} |"


class Commands(SphinxDirective):
    """Every command: a section with its help, usage and options; the options of all of them once."""

    def run(self) -> list[nodes.Node]:
        assert set(ORDER) == set(COMMANDS)
        lines = []
        contexts = {name: click.Context(load(name), info_name=name) for name in ORDER}
        parameters = {name: context.command.get_params(context) for name, context in contexts.items()}
        shared = set.intersection(*({one.opts[0] for one in given} for given in parameters.values()))
        for name, context in contexts.items():
            lines += [f"## {name}", ""]
            for part in inspect.cleandoc(context.command.help or "").split("\n\n"):
                literal = part.startswith("\b")  # click's mark for lines that are not wrapped
                lines += ["```console", *part.splitlines()[1:], "```", ""] if literal else [escaped(part), ""]
            usage = " ".join(context.command.collect_usage_pieces(context))
            own = [one for one in parameters[name] if one.opts[0] not in shared]
            lines += ["```console", f"eddp {name} {usage}", "```", "", *options(context, own), ""]
        common = [one for one in parameters[ORDER[0]] if one.opts[0] in shared]
        lines += ["## Options of every command", "", *options(contexts[ORDER[0]], common)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def mark_tables(app: Sphinx, doctree: nodes.document) -> None:
    """Gives the tables of these pages a class for the style sheet. MyST attaches sections to the page, a directive does not see them."""
    if app.env.docname in ("commands", "summary", "tables"):
        for table in doctree.findall(nodes.table):
            table["classes"].append("definitions")


class TableColumns(SphinxDirective):
    """Every table that ``evaluate`` and ``correct`` write: a section each. With the argument ``summary``: the keys of summary.json."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        if self.arguments == ["summary"]:
            table = TABLES[SUMMARY]
            lines = [escaped(table.rows), "", *rows(table.columns, "key")]
        else:
            lines = ["## Columns of several tables", "", *rows(COMMON, "column"), ""]
            for name, table in TABLES.items():
                if name != SUMMARY:
                    lines += [f"## {name}", "", escaped(table.rows), "", *rows(table.columns, "column"), ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class GlossaryTerms(SphinxDirective):
    """The terms of the pages, part by part."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for part, terms in PARTS.items():
            lines += [f"## {part.capitalize()}", ""]
            for term, text in terms.items():
                lines += [escaped(term), f": {escaped(text)}", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("commands", Commands)
    app.add_directive("table-columns", TableColumns)
    app.add_directive("glossary-terms", GlossaryTerms)
    app.connect("doctree-read", mark_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
