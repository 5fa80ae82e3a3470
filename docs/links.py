"""A hook of mkdocs: what pages link to outside of this folder, pictures and tables and code, is a file of the site."""
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_OUTSIDE = re.compile(r'\]\(((?:\.\./)+)([^)#\s]+)\)')


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to outside of the folder of pages."""
    for page in list(files.documentation_pages()):
        for match in _OUTSIDE.finditer(page.content_string):
            path = _outside(page.src_uri, match[1] + match[2])
            if path and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(_ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to them begin at the site's root, as that is where they are now."""
    def inside(match: re.Match) -> str:
        path = _outside(page.file.src_uri, match[1] + match[2])
        return f']({os.path.relpath(path, os.path.dirname(page.file.src_uri) or ".")})' if path else match[0]
    return _OUTSIDE.sub(inside, markdown)


def _outside(page: str, link: str) -> str:
    # Path from the repository's root of what a page links to, '' where it is a page or not there.
    path = os.path.normpath(os.path.join('docs', os.path.dirname(page), link))
    return '' if path.startswith('docs/') or not (_ROOT / path).is_file() else path
