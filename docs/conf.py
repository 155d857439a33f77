"""How Sphinx builds these pages into a site: ``make docs``.

The pages are Markdown; the API is read from docstrings, by importing the package.
"""

from importlib import metadata

project = "pdssm-compiler"
release = metadata.version("pdssm-compiler")
author = "the authors of pdssm-compiler"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"{project} {release}"
# Links to a heading of a page are checked as well.
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# As the package exports it, wherever it is defined.
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
