"""Runs timm's own model tests on `*_ap` models, one of each family, and writes docs/conformance.md.

    python tests/conformance.py [--models NAME …] [--processes N]

timm's tests are in its source distribution, which pip downloads; they take a package to test from `TORCH_BACKEND`.
Takes about half an hour on 2 cores.
"""
import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple

import timm
import torch
from models.zoo_models import LARGE, SMALL

from timm_advprop.models import base_of, split_models

REPORT = Path(__file__).parents[1] / 'docs' / 'conformance.md'
NODE = re.compile(r'(?P<test>\w+)\[(?P<before>.*?)(?P<model>\w+_ap)(?P<tag>\.\w+)?(?P<after>(-.*)?)\]')


class Result(NamedTuple):
    """Outcome of one test: `passed`, `failed` or `skipped`, and the message of one that did not pass."""
    node: str
    outcome: str
    message: str


def download_tests(folder: Path) -> Path:
    """Download the source distribution of the installed timm and unpack it."""
    subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary=timm',
         f'timm=={timm.__version__}', '--dest', folder], check=True)
    archive = next(folder.glob('timm-*.tar.gz'))
    with tarfile.open(archive) as file:
        file.extractall(folder, filter='data')
    return folder / archive.name.removesuffix('.tar.gz')


def run_tests(source: Path, models: List[str], processes: int) -> List[Result]:
    """Run timm's model tests whose parameters name one of the models."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        subprocess.run(
            [sys.executable, '-m', 'pytest', 'tests/test_models.py', '-q', '-n', str(processes), f'--junitxml={report}',
             '-k', f'({" or ".join(f"-{model}] or -{model}." for model in models)}) and not test_model_inference',
             '-W', 'ignore', '--tb=line'],
            cwd=source,
            # timm leaves out the tests that download weights where GITHUB_ACTIONS is set
            env={**os.environ, 'TORCH_BACKEND': 'timm_advprop', 'GITHUB_ACTIONS': 'true', 'OMP_NUM_THREADS': '1'},
        )
        return [parse_result(case) for case in ElementTree.parse(report).iter('testcase')]


def parse_result(case: ElementTree.Element) -> Result:
    """Read a test case of a JUnit report."""
    for kind, outcome in (('failure', 'failed'), ('error', 'failed'), ('skipped', 'skipped')):
        found = case.find(kind)
        if found is not None:
            return Result(case.get('name'), outcome, ' '.join(found.get('message', '').split()))
    return Result(case.get('name'), 'passed', '')


def plain_node(node: str) -> str:
    """Name of the test that tries the same on the timm model."""
    return NODE.sub(lambda match: f'{match["test"]}[{match["before"]}{base_of(match["model"])}{match["after"]}]', node)


def explain(message: str) -> str:
    """Why a test fails, where that is by design; otherwise its message."""
    if re.match(r'AssertionError: No gradient for \S*aux_bn', message):
        return ('by design: the test wants a gradient for every parameter, and on the main route auxiliary norms take '
                'no part (on the route of training they do: tests/models/test_every_model.py).')
    return f'{message[:200]}.'


def write_report(results: List[Result], plain: Dict[str, Result], models: List[str]) -> str:
    """The report as Markdown."""
    counts = {}
    for result in results:
        counts.setdefault(result.node.partition('[')[0], Counter())[result.outcome] += 1
    total = Counter(result.outcome for result in results)
    lines = [
        '# Conformance', '',
        f"timm's own tests (`tests/test_models.py` of timm {timm.__version__}, torch {torch.__version__}) on "
        f'{len(models)} `*_ap` models, the smallest of each family of the zoo: {total["passed"]} passed, '
        f'{total["failed"]} failed, {total["skipped"]} skipped.', '',
        '```bash', 'python tests/conformance.py', '```', '',
        'downloads the tests with pip and runs `TORCH_BACKEND=timm_advprop pytest tests/test_models.py -k …`, without '
        'those that download weights.', '',
        '| test | passed | failed | skipped |', '|---|---|---|---|',
        *(f'| `{test}` | {count["passed"]} | {count["failed"]} | {count["skipped"]} |'
          for test, count in sorted(counts.items())), '',
        '## Failures', '',
    ]
    failures = {}
    for result in results:
        if result.outcome == 'failed':
            twin = plain.get(plain_node(result.node))
            same = 'the plain model fails, too' if twin and twin.outcome == 'failed' else 'the plain model passes'
            test, model = NODE.search(result.node)['test'], NODE.search(result.node)['model']
            failures.setdefault((test, explain(result.message), same), []).append(f'`{model}`')
    for (test, reason, same), names in failures.items():
        lines.append(f'- `{test}`, {len(names)} × ({same}): {reason} {", ".join(names)}')
    lines += [] if failures else ['None.']
    reasons = Counter(result.message for result in results if result.outcome == 'skipped')
    if reasons:
        lines += ['', '## Skipped', '', *(f'- {count} × {reason[:200]}' for reason, count in reasons.most_common())]
    return '\n'.join([*lines, '', '## Models', '', ', '.join(f'`{model}`' for model in models), ''])


def main() -> None:
    """Run the tests and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    smallest = [f'{name}_ap' for name in (*SMALL, *LARGE)]
    parser.add_argument('--models', nargs='+', default=smallest, choices=sorted(split_models()), metavar='NAME')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), metavar='N')
    parser.add_argument('--output', type=Path, default=REPORT, metavar='FILE')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = download_tests(Path(folder))
        results = run_tests(source, args.models, args.processes)
        failed = {base_of(NODE.search(result.node)['model']) for result in results if result.outcome == 'failed'}
        plain = {result.node: result for result in run_tests(source, sorted(failed), args.processes)} if failed else {}
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(write_report(results, plain, args.models))
    print(f'{args.output}: {Counter(result.outcome for result in results)}')


if __name__ == '__main__':
    main()
