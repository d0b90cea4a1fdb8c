"""The documentation site: ``make docs`` builds it into ``docs/_build/html``, without a network."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

# pages are executed by child processes, which inherit this
os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", COLUMNS="100", TQDM_DISABLE="1"
)
os.environ["PYTHONPATH"] = str(HERE.parent)
os.environ["JUPYTER_PATH"] = str(HERE / "_ext" / "jupyter")  # a kernel that prints errors only

import tokenops  # noqa: E402


def fingerprint() -> str:
    """Changes when the package does, so that no page shows what older code printed."""
    digest = hashlib.sha256()
    for path in sorted((HERE.parent / "tokenops").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


logging.getLogger("traitlets").setLevel(logging.WARNING)

project = "tokenops"
author = "tokenops contributors"
copyright = "2026, tokenops contributors"
version = release = tokenops.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "mathml",
    "reference_pages",
    "evidence",
]
exclude_patterns = ["_build", "_ext", "_static", "pictures"]
nitpicky = True
language = "en"

html_theme = "furo"
html_title = "tokenops"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2257a8", "color-brand-content": "#2257a8"},
    "dark_css_variables": {"color-brand-primary": "#8ab4f0", "color-brand-content": "#8ab4f0"},
}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "cells" / fingerprint())
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
nb_number_source_lines = False

maximum_signature_line_length = 80
python_trailing_comma_in_multi_line_signatures = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # api.py writes annotations as the source has them
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
