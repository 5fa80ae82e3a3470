"""What a study has found out, kept in files, so that it can be stopped and go on."""
import hashlib
import json
from typing import Any, Dict, List

from timm_advprop.output import replacing

__all__ = ['digest', 'keep', 'read_kept']


def keep(path: str, found: Dict[str, Any]) -> None:
    """Write what was found out; a kill leaves the old file or the new one."""
    with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        json.dump(found, file)


def read_kept(path: str) -> Dict[str, Any]:
    """What was found out, empty where there is no such file."""
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def digest(settings: List[Any]) -> str:
    """A name for what a result depends on."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()
