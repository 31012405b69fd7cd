"""A packed folder runs where there are torch, numpy and Pillow alone.

A Python in isolated mode, without the installation, that refuses to import anything else."""
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from srnb import params
from srnb.core import read_state
from srnb.data import image
from srnb.tools import pack

root = Path(__file__).parents[1]

# what torch, numpy and Pillow bring along themselves, and what they ask for and go without
BARE = '''
import importlib.util, runpy, sys
from pathlib import Path
OF_TORCH = {{'torch', 'torchgen', 'functorch', 'triton', 'nvidia', 'cuda', 'numpy', 'PIL', 'typing_extensions', 'sympy',
            'mpmath', 'networkx', 'jinja2', 'markupsafe', 'filelock', 'fsspec', 'setuptools', '_distutils_hack'}}
real = importlib.util.find_spec

class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if top in OF_TORCH or top in sys.stdlib_module_names or top.startswith(('srnb', '_sysconfigdata')): return None
        raise ModuleNotFoundError(f"No module named '{{top}}'", name=top)

def find_spec(name, package=None):
    try: return real(name, package)
    except ModuleNotFoundError: return None

sys.meta_path = [Bare()] + [finder for finder in sys.meta_path if 'editable' not in repr(finder)]
importlib.util.find_spec = find_spec
sys.path = [{here!r}, *sys.path]
sys.argv = ['plain', *{words!r}]
try: runpy.run_module('srnb.tools.plain', run_name='__main__', alter_sys=False)
finally:
    files = {{name.partition('.')[0] for name, m in sys.modules.items() if getattr(m, '__file__', None)}}
    found = files - OF_TORCH - {{*sys.stdlib_module_names}}
    print('loaded:', *sorted(name for name in found if not name.startswith(('__editable__', '_sysconfigdata'))))
    print('from:', Path(sys.modules['srnb'].__file__).parent)
'''


def bare(folder: Path, *words: str, status: int = 0) -> str:
    "What `python -m srnb.tools.plain` says in `folder` on a bare machine."
    script = BARE.format(here=str(folder), words=words)
    environment = {'PATH': os.environ['PATH'], 'SRNB_DEVICE': 'cpu', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    p = subprocess.run([sys.executable, '-I', '-c', script], cwd=folder, env=environment, text=True, timeout=1800,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert p.returncode == status, p.stdout[-4000:]
    assert 'Traceback' not in p.stdout, p.stdout[-4000:]
    return p.stdout


def photographs(folder: Path, count: int, side: int = 300):
    "Pictures with structure at several scales, on which NIQE is defined."
    generator = torch.Generator().manual_seed(0)
    for k in range(count):
        layers = [torch.nn.functional.interpolate(torch.rand(1, 3, side // n, side // n, generator=generator),
                                                  (side, side), mode='bicubic') for n in (30, 8, 2, 1)]
        x = (0.4 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2] + 0.1 * layers[3]).clamp(0, 1)
        image.write(folder/f'{k}.png', (255 * x[0]).byte())


@pytest.fixture(scope='module')
def composed() -> dict:
    "The rows of `tiny`."
    with contextlib.chdir(root): return params.composed('tiny')


def packed(toy: Path, p: dict, *names: str) -> Path:
    "A folder as it is carried to a node."
    photographs(toy/'pictures', 4)
    p = p | {'photos': {'train': 'folder:pictures', 'valid': 'folder:pictures first 2'},
             'evaluate': p['evaluate'] | {'sets': {'mine': 'folder:pictures first 2'}}}
    (toy/'params.yaml').write_text(json.dumps(p))
    pack.pack_rows(toy/'node', [*names])
    return toy/'node'


def check(node: Path, said: str, names: tuple[str, ...]):
    "Nothing but torch and its kin was loaded, the library was the packed one, and all is there."
    assert 'loaded: srnb\n' in said and f'from: {node}/srnb' in said, said
    assert 'stood in for: pandas' in said and 'all done' in said
    for name in names:
        scores = pd.read_csv(node/f'out/trial/out/scores/{name}.csv')
        assert {*scores.metric} >= {'niqe'} and np.isfinite(scores.value[scores.metric == 'niqe']).all()


@pytest.mark.slow
def test_a_bare_machine_makes_the_chain_from_scratch(toy, composed):
    names = 'hr', 'srresnet', 'srgan', 'ranksrgan_niqe'
    node = packed(toy, composed, *names)
    said = bare(node, '--steps', '2')
    check(node, said, names)
    made = [line.partition(':')[0] for line in said.splitlines() if '@' in line]
    order = [made.index(s) for s in ('ranker@ranker_niqe', 'ranksrgan@ranksrgan_niqe', 'assess@ranksrgan_niqe')]
    assert order == sorted(order)
    report = pd.read_csv(node/'out/trial/out/ranker/ranker_niqe_report.csv')
    assert report.patches[0] > 0 and 'accuracy' in report.statistic.tolist()
    assert read_state(node/'out/trial/out/models/ranksrgan_niqe.safetensors')        # of the format that others read

    # all of it, in minutes that end too early: the same command goes on, and does nothing twice
    said = bare(node, 'srresnet', '--minutes', '0', status=3)
    assert 'the time is up' in said and not (node/'out/models/srresnet.safetensors').exists()
    assert 'pretrain@srresnet: was done' not in bare(node, 'srresnet')
    assert 'pretrain@srresnet: was done' in bare(node, 'srresnet')


@pytest.mark.slow
def test_a_bare_machine_begins_with_published_networks(toy, composed):
    p = json.loads(json.dumps(composed))
    p['gan']['srgan'] |= {'net': 'ledig', 'size': {'nf': 64, 'blocks': 16}, 'start': 'srgan_ledig', 'norm': 'fixed'}
    p['rank_dataset']['rank'] |= {'networks': ['srresnet_ledig', 'srgan_ledig'] , 'between': [],
                                  'levels': ['srresnet_ledig', 'srgan_ledig']}
    p['ranksrgan']['ranksrgan_niqe'] |= p['gan']['srgan'] | {'rank': 0.03, 'ranker': 'ranker_niqe'}
    names = 'srgan_ledig', 'ranksrgan_niqe'
    node = packed(toy, p, *names)
    said = bare(node, '--steps', '2')
    check(node, said, names)
    assert 'published@srgan_ledig: ' in said
