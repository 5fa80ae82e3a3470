"""Records the flags of timm's scripts: `python -m tests.cli.record_timm_flags PATH/TO/timm` writes timm_flags.json.

PATH is a checkout of timm's repository, since the wheel has no scripts. Of them only the parsers are made; main() is
not run. The timm that is installed must be new enough for them.
"""
import json
import re
import runpy
import sys
from pathlib import Path

RECORD = Path(__file__).with_name('timm_flags.json')


def record(checkout):
    """The version of a checkout and the flags of its scripts, of types that JSON knows.

    Args:
        checkout: Folder with train.py and validate.py.

    Returns:
        `timm` (version), and for each script a dict from flag to `flags` (all spellings), `dest`, `default`, `nargs`,
        `type` (of a value, by name) and `choices`; None where a script says nothing of it.
    """
    checkout = Path(checkout)
    version = re.search(r"__version__ = '(.*)'", (checkout / 'timm/version.py').read_text()).group(1)
    return dict(timm=version, **{name: _flags_of(checkout / f'{name}.py') for name in ('train', 'validate')})


def _flags_of(script):
    names = runpy.run_path(str(script), run_name=f'timm_{script.stem}')
    parsers = [names[name] for name in ('config_parser', 'parser') if name in names]
    actions = [action for parser in parsers for action in parser._actions if action.dest != 'help']
    return {max(action.option_strings, key=len, default=action.dest): _facts(action) for action in actions}


def _facts(action):
    facts = dict(
        flags=action.option_strings, dest=action.dest, default=action.default, nargs=action.nargs,
        type=(action.type or str).__name__, choices=action.choices)
    return json.loads(json.dumps(facts))  # tuples are lists


def main(argv):
    checkout, = argv
    recorded = record(checkout)
    # a line for each flag, so that a change of timm's is a change of its line
    scripts = [
        f'"{name}": {{\n'
        + ',\n'.join(f'{json.dumps(flag)}: {json.dumps(facts)}' for flag, facts in flags.items()) + '\n}'
        for name, flags in recorded.items() if name != 'timm'
    ]
    RECORD.write_text(f'{{"timm": {json.dumps(recorded["timm"])},\n' + ',\n'.join(scripts) + '}\n')


if __name__ == '__main__':
    main(sys.argv[1:])
