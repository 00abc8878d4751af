"""Sphinx builds the site from here: `make docs`. No network, no import of torch, every warning an error."""

import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "extensions"))

project = "interp"
author = "the interp contributors"
copyright = "2026, the interp contributors; Apache-2.0"
version = release = version_of("interp-workbench")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_llm.txt",
    "stored_numbers",
    "stored_figures",
    "file_tree",
    "api_pages",
    "offline",
]
exclude_patterns = ["_build", "_templates", "extensions", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
nitpicky = True
# Only names of this package must resolve: without a network there is no inventory of the others.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!interp\b).*"),
    (r"py:.*", r"interp\..*\.([A-Z][a-z]*)?T"),
    (r"py:.*", r"interp\..*\._\w+"),  # private bases
    (r"py:.*", r"interp\..*\.Annotated"),  # an alias with a validator, by where it is made
]  # and type variables

# Pages and notebooks
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are those that are stored
suppress_warnings = ["mystnb.unknown_mime_type"]  # the Plotly data beside each image
nb_ipywidgets_js = {}  # its loader comes from a CDN; the stored state of a widget is no use without a kernel
nb_mime_priority_overrides = [
    ("*", "image/png", 0),  # figures are stored twice: as Plotly data, which needs plotly.js, and as an image
    ("*", "application/vnd.jupyter.widget-view+json", None),
    ("llms-markdown", "text/plain", 10),  # tables, in the Markdown twins
]

# API pages: each public name where it is defined
autodoc_use_type_comments = False  # there are none, and looking for them parses a file for every function
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "member-order": "bysource",
    "ignore-module-all": True,  # a name is documented where it is defined
    "show-inheritance": True,
}
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True

# Markdown twins and llms.txt
llms_txt_description = "Find, steer and track harmfulness and refusal inside chat models."
llms_txt_suffix_mode = "replace"
llms_txt_build_parallel = False  # after the pages, from what was read for them: reading is most of a build
llms_txt_suppress_unknown_node_warnings = ["abbreviation", "caption"]  # kept as text and as the image's

html_theme = "pydata_sphinx_theme"
html_title = "interp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "show_toc_level": 2,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# Notebooks stand beside the package, and Sphinx reads only what stands below this folder.
NOTEBOOKS = HERE / "notebooks"
NOTEBOOKS.mkdir(exist_ok=True)
for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
    shutil.copy2(path, NOTEBOOKS / path.name)
