"""Files of results, a row for each, as timm writes them."""
import csv
import io
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

from ..errors import InputError
from ..output import replacing

__all__ = ['Results', 'read_results', 'write_results']

Results = Dict[str, Any]


def write_results(path: str, results: Union[Results, Sequence[Results]], format: str = 'csv') -> None:
    """Write results as timm does.

    Args:
        path: File to write.
        results: Results of one model or of several.
        format: `'csv'` or `'json'`.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with replacing(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
            if format == 'json':
                json.dump(results, file, indent=4)
                return
            rows = [results] if isinstance(results, dict) else results
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f'Cannot write {path}: {error}.') from error


def read_results(path: str) -> List[Results]:
    """Read a results file, CSV or JSON; values of a CSV file are text.

    Raises:
        InputError: The file is missing or is no results file.
    """
    try:
        text = Path(path).read_bytes().decode()
        content = json.loads(text) if text.lstrip()[:1] in ('[', '{') else list(csv.DictReader(io.StringIO(text)))
    except (OSError, RecursionError, ValueError, csv.Error) as error:
        raise InputError(f'Cannot read the results {path}: {error}.') from error
    content = content if isinstance(content, list) else [content]
    if not content or not all(isinstance(row, dict) and 'top1' in row and 'model' in row for row in content):
        raise InputError(f'{path} is not a results file of the validation program (--results-file).')
    return content
