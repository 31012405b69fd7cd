"The `tiny` profile from end to end, in a temporary clone with a DVC cache of its own; then what people do to it."
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

source = Path(__file__).parents[1]
env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'DVC_ROOT')} | {
    'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}', 'SRNB_DEVICE': 'cpu', 'CUDA_VISIBLE_DEVICES': '', 'OMP_WAIT_POLICY': 'passive',
    'GIT_AUTHOR_NAME': 'test', 'GIT_AUTHOR_EMAIL': 'test@example.invalid', 'GIT_COMMITTER_NAME': 'test', 'GIT_COMMITTER_EMAIL': 'test@example.invalid'}


class Clone:
    "A working copy in which commands are run."
    def __init__(self, root: Path): self.root = root

    def __truediv__(self, path): return self.root/path

    def sh(self, *words, status=0, timeout=5400) -> str:
        "What a command printed; it must end with `status`."
        p = subprocess.run(words, cwd=self.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
        assert p.returncode == status, f'{" ".join(words)} → {p.returncode}\n{p.stdout[-4000:]}'
        return p.stdout

    def repro(self, *targets) -> set[str]:
        "The stages that `dvc repro` ran, `code` aside: that one always runs."
        said = self.sh('dvc', 'repro', *targets)
        return {*re.findall(r"^Running stage '(.+)':", said, re.M)} - {'code'}

    def error(self, *words, status=1) -> str:
        "The message with which a command failed; there must be no traceback."
        said = self.sh(*words, status=status)
        assert 'Traceback' not in said, said
        return said

    def change(self, path: str, old: str, new: str):
        text = (self/path).read_text()
        assert old in text, f'{path} has no {old!r}'
        (self/path).write_text(text.replace(old, new))

    def set(self, at: str, value):
        "Change one entry of params.yaml; the old value."
        *above, last = at.split('.')
        tree = params = yaml.safe_load((self/'params.yaml').read_text())
        for key in above: tree = tree[key]
        old, tree[last] = tree[last], value
        (self/'params.yaml').write_text(yaml.safe_dump(params, sort_keys=False))
        return old

    def bytes(self, *paths) -> dict[str, str]: return {p: hashlib.sha256((self/p).read_bytes()).hexdigest() for p in paths}


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "What is committed here, or would be, as a repository of its own, its photographs taken out of its own store, composed to `tiny`."
    there = Clone(tmp_path_factory.mktemp('clone')/'srnb')
    names = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=source, capture_output=True, text=True, check=True).stdout
    for name in {*names.split('\0')} - {'', 'dvc.lock'}:
        if not (source/name).is_file(): continue
        (there/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source/name, there/name)
    for words in ('git init -q', 'dvc pull -q data.dvc', 'python -m srnb.pipeline.run --compose tiny', 'git add -A', 'git commit -q -m tiny'): there.sh(*words.split())
    return there


@pytest.fixture(scope='module')
def chain(clone):
    "The clone after a complete run."
    begun = time.monotonic()
    clone.ran = clone.repro()
    print(f'tiny: {time.monotonic() - begun:.0f} s')
    return clone


def test_composition_is_that_of_dvc(clone):
    ours = (clone/'params.yaml').read_bytes()
    clone.sh('dvc', 'exp', 'run', '--queue', '-S', 'profile=tiny')
    queued = clone.sh('git', 'show', 'refs/exps/celery/stash:params.yaml').encode()
    clone.sh('dvc', 'queue', 'remove', '--all')
    assert queued == ours


def test_everything_is_made(chain):
    assert {'photos', 'pretrain@srresnet', 'gan@srgan', 'assess@srgan'} <= chain.ran
    for path in 'out/models/srresnet.safetensors', 'out/models/srgan.safetensors', 'out/scores/srgan.csv': assert (chain/path).stat().st_size
    papers = [p.stem for p in (chain/'nbs/paper').glob('*.ipynb')]
    figures, tables = ({p.stem for p in (chain/'out'/folder).rglob(f'*.{kind}')} for folder, kind in (('figures', 'png'), ('tables', 'md')))
    assert not {s[3:] for s in papers if s.startswith('80_')} - figures and not {s[3:] for s in papers if s.startswith('90_')} - tables
    assert not {t['item'] for t in json.loads((chain/'nbs/paper/published.json').read_text())['tables'] if f"90_{t['item']}" in papers} - tables
    drawn = [p for folder in ('figures', 'tables', 'paper') for p in (chain/'out'/folder).rglob('*.*')]
    assert {p.suffix for p in drawn} >= {'.png', '.md'} and all(p.stat().st_size for p in drawn)
    assert not list((chain/'out').rglob('*partial*')) and not list((chain/'out').rglob('*.part*')), 'half-made files'
    assert not list((chain/'out/scratch').glob('*')), 'checkpoints of finished runs'


def test_executed_notebooks_keep_results_alone(chain):
    for path in (chain/'out/nbs').glob('*.ipynb'):
        nb = json.loads(path.read_text())
        assert nb['metadata'].keys() == {'kernelspec', 'language_info'}
        outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
        assert outputs, f'{path.name} shows nothing'
        assert not [o for o in outputs if o.get('name') == 'stderr' or o['output_type'] == 'error']
        assert str(chain.root) not in path.read_text(), f'{path.name} holds a path of this machine'


def test_nothing_to_do_is_quick(chain):
    def spent(): return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # processor time: a busy machine fails nobody
    begun = spent()
    assert chain.repro() == set()
    assert (seconds := spent() - begun) < 20, f'{seconds:.1f} s'                 # of 150 stages; 8 s were measured


def test_the_same_seed_gives_the_same_bytes(chain):
    files = 'out/models/srresnet.safetensors', 'out/log/srresnet.csv', 'out/nbs/20_train_sr@srresnet.ipynb'
    first = chain.bytes(*files)
    chain.sh('python', '-m', 'srnb.pipeline.run', '20_train_sr', '-p', 'run', 'srresnet')
    assert chain.bytes(*files) == first


def shows(stage: str) -> bool: return stage.endswith(('_figures', '_tables')) or stage in ('chain', 'claims', 'verdicts')    # draws or writes, trains nothing


def test_prose_and_plots_retrain_nothing(chain):
    nb = 'nbs/paper/20_train_sr.ipynb'
    cells = json.loads((chain/nb).read_text())
    next(c for c in cells['cells'] if c['cell_type'] == 'markdown')['source'] = '# Other words'
    (chain/nb).write_text(json.dumps(cells))
    with open(chain/'srnb/train.py', 'a') as f: f.write('\n# a remark\n')
    with open(chain/'srnb/bounds.py', 'a') as f: f.write('\nwidth = 7\n')
    ran = chain.repro()
    assert ran and all(map(shows, ran)), ran
    chain.sh('git', 'checkout', '-q', 'nbs', 'srnb')
    chain.repro()                                                             # out of the cache


def test_a_weight_retrains_its_row_and_what_follows(chain):
    before = chain.bytes('out/models/srgan.safetensors', 'out/models/ranksrgan_mc.safetensors')
    old = chain.set('ranksrgan.ranksrgan_mc.rank', 0.5)
    ran = chain.repro()
    assert {'ranksrgan@ranksrgan_mc', 'assess@ranksrgan_mc'} <= ran
    assert all(s in ('ranksrgan@ranksrgan_mc', 'assess@ranksrgan_mc') or shows(s) for s in ran), ran
    after = chain.bytes(*before)
    assert [k for k in before if before[k] != after[k]] == ['out/models/ranksrgan_mc.safetensors']
    chain.set('ranksrgan.ranksrgan_mc.rank', old)
    assert chain.repro() == set(), 'the old weight is in the cache'
    assert chain.bytes(*before) == before


def test_a_killed_stage_goes_on_where_it_was(chain):
    for at, value in ('gan.direct_niqe.steps', 24), ('gan.direct_niqe.save_every', 4), ('gan.direct_niqe.validate_every', 24): chain.set(at, value)
    stage = subprocess.Popen(['dvc', 'repro', 'gan@direct_niqe'], cwd=chain.root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((chain/'out/scratch').rglob('*.pt')) and stage.poll() is None and time.monotonic() < deadline: time.sleep(0.05)
    assert stage.poll() is None, 'ended before it could be killed'
    os.killpg(stage.pid, signal.SIGKILL)
    stage.wait()
    time.sleep(3)                                                             # the kernel notices within a second
    assert (chain/'out/nbs/20_train_sr@direct_niqe.partial.ipynb').exists()
    assert not (chain/'out/models/direct_niqe.safetensors').exists()
    assert chain.repro('gan@direct_niqe') == {'gan@direct_niqe'}
    assert not (chain/'out/nbs/20_train_sr@direct_niqe.partial.ipynb').exists()
    resumed = chain.bytes('out/models/direct_niqe.safetensors')
    chain.sh('python', '-m', 'srnb.pipeline.run', '20_train_sr', '-p', 'run', 'direct_niqe')
    assert chain.bytes(*resumed) == resumed, 'a run without interruption gives other weights'
    chain.sh('git', 'checkout', '-q', 'params.yaml')
    chain.repro('gan@direct_niqe')                                            # out of the cache


def test_papermill_by_hand_writes_beside_the_pipeline(chain):
    models = 'out/models/srresnet.safetensors', 'out/models/srgan.safetensors'
    before = chain.bytes(*models)
    chain.sh('papermill', 'nbs/paper/20_train_sr.ipynb', 'out/nbs/sweep.ipynb', '-p', 'run', 'srgan', '-p', 'name', 'srgan_weak', '-y', '{change: {adversarial: 0.001}}')
    assert chain.bytes(*models) == before
    assert chain.bytes('out/models/srgan_weak.safetensors').popitem()[1] not in before.values()
    assert chain.repro('pretrain@srresnet', 'gan@srgan', 'assess@srgan') == set()
    for path in (chain/'out').rglob('*srgan_weak*'): path.unlink()


def test_a_queued_sweep(chain):
    if chain.sh('git', 'status', '--porcelain'): chain.sh('git', 'add', '-A'), chain.sh('git', 'commit', '-q', '-m', 'lock')
    chain.sh('dvc', 'exp', 'run', '--queue', '-S', 'profile=tiny', '-S', 'ranksrgan.ranksrgan_mc.rank=0.01,0.02', 'assess@ranksrgan_mc')
    chain.sh('dvc', 'queue', 'start', '-j', '1')
    deadline = time.monotonic() + 1200
    while (waiting := re.findall(r'\b(?:Queued|Running)\b', chain.sh('dvc', 'queue', 'status'))) and time.monotonic() < deadline: time.sleep(2)
    status = chain.sh('dvc', 'queue', 'status')
    assert not waiting and 'Failed' not in status, status
    chain.sh('dvc', 'queue', 'stop')
    shown = chain.sh('dvc', 'exp', 'show', '--csv')
    assert len(re.findall(r',0\.0[12],', shown)) >= 2, shown
    assert chain.sh('git', 'status', '--porcelain') == '', 'the sweep touched the working copy'


@pytest.mark.parametrize('words, said', [
    (['python', '-m', 'srnb.pipeline.run', '--compose', 'minni'], "unknown profile 'minni' in conf/profile; did you mean 'mini'? Known: bench, mini, mini_sets, paper, tiny."),
    (['python', '-m', 'srnb.pipeline.run', '--compose', 'tiny', 'gan.srgan.rnak=1'], "Could not override 'gan.srgan.rnak'"),
    (['python', '-m', 'srnb.pipeline.run', '20_train'], "unknown notebook '20_train' in nbs/paper; did you mean '20_train_sr'?"),
    (['python', '-m', 'srnb.pipeline.run', '20_train_sr', '-p', 'row', 'srgan'], "unknown parameter 'row' in nbs/paper/20_train_sr.ipynb"),
    (['python', '-m', 'srnb.pipeline.run', '20_train_sr', '-p', 'run', 'srgna'], "unknown row 'srgna' in params.yaml; did you mean 'srgan'?"),
    (['python', '-m', 'srnb.pipeline.run', '20_train_sr', '-p', 'name', 'x', '-p', 'change', '{adversrial: 1}'], "unknown entry 'adversrial' in change of row 'srgan'; did you mean 'adversarial'?"),
], ids=['profile', 'override', 'notebook', 'parameter', 'row', 'term'])
def test_misspelt_names_end_in_one_sentence(clone, words, said): assert said in clone.error(*words)


def test_an_unknown_metric_ends_in_one_sentence(chain):
    chain.set('evaluate.metrics', ['psnrr'])
    assert "unknown metric 'psnrr'" in chain.error('python', '-m', 'srnb.pipeline.run', '30_assess', '-p', 'run', 'bicubic', '-p', 'name', 'spoilt')
    chain.sh('git', 'checkout', '-q', 'params.yaml')


def test_an_unknown_profile_stops_make_before_it_runs(clone):
    (clone/'.venv').mkdir(exist_ok=True)
    (clone/'.venv/ready').touch()
    said = clone.error('make', 'repro', 'profile=minni', status=2)
    assert 'Known: bench, mini, mini_sets, paper, tiny.' in said and 'Running stage' not in said
