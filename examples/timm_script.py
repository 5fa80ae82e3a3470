"""timm's own train.py, unmodified, with the models of this package and with AdvProp. Needs a checkout of timm.

    git clone https://github.com/huggingface/pytorch-image-models
    python examples/timm_script.py pytorch-image-models/train.py [FOLDER]
"""
import subprocess
import sys
import tempfile
from pathlib import Path

from timm_advprop.engine.small_datasets import write_digits

FLAGS = ['--num-classes', '10', '--img-size', '32', '--epochs', '1', '--warmup-epochs', '0', '--workers', '0',
         '--device', 'cpu', '--log-interval', '100']


def main(script, folder):
    """Run the script twice: it imports the package itself, or the package runs it."""
    data = str(Path(folder, 'digits'))
    write_digits(data)
    # the *_ap models are registered, and trained as the plain models they are on their main norms
    registered = ['--device-modules', 'timm_advprop', '--model', 'test_resnet_ap', '--experiment', 'plain']
    # AdvProp: its flags, its task, checkpoints with auxiliary norms
    advprop = ['--model', 'test_resnet_ap', '--adv-eps', '1', '--experiment', 'advprop']
    for program in ([script, *registered], ['-m', 'timm_advprop.wrap', script, *advprop]):
        command = [sys.executable, *program, '--data-dir', data, '--output', str(folder), *FLAGS]
        print(' '.join(command), flush=True)
        subprocess.run(command, check=True)
    return [Path(folder, name, 'last.pth.tar') for name in ('plain', 'advprop')]


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else temporary)
