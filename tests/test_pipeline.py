"The `tiny` profile from end to end, in a temporary clone with a DVC cache of its own; then what people do to it."
import json
import os
import re
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.slow
RUN = 'python', '-m', 'srnb.pipeline.run'


def test_composition_is_that_of_dvc(clone):
    ours = (clone/'params.yaml').read_bytes()
    clone.sh('dvc', 'exp', 'run', '--queue', '-S', 'profile=tiny')
    queued = clone.sh('git', 'show', 'refs/exps/celery/stash:params.yaml').encode()
    clone.sh('dvc', 'queue', 'remove', '--all')
    assert queued == ours


def test_everything_is_made(chain):
    assert {'photos', 'published', 'pretrain@srresnet', 'gan@srgan', 'assess@srgan'} <= chain.ran
    for path in 'out/models/srresnet.safetensors', 'out/models/srgan.safetensors', 'out/scores/srgan.csv':
        assert (chain/path).stat().st_size
    assert not list((chain/'out').rglob('*partial*')) and not list((chain/'out').rglob('*.part*')), 'half-made files'
    assert not list((chain/'out/scratch').glob('*')), 'checkpoints of finished runs'


def test_every_page_has_its_figure_or_table(chain):
    pages = {p.stem for p in (chain/'nbs/paper').glob('*.ipynb')}
    figures = {p.stem for p in (chain/'out/figures').rglob('*.png')}
    tables = {p.stem for p in (chain/'out/tables').rglob('*.md')}
    assert not {s[3:] for s in pages if s.startswith('80_')} - figures
    assert not {s[3:] for s in pages if s.startswith('90_')} - tables
    published = json.loads((chain/'nbs/paper/published.json').read_text())['tables']
    assert not {t['item'] for t in published if f"90_{t['item']}" in pages} - tables
    drawn = [p for folder in ('figures', 'tables', 'paper') for p in (chain/'out'/folder).rglob('*.*')]
    assert {p.suffix for p in drawn} >= {'.png', '.md'} and all(p.stat().st_size for p in drawn)


def test_executed_notebooks_keep_results_alone(chain):
    for path in (chain/'out/nbs').glob('*.ipynb'):
        nb = json.loads(path.read_text())
        assert nb['metadata'].keys() == {'kernelspec', 'language_info'}
        outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
        assert outputs, f'{path.name} shows nothing'
        assert not [o for o in outputs if o.get('name') == 'stderr' or o['output_type'] == 'error']
        assert str(chain.folder) not in path.read_text(), f'{path.name} holds a path of this machine'


def test_nothing_is_done_twice(chain):
    assert chain.repro(by=('dvc', 'repro')) == set()


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='asks Linux how much memory processes hold')
def test_a_run_stays_within_its_memory(chain):
    assert 0.3e9 < chain.peak < 4e9, f'{chain.peak / 1e9:.1f} GB'


def test_the_same_seed_gives_the_same_bytes(chain):
    files = 'out/models/srresnet.safetensors', 'out/log/srresnet.csv', 'out/nbs/20_train_sr@srresnet.ipynb'
    first = chain.bytes(*files)
    chain.run('20_train_sr', '-p', 'run', 'srresnet')
    assert chain.bytes(*files) == first


def shows(stage: str) -> bool:
    "A stage that draws or writes, and trains nothing."
    return stage.endswith(('_figures', '_tables')) or stage in ('chain', 'claims', 'verdicts')


def test_prose_and_plots_retrain_nothing(chain):
    nb = 'nbs/paper/20_train_sr.ipynb'
    cells = json.loads((chain/nb).read_text())
    next(c for c in cells['cells'] if c['cell_type'] == 'markdown')['source'] = '# Other words'
    (chain/nb).write_text(json.dumps(cells))
    with open(chain/'srnb/training/loop.py', 'a') as f: f.write('\n# a remark\n')
    with open(chain/'srnb/report/pages.py', 'a') as f: f.write('\nwidth = 7\n')
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
    for entry, value in ('steps', 24), ('save_every', 4), ('validate_every', 24):
        chain.set(f'gan.direct_niqe.{entry}', value)
    partial, model = chain/'out/nbs/20_train_sr@direct_niqe.partial.ipynb', 'out/models/direct_niqe.safetensors'
    stage = subprocess.Popen(['dvc', 'repro', 'gan@direct_niqe'], cwd=chain.folder, env=chain.environment,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    def begun(): return list((chain/'out/scratch').rglob('*.pt'))
    while not begun() and stage.poll() is None and time.monotonic() < deadline: time.sleep(0.05)
    assert stage.poll() is None, 'ended before it could be killed'
    os.killpg(stage.pid, signal.SIGKILL)
    stage.wait()
    time.sleep(3)                                                             # the kernel notices within a second
    assert partial.exists() and not (chain/model).exists()
    assert chain.repro('gan@direct_niqe') == {'gan@direct_niqe'}
    assert not partial.exists()
    resumed = chain.bytes(model)
    chain.run('20_train_sr', '-p', 'run', 'direct_niqe')
    assert chain.bytes(model) == resumed, 'a run without interruption gives other weights'
    chain.sh('git', 'checkout', '-q', 'params.yaml')
    chain.repro('gan@direct_niqe')                                            # out of the cache


def test_papermill_by_hand_writes_beside_the_pipeline(chain):
    models = 'out/models/srresnet.safetensors', 'out/models/srgan.safetensors'
    before = chain.bytes(*models)
    chain.sh('papermill', 'nbs/paper/20_train_sr.ipynb', 'out/nbs/sweep.ipynb',
             '-p', 'run', 'srgan', '-p', 'name', 'srgan_weak', '-y', '{change: {adversarial: 0.001}}')
    assert chain.bytes(*models) == before
    assert chain.bytes('out/models/srgan_weak.safetensors').popitem()[1] not in before.values()
    assert chain.repro('pretrain@srresnet', 'gan@srgan', 'assess@srgan') == set()
    for path in (chain/'out').rglob('*srgan_weak*'): path.unlink()


def test_a_queued_sweep(chain):
    if chain.sh('git', 'status', '--porcelain'):
        chain.sh('git', 'add', '-A')
        chain.sh('git', 'commit', '-q', '-m', 'lock')
    chain.sh('dvc', 'exp', 'run', '--queue', '-S', 'profile=tiny', '-S', 'ranksrgan.ranksrgan_mc.rank=0.01,0.02',
             'assess@ranksrgan_mc')
    chain.sh('dvc', 'queue', 'start', '-j', '1')
    deadline = time.monotonic() + 1200
    def waiting(): return re.findall(r'\b(?:Queued|Running)\b', chain.sh('dvc', 'queue', 'status'))
    while waiting() and time.monotonic() < deadline: time.sleep(2)
    status = chain.sh('dvc', 'queue', 'status')
    assert not waiting() and 'Failed' not in status, status
    chain.sh('dvc', 'queue', 'stop')
    shown = chain.sh('dvc', 'exp', 'show', '--csv')
    assert len(re.findall(r',0\.0[12],', shown)) >= 2, shown
    assert chain.sh('git', 'status', '--porcelain') == '', 'the sweep touched the working copy'


@pytest.mark.parametrize('words, said', [
    (['--compose', 'minni'],
     "unknown profile 'minni' in conf/profile; did you mean 'mini'? Known: bench, mini, mini_sets, paper, tiny."),
    (['--compose', 'tiny', 'gan.srgan.rnak=1'],
     "Could not override 'gan.srgan.rnak'"),
    (['20_train'],
     "unknown notebook '20_train' in nbs/paper; did you mean '20_train_sr'?"),
    (['20_train_sr', '-p', 'row', 'srgan'],
     "unknown parameter 'row' in nbs/paper/20_train_sr.ipynb"),
    (['20_train_sr', '-p', 'run', 'srgna'],
     "unknown row 'srgna' in params.yaml; did you mean 'srgan'?"),
    (['20_train_sr', '-p', 'name', 'x', '-p', 'change', '{adversrial: 1}'],
     "unknown entry 'adversrial' in change of row 'srgan'; did you mean 'adversarial'?"),
], ids=['profile', 'override', 'notebook', 'parameter', 'row', 'term'])
def test_misspelt_names_end_in_one_sentence(clone, words, said): assert said in clone.error(*RUN, *words)


def test_an_unknown_metric_ends_in_one_sentence(chain):
    chain.set('evaluate.metrics', ['psnrr'])
    said = chain.error(*RUN, '30_assess', '-p', 'run', 'bicubic', '-p', 'name', 'spoilt')
    assert "unknown metric 'psnrr'" in said
    chain.sh('git', 'checkout', '-q', 'params.yaml')


def test_an_unknown_profile_stops_make_before_it_runs(clone):
    (clone/'.venv').mkdir(exist_ok=True)
    (clone/'.venv/ready').touch()
    said = clone.error('make', 'repro', 'profile=minni', status=2)
    assert 'Known: bench, mini, mini_sets, paper, tiny.' in said and 'Running stage' not in said
