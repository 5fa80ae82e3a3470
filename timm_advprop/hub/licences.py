"""Licences as the front matter of a model card names them."""
import re
from typing import Any, Dict

__all__ = ['licence_metadata']

# The identifiers of https://huggingface.co/docs/hub/repositories-licenses. The Hub refuses a card with another one.
_OF_THE_HUB = frozenset('''
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib
'''.split())


def licence_metadata(name: str) -> Dict[str, Any]:
    """Entries of the front matter for a licence; one that the Hub does not know is `other`, with its name.

    Args:
        name: The licence, as the Hub, SPDX or timm calls it.
    """
    identifier = name.strip().lower()
    if identifier in _OF_THE_HUB:
        return dict(license=identifier)
    return dict(license='other', license_name=re.sub('[^a-z0-9.]+', '-', identifier).strip('-'))
