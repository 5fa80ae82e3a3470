"""A hook of mkdocs: what pages link to outside of this folder, pictures and tables and code, is a file of the site."""
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r'\]\(([^)#\s:]+)(?=[)#])')


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to outside of the folder of pages, and those that these link to."""
    pages = list(files.documentation_pages())
    for page in pages:  # which grows
        for match in _LINK.finditer(page.content_string):
            path = _outside(page, match[1])
            if path and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(_ROOT / path)))
                pages += [files.get_file_from_path(path)] if path.endswith('.md') else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to them begin at the site's root, as that is where they are now."""
    def inside(match: re.Match) -> str:
        path = _outside(page.file, match[1])
        return f']({os.path.relpath(path, os.path.dirname(page.file.src_uri) or ".")}' if path else match[0]
    return _LINK.sub(inside, markdown)


def _outside(page: File, link: str) -> str:
    # Path from the repository's root of what a page links to, '' where it is a page of the folder, or not there.
    folder = os.path.dirname(page.src_uri if page.generated_by else os.path.join('docs', page.src_uri))
    path = os.path.normpath(os.path.join(folder, link))
    return '' if path.startswith('docs/') or not (_ROOT / path).is_file() else path
