"""How Sphinx builds these pages: ``make docs``. Nothing is downloaded, and the pages work from disk."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).resolve().parent
logging.getLogger("traitlets").setLevel(logging.WARNING)  # else each notebook announces itself
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "eddp"
author = "the eddp developers"
copyright = author
release = version_of("eddp")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "program_reference",
    "mathml",
    "outside_files",
]
smartquotes = False  # "--option" stays as it is typed
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # files that are included start at any level

# Notebooks are text (docs/notebooks/*.md); their cells run when the pages are built
nb_execution_mode = "auto"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
add_module_names = False
nitpick_ignore_regex = [("py:.*", ".*")]  # docstrings describe a parameter where others name its type

html_theme = "furo"
html_title = "eddp"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse from disk
html_copy_source = False
