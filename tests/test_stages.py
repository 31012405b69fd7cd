"Parameters and pipeline: profiles are alike, every row can be read, every notebook has its stage."
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from srnb import params
from srnb.data import photos
from srnb.pipeline import run
from srnb.params import EusrRow, GeneratorRow, PredictorRow, RankSetRow, RankerRow, Row
from srnb.pipeline.stages import MARK, pipeline_text

root = Path(__file__).parents[1]
paper = sorted(root.glob('nbs/paper/*.ipynb'))
BY_HAND = {'00_data', '21_watch', '60_sweep', '60_user_study', '61_look', '62_protocols', '63_threshold',
           '64_contradictions', '65_label_noise', '66_degradations', '67_try', '68_equation_9', '68_rank_dataset',
           '68_ranker_for_rrdb'}   # for a person at the desk

pytestmark = pytest.mark.usefixtures('here')


# profiles

@pytest.fixture(scope='module')
def profiles() -> dict[str, dict]:
    "The parameters of each profile."
    with pytest.MonkeyPatch.context() as m:
        m.chdir(root)
        return {p.stem: params.composed(p.stem) for p in sorted(root.glob('conf/profile/*.yaml'))}


def leaves(tree, at=()) -> set[tuple]:
    "The keys of a tree, down to values and to the sets and levels that a profile names."
    named = at[-1:] in {('sets',), ('levels',)} or at in {('numbers', 'chain', 'local')}
    if not isinstance(tree, dict) or not tree or named: return {at}
    return set().union(*(leaves(v, (*at, k)) for k, v in tree.items()))


def test_parameters_say_first_that_they_are_composed(profiles):
    for p in profiles.values(): assert next(iter(p)) == 'composed'
    assert (root/'params.yaml').read_text(encoding='utf-8').startswith(f"composed: {profiles['tiny']['composed']}\n")


def test_profiles_have_the_same_keys(profiles):
    keys = {name: leaves(p) for name, p in profiles.items()}
    assert keys.keys() == {'tiny', 'mini', 'mini_sets', 'bench', 'paper'}
    for name in keys: assert keys[name] == keys['mini'], f'{name} and mini differ in {keys[name] ^ keys["mini"]}'


def test_params_are_the_composed_mini(copy, monkeypatch):
    monkeypatch.chdir(copy)
    head = subprocess.run(['git', 'show', 'HEAD:params.yaml'], cwd=root, capture_output=True, text=True)
    if head.returncode: pytest.skip('params.yaml is not committed yet')
    assert params.compose('mini').read_text() == head.stdout


# rows

KINDS = {'generator': GeneratorRow, 'pretrain': GeneratorRow, 'gan': GeneratorRow, 'srgan': GeneratorRow,
         'ranksrgan': GeneratorRow, 'ranksrgan_across': GeneratorRow, 'ranksrgan_gradient': GeneratorRow,
         'scored': EusrRow, 'rank_set': RankSetRow, 'ranker': RankerRow, 'ranker_across': RankerRow,
         'ranker_gradient': RankerRow, 'predictor': PredictorRow}


def test_every_row_of_every_profile_can_be_read(profiles):
    for p in profiles.values():
        for block in params.BLOCKS:
            for name, given in p[block].items(): params.kind_of(block, given).read(given, name=name)
        for name, given in p['assess'].items(): params.AssessRow.read(given, name=name)
        for name, given in p['fuse'].items(): params.FuseRow.read(given, name=name)


def test_published_rows_are_their_networks(profiles):
    "Layout, and a critic for those that have one; all that others trained is written by one stage."
    import torch

    from srnb.models.layers import count_parameters
    from srnb.models.published import PUBLISHED_NETWORKS
    from srnb.training.methods import network
    block = profiles['tiny']['published']
    for p in profiles.values(): assert p['published'] == block
    rows = {name: params.PublishedRow.read(given, name=name) for name, given in block.items()}
    for row in rows.values():
        with torch.device('meta'): net = network(row)
        assert count_parameters(net) == PUBLISHED_NETWORKS[row.weights].parameters
    made = {*rows, *(f'{name}_critic' for name, row in rows.items() if row.critic)}
    named = {row.weights for row in rows.values()} | {row.critic for row in rows.values()} - {''}
    assert named == {*PUBLISHED_NETWORKS}
    outs = yaml.safe_load((root/'dvc.yaml').read_text(encoding='utf-8'))['stages']['published']['outs']
    assert {Path(next(iter(out))).stem for out in outs} == made


def own(value) -> bool:
    "A value of this file, not one of the profile's numbers."
    return '${' not in str(value)


def differing(row: Row, entries: dict) -> list[str]:
    "Entries that are not as the row has them."
    nested = {k: getattr(row, k) for k in entries if isinstance(getattr(row, k), Row)}
    return [k for k, v in entries.items() if (differing(nested[k], v) if k in nested else getattr(row, k) != v)]


@pytest.mark.parametrize('path', sorted(root.glob('conf/row/*.yaml')), ids=lambda p: p.stem)
def test_entries_of_conf_are_fields_of_their_rows(path):
    "And where a file that stands on no other names a value, it is the field's default."
    given = yaml.safe_load(path.read_text(encoding='utf-8'))
    entries, kind = {k: v for k, v in given.items() if k != 'defaults'}, KINDS[path.stem]
    assert entries.keys() <= kind().entries().keys()
    values = {k: v for k, v in entries.items() if own(v)}
    kind.read(values, name=path.stem)
    if 'defaults' not in given: assert not differing(kind(), values)

# the papers' own numbers

RECIPES = [   # of the profile paper: where, what, and who says so: P a paper's text, C its authors' code
    ('pretrain.srresnet', {'photos': 'train', 'patch': 128, 'batch': 16, 'steps': 1_000_000, 'rate': 0.0002,
                           'betas': [0.9, 0.99], 'schedule': 'restarts', 'halve_at': [250_000, 500_000, 750_000],
                           'pixel_loss': 'l1', 'size': {'nf': 64, 'blocks': 16}}, 'C train_SRResNet.yml'),
    ('pretrain.rrdb_psnr', {'patch': 128, 'batch': 16, 'rate': 0.0002, 'schedule': 'halve', 'pixel_loss': 'l1',
                            'halve_at': [200_000, 400_000, 600_000, 800_000],
                            'size': {'nf': 64, 'gc': 32, 'blocks': 23}}, 'P ESRGAN 4.1, C for size'),
    ('gan.esrgan', {'photos': 'other', 'patch': 128, 'batch': 16, 'steps': 400_000, 'rate': 0.0001,
                    'critic_rate': 0.0001, 'pixel': 0.01, 'schedule': 'halve',
                    'halve_at': [50_000, 100_000, 200_000, 300_000], 'adversarial': 0.005, 'content': 1},
     'P ESRGAN 4.1, C BasicSR'),
    ('gan.esrgan_pirm', {'photos': 'other', 'patch': 128, 'batch': 16, 'pixel': 10, 'adversarial': 0.005},
     'P ESRGAN 4.5'),
    ('gan.srgan', {'photos': 'train', 'patch': 296, 'batch': 8, 'pixel': 0, 'content': 1, 'adversarial': 0.005},
     'P RankSRGAN 4.2 (R8)'),
    ('rank_dataset.rank', {'photos': 'other', 'patch': 296, 'stride': 200, 'split': 'photograph', 'valid': 0.1,
                           'most': 200, 'sharpness': 40, 'difference': 0.1}, 'P RankSRGAN 4.1, C (R10, R12, R13)'),
    ('ranker.ranker_niqe', {'rate': 0.001, 'decay': 0.0001, 'steps': 300_000, 'margin': 0.5, 'schedule': 'halve',
                            'batch': 32, 'crop': 0, 'halve_at': [100_000, 200_000], 'most': 0, 'clamp': 5},
     'P RankSRGAN 4.1, C Ranker.json (R3)'),
    ('ranker.ranker_d1', {'most': 13_500, 'dataset': 'rank'},
     'P supplement: a tenth of 135,000 that are learned from'),
    ('ranksrgan.ranksrgan_niqe', {'photos': 'train', 'patch': 296, 'batch': 8, 'steps': 600_000, 'rate': 0.0001,
                                  'critic_rate': 0.0001, 'rank': 0.03,
                                  'halve_at': [50_000, 100_000, 200_000, 300_000], 'rank_reduction': 'sum',
                                  'start': 'srresnet', 'rank_mode': 'eval', 'adversarial': 0.005, 'pixel': 0,
                                  'ema': 0}, 'P RankSRGAN 4.2, eq. 12'),
    ('ranksrgan.ranksrgan_m2', {'pixel': 5}, 'P RankSRGAN table 7'),
    ('pretrain.mr_srgan', {'patch': 96, 'batch': 16, 'turns': 'flip', 'rate': 0.0001, 'steps': 306_000,
                           'adversarial': 0.001, 'content': 0.006, 'keep': 'ssim'},
     'P Bi-GANs-ST 4.1: 600 epochs of 8,156'),
    ('pretrain.wp_srgan_1', {'patch': 96, 'batch': 16, 'turns': 'flip', 'steps': 500_000, 'schedule': 'tenth',
                             'halve_at': [250_000], 'content': 0}, 'P Bi-GANs-ST 4.1'),
    ('gan.wp_srgan', {'turns': 'flip', 'steps': 500_000, 'schedule': 'tenth', 'halve_at': [250_000], 'pixel': 0,
                      'content': 0.006}, 'P Bi-GANs-ST 4.1'),
    ('pretrain.eusr', {'photos': 'train', 'patch': 192, 'batch': 16, 'scales': [2, 4, 8], 'rate': 0.0001,
                       'betas': [0.9, 0.999], 'steps': 1_000_000,
                       'halve_at': [200_000, 400_000, 600_000, 800_000]}, 'P 4PP-EUSR 4.1'),
    ('scored.eusr_4pp', {'photos': 'scored', 'batch': 2, 'rate': 1e-5, 'critic_rate': 2e-5, 'schedule': 'constant',
                         'steps': 200_000, 'adversarial': 0.1, 'aesthetic_score': 0.01, 'aesthetic_features': 0.1,
                         'subjective_score': 0.01, 'subjective_features': 0.1, 'score_alpha': 0.8},
     'P 4PP-EUSR 4.3, eq. 8'),
    ('pretrain.edsr', {'patch': 192, 'batch': 16, 'steps': 300_000, 'rate': 0.0001, 'schedule': 'halve',
                       'halve_at': [200_000], 'pixel_loss': 'l1', 'size': {'nf': 256, 'blocks': 32}},
     'P EDSR 4.2, C for steps'),
    ('pretrain.mdsr', {'scales': [2, 3, 4], 'size': {'nf': 64, 'blocks': 80}}, 'P EDSR table 1'),
    ('pretrain.rcan', {'size': {'nf': 64, 'groups': 10, 'blocks': 20, 'reduction': 16}}, 'P RCAN 4.1'),
    ('gan.enhancenet', {'start': 'enhancenet_e', 'content': 0.4, 'content_loss': 'mse', 'content_relative': True,
                        'features': 'vgg19_pools', 'texture': 0.2, 'texture_features': 'vgg19_textures',
                        'adversarial': 2, 'pixel': 0}, 'P EnhanceNet 5.3, its supplement table 2'),
    ('gan.cx', {'contextual': 0.1, 'contextual_features': 'vgg19_34', 'pixel': 40, 'pixel_loss': 'low',
                'adversarial': 0.001, 'content': 0}, 'P CX 4.1: 10, of pictures in -1...1'),
    ('gan.srgan_vgg22', {'content': 0.006, 'content_loss': 'mse', 'features': 'vgg19_22_relu',
                         'adversarial': 0.001, 'start': 'srresnet'}, 'P SRGAN 2.2, 3.2'),
    ('gan.srgan_mse', {'pixel_loss': 'mse', 'pixel': 4, 'content': 0, 'adversarial': 0.001},
     'P SRGAN 2.2, 3.2: 1, of pictures in -1...1'),
]


@pytest.mark.parametrize('where, numbers, source', RECIPES, ids=[where for where, _, _ in RECIPES])
def test_the_paper_profile_is_the_papers(profiles, where, numbers, source):
    block, name = where.split('.')
    row = params.kind_of(block, profiles['paper'][block][name]).read(profiles['paper'][block][name], name=name)
    assert {entry: getattr(row, entry) for entry in numbers} == numbers, source


def test_the_paper_profile_has_the_papers_photographs(profiles):
    source = profiles['paper']['photos']
    assert source['train'] == 'div2k' and source['other'] == 'div2k + flickr2k'
    parts = source['scored'].split(' + ')
    whole = [part for part in parts if not part.startswith('half ')]
    assert sorted(parts) == sorted([*whole, *(f'half {part}' for part in whole)])
    assert 2 * sum(photos.PUBLIC[part].count for part in whole) == 1800                        # P 4PP-EUSR 4.3
    assert {'set5', 'set14', 'bsd100', 'urban100'} <= profiles['paper']['evaluate']['sets'].keys()


def test_metrics_and_ratings_of_people_can_be_asked_for(copy, monkeypatch):
    monkeypatch.chdir(copy)
    asked = 'profile=paper', 'with=metrics=full ratings=people'
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    subprocess.run(['make', '-s', '-o', '.venv/ready', 'compose', *asked], cwd=copy, check=True,
                   env=os.environ | {'PATH': path})
    found = params.current()
    assert {'ranksrgan_ma', 'ranksrgan_pi'} <= found['ranksrgan'].keys()
    assert found['rated'] == {'aesthetic': 'predictor_ava', 'subjective': 'predictor_tid2013'}
    for name, epochs, pictures in ('predictor_ava', 5, 250_000), ('predictor_tid2013', 100, 2_640):   # P 4PP-EUSR 4.2
        for phase, batch in ('head', 128), ('whole', 32):
            given = found['predictor'][name][phase]
            assert given['batch'] == batch and abs(given['steps'] - epochs * pictures / batch) < 1
    params.compose('mini')


# stages

@pytest.fixture(scope='module')
def stages() -> dict:
    "DVC's own reading of dvc.yaml: stage → command, dependencies, outputs."
    script = '''
import json
from dvc.repo import Repo
def about(s): return [s.cmd, [d.def_path for d in s.deps], [[o.def_path, o.can_push] for o in s.outs]]
print(json.dumps({s.addressing: about(s) for s in Repo('.').index.stages if s.cmd}))
'''
    asked = [sys.executable, '-c', script]
    return json.loads(subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True).stdout)


def code(path: Path) -> str: return '\n\n'.join(c['source'] for c in run.code_cells(path))

def runs(cmd) -> list[str]:
    "The notebooks, or groups of them, that a stage's command names."
    commands = cmd if isinstance(cmd, list) else [cmd]
    found = [re.search(r'-m srnb\.pipeline\.run ((?:[\w.]+ ?)+)', c) for c in commands]
    return [word for m in found if m for word in m[1].split()]


def test_experiments_and_stages_match(stages):
    used = [s for cmd, *_ in stages.values() for name in runs(cmd) for s in run.groups()[name]]
    assert set(used) == {p.stem for p in paper} - BY_HAND
    twice = {s for s in used if s[0] in '89' and used.count(s) > 1}
    assert not twice, f'run by several stages: {twice}'


def test_stages_depend_on_the_code_of_their_notebooks(stages):
    for name, (cmd, deps, outs) in stages.items():
        missing = {f'out/code/{s}.txt' for s in runs(cmd)} - {*deps}
        assert not missing, f'{name} runs without depending on {missing}'
        pushed = [o for o, push in outs if push and not o.startswith('out/code')]
        assert not pushed, f'{name}: push: false is missing at {pushed}, or `dvc push` takes them into the store'


def test_lists_of_stages_are_read_off_the_notebooks(profiles):
    text = (root/'dvc.yaml').read_text(encoding='utf-8')
    why = 'a notebook reads something else: run `python -m srnb.pipeline.stages`'
    assert text == pipeline_text(profiles['tiny']), why
    assert text == pipeline_text(profiles['paper'])


def test_what_figures_and_tables_read_is_not_listed_by_hand(stages):
    text = (root/'dvc.yaml').read_text(encoding='utf-8')
    marked = re.findall(rf'^  (\w+):\n(?:    (?!deps).*\n)*    deps: {MARK}$', text, re.M)
    late = {name for name, (cmd, *_) in stages.items() if any(word[0] in '789' for word in runs(cmd))}
    assert {*marked} == late - {'verdicts'}                    # which asks whatever has been scored, folder by folder


def test_fingerprints_read_each_module_once(copy, monkeypatch):
    monkeypatch.chdir(copy)
    read, digest = [], run.digest
    monkeypatch.setattr(run, 'digest', lambda source: read.append(source) or digest(source))
    run.write_code()
    modules = {p.read_text(encoding='utf-8') for p in copy.glob('srnb/**/*.py')} - {''}
    twice = {source[:80] for source in modules if read.count(source) > 1}
    assert modules & {*read} and not twice, f'read more than once: {twice}'


def test_training_depends_on_no_plot():
    used = {line.split()[0] for line in run.fingerprint('20_train_sr').splitlines()}
    assert not [name for name in used if name.startswith(('srnb.report.', 'srnb.pipeline.'))]


def test_figures_and_tables_wait_for_no_torch():
    def imports(p): return [n for n in ast.walk(ast.parse(code(p))) if isinstance(n, ast.Import | ast.ImportFrom)]
    pages = {p.stem: '\n'.join(map(ast.unparse, imports(p))) for p in paper if p.name[0] in '89'}
    script = '''
import json, sys, traceback
class Refused(Exception): pass
class Guard:
    def find_spec(self, name, *more):
        if name == 'torch': raise Refused
sys.meta_path.insert(0, Guard())
for page, lines in json.load(sys.stdin).items():
    try: exec(lines, {})
    except Refused as e:
        files = [f.filename for f in traceback.extract_tb(e.__traceback__) if 'srnb' in f.filename]
        print(page, 'by', files[-1])
'''
    asked = [sys.executable, '-c', script]
    said = subprocess.run(asked, cwd=root, input=json.dumps(pages), capture_output=True, text=True, check=True).stdout
    assert not said, f'pages that import torch:\n{said}'
