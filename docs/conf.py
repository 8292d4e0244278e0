"""The site: `make docs` builds it into docs/_build/html, without network."""

import os
import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

from isthmus.version import __version__  # noqa: E402

PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GALLERY = os.environ.get("GALLERY", "1") != "0"

project = "Isthmus"
author = "The Isthmus developers"
copyright = "The Isthmus developers, MIT licence"
version = release = __version__
language = "en"

repository_url = PROJECT.get("urls", {}).get("Home", "")  # where links out of docs/ lead
extensions = ["myst_nb", "sphinx_copybutton", "api_pages", "command_line", "outside"]
if (HERE.parent / "examples").is_dir():
    extensions.append("sphinx_gallery.gen_gallery")
exclude_patterns = ["_build", "landing.py", "gallery/**.ipynb", "gallery/**.py", "gallery/**.md5", "gallery/**.json"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
default_role = "code"
add_module_names = False
toc_object_entries = False
maximum_signature_line_length = 88
smartquotes = False  # what stands in quotes is mostly a value
# a link to what is not there fails the build
nitpicky = True

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 4
# cells of Markdown notebooks run where the examples do
nb_execution_mode = "cache" if GALLERY else "off"
nb_execution_raise_on_error = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "ignore_pattern": r"(__init__|needs)\.py",
    "plot_gallery": GALLERY,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
}


def runnable() -> str:
    """A pattern of the examples that run here: one whose data set or wheel is not to be had is shown unrun."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    from needs import missing

    scripts = [one.name for one in sorted((HERE.parent / "examples").glob("plot_*.py"))]
    return "|".join(re.escape(name) for name in scripts if not missing(name)) or "$^"


if GALLERY and "sphinx_gallery.gen_gallery" in extensions:
    sphinx_gallery_conf["filename_pattern"] = runnable()

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"Isthmus {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f7a70", "color-brand-content": "#1f7a70"},
    "dark_css_variables": {"color-brand-primary": "#5cc2b5", "color-brand-content": "#5cc2b5"},
    "top_of_page_buttons": [],  # most pages are written by the build: there is no source to view or edit
}
