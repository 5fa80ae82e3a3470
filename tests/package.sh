#!/usr/bin/env bash
# Builds the source distribution and the wheel, looks into them, installs the wheel in a bare environment and tries it:
#
#     tests/package.sh [PYTHON]
#
# DEPENDENCIES=FOLDER (site-packages of an environment) takes what the package needs from there in place of downloads.
# DIST=FOLDER keeps what was built.
set -euo pipefail
python=${1:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=${DIST:-$work/dist}
mkdir -p "$work/source" "$work/again" "$dist"
unset PYTHONPATH

step() { printf '\n--- %s\n' "$*"; }

step 'Build, from a copy of what git has and what is new'
(cd "$root" && git ls-files -z --cached --others --exclude-standard | tar -c --null -T - --ignore-failed-read) |
    tar -x -C "$work/source"
"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet build twine
(cd "$work/source" && "$work/build/bin/python" -m build --outdir "$dist" >"$work/build.log" 2>&1) ||
    { tail -n 30 "$work/build.log"; exit 1; }
(cd "$work/source" && "$work/build/bin/python" -m build --wheel --outdir "$work/again" >"$work/build.log" 2>&1) ||
    { tail -n 30 "$work/build.log"; exit 1; }
"$work/build/bin/python" -m twine check --strict "$dist"/*
wheel=$(ls "$dist"/timm_advprop-*.whl)

step 'Contents: the wheel of the source distribution is that of the sources'
"$python" - "$wheel" "$work/again/$(basename "$wheel")" "$work/source" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

wheel, again = ({entry.filename: archive.read(entry) for entry in archive.infolist()}
                for archive in map(zipfile.ZipFile, sys.argv[1:3]))
assert wheel == again, sorted(name for name in {*wheel, *again} if wheel.get(name) != again.get(name))
source = Path(sys.argv[3])
package = {str(path.relative_to(source)): path.read_bytes() for path in (source / 'timm_advprop').rglob('*')
           if path.suffix == '.py' or path.name == 'py.typed'}
recipes = {f'timm_advprop/hparams/{path.name}': path.read_bytes() for path in (source / 'hparams').iterdir()}
inside = {name: content for name, content in wheel.items() if '.dist-info/' not in name}
assert recipes and inside == {**package, **recipes}, sorted({*inside} ^ {*package, *recipes})
print(f'{len(package)} files of the package, {len(recipes)} recipes, nothing else')
PYTHON

step 'Install'
"$python" -m venv "$work/bare"
bare=$work/bare/bin
if [ -n "${DEPENDENCIES:-}" ]; then
    echo "$DEPENDENCIES" >"$("$bare/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
    "$bare/python" -m pip install --quiet --no-deps "$wheel"
else
    "$bare/python" -m pip install --quiet "$wheel[data]"
    "$bare/python" -m pip check
fi

step 'Try it, in an empty folder'
mkdir "$work/elsewhere" && cd "$work/elsewhere"
"$bare/python" - "$work/bare" <<'PYTHON'
import sys

import timm
import timm_advprop

assert timm_advprop.__file__.startswith(sys.argv[1]), timm_advprop.__file__
print(timm_advprop.__version__, len(timm.list_models('*_ap')), 'models')
PYTHON
"$bare/timm-advprop-train" --help >help.txt
grep -q -e '--adv-eps' help.txt
[ "$("$bare/timm-advprop-train" --list-recipes | wc -l)" = "$(ls "$root"/hparams/*.yaml | wc -l)" ]
"$bare/python" -m timm_advprop.data digits digits
options=(--config test_resnet_ap_digits --data-dir digits --device cpu --output . --experiment run --epochs 1)
"$bare/timm-advprop-train" "${options[@]}" --dry-run
[ ! -e run ]
"$bare/timm-advprop-train" "${options[@]}" 2>train.log || { tail train.log; exit 1; }
"$bare/timm-advprop-validate" --data-dir digits --model test_resnet_ap --num-classes 10 --img-size 32 --crop-pct 1 \
    --device cpu --checkpoint run/last.pth.tar --route aux 2>validate.log || { tail validate.log; exit 1; }
"$bare/timm-advprop-hub" push run/last.pth.tar user/name --dry-run 2>hub.log || { tail hub.log; exit 1; }

step 'An editable installation has the recipes, too'
"$bare/python" -m pip uninstall --quiet --yes timm-advprop
"$bare/python" -m pip install --quiet --no-deps --editable "$work/source"
"$bare/timm-advprop-train" --config test_resnet_ap_digits --data-dir digits --device cpu --dry-run 2>/dev/null |
    grep '^model '
[ "$("$bare/python" -c 'import timm_advprop; print(timm_advprop.__file__)')" = "$work/source/timm_advprop/__init__.py" ]

printf '\nThe package is fine.\n'
