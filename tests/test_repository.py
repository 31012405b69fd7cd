"What holds of the repository as a whole: order of the modules, notebooks and stages, names, requirements."
import ast
import itertools
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution, distributions, requires
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

from srnb import params
from srnb.pipeline import run

root = Path(__file__).parents[1]
library = sorted(root.glob('nbs/library/*.ipynb'))
paper = sorted(root.glob('nbs/paper/*.ipynb'))
by_hand = {'00_data', '21_watch', '60_sweep', '60_user_study', '61_look', '62_protocols', '63_threshold', '64_contradictions'}      # for a person at the desk: nothing in the pipeline runs them


@pytest.fixture(autouse=True)
def here(monkeypatch): monkeypatch.chdir(root)


def committed() -> list[Path]:
    "Files that are in git, or would be after `git add`."
    names = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], capture_output=True, text=True, check=True).stdout
    return [p for name in sorted({*names.split('\0')} - {''}) if (p := root/name).is_file()]


def texts():
    for p in committed():
        if p.suffix in {'.py', '.ipynb', '.md', '.yaml', '.yml', '.ini', '.toml', '.txt', '.csv', ''} and 'store' not in p.relative_to(root).parts: yield p, p.read_text(encoding='utf-8')


def code(path: Path) -> str: return '\n\n'.join(c['source'] for c in run.read(path))


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The committed files, elsewhere."
    there = tmp_path_factory.mktemp('copy')/'srnb'
    for p in committed():
        if 'store' in p.relative_to(root).parts: continue
        to = there/p.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(p, to)
    subprocess.run(['git', 'init', '-q'], cwd=there, check=True)
    return there


@pytest.fixture(scope='module')
def stages() -> dict:
    "DVC's own reading of dvc.yaml: stage → command, dependencies, outputs."
    listing = "import json; from dvc.repo import Repo; print(json.dumps({s.addressing: [s.cmd, [d.def_path for d in s.deps], [[o.def_path, o.can_push] for o in s.outs]] for s in Repo('.').index.stages if s.cmd}))"
    return json.loads(subprocess.run([sys.executable, '-c', listing], cwd=root, capture_output=True, text=True, check=True).stdout)


def runs(cmd) -> list[str]:
    "The notebooks, or groups of them, that a stage's command names."
    cmds = cmd if isinstance(cmd, list) else [cmd]
    return [w for c in cmds if (m := re.search(r'-m srnb\.run ((?:[\w.]+ ?)+)', c)) for w in m[1].split()]


# modules and notebooks

def test_modules_import_only_lower_numbered_ones():
    named = {p: re.search(r'^#\| *default_exp (\S+)', code(p), re.M) for p in library}         # a notebook that only teaches exports nothing
    number = {f'srnb.{m[1]}': int(p.name[:2]) for p, m in named.items() if m}
    assert len(number) == len({p for p in root.glob('srnb/**/*.py') if not p.name.startswith('_')})
    for p in library:
        names, _ = run.mentions('\n'.join(s for c in run.read(p) if (s := c['source']).startswith('#| export')))
        wrong = {n for n in names if number.get(n, -1) > int(p.name[:2])}
        assert not wrong, f'{p.name} imports {", ".join(wrong)}, which has a higher number'
    for p in paper: assert {n for n in run.mentions(code(p))[0] if n.startswith('srnb.') and n.count('.') == 1} <= number.keys() | {'srnb.models'}


def test_nbdev_export_leaves_no_diff(copy):
    subprocess.run(['nbdev_export'], cwd=copy, check=True, capture_output=True)
    made = {p.relative_to(copy): p.read_bytes() for p in copy.glob('srnb/**/*.py')}
    assert made == {p.relative_to(root): p.read_bytes() for p in committed() if p.suffix == '.py' and p.relative_to(root).parts[0] == 'srnb'}


def test_notebooks_are_clean(copy):
    subprocess.run(['nbdev_clean', '--fname', 'nbs'], cwd=copy, check=True, capture_output=True)
    for p in library + paper:
        assert (copy/p.relative_to(root)).read_bytes() == p.read_bytes(), f'{p.name}: run nbdev_clean'
        assert p.stat().st_size < 300_000, f'{p.name}: outputs too large'


@pytest.mark.parametrize('path', paper, ids=lambda p: p.stem)
def test_experiments_keep_their_parameters_tag(path): run.parameters(path.stem)


@pytest.mark.parametrize('path', library + paper, ids=lambda p: p.stem)
def test_notebooks_stay_plain(path):
    source = code(path)
    for word in ('import *', 'sys.path', 'pip install', '%cd', 'if cuda'): assert word not in source, word
    assert not re.search(r'^\s*!', source, re.M), 'a shell command'
    assert len(run.read(path)) <= (14 if path in paper else 60)


# profiles and stages

def leaves(tree, at=()):
    "The keys of a tree, down to values and to the sets that a profile names."
    if not isinstance(tree, dict) or at in {('evaluate', 'sets'), ('numbers', 'sets')}: return {at}
    return set().union(*(leaves(v, (*at, k)) for k, v in tree.items())) if tree else {at}


def test_profiles_have_the_same_keys(copy, monkeypatch):
    monkeypatch.chdir(copy)
    keys = {p.stem: leaves(yaml.safe_load(params.compose(p.stem).read_text())) for p in sorted(root.glob('conf/profile/*.yaml'))}
    assert keys.keys() == {'tiny', 'mini', 'mini_sets', 'bench', 'paper'}
    assert keys['mini_sets'] - keys['mini'] == {('assess', name, 'source') for name in ('srresnet_ledig', 'srgan_ledig')}
    keys['mini_sets'] &= keys['mini']
    for a, b in itertools.pairwise(keys): assert keys[a] == keys[b], f'{a} and {b} differ in {keys[a] ^ keys[b]}'


def test_params_are_the_composed_mini(copy, monkeypatch):
    monkeypatch.chdir(copy)
    committed = subprocess.run(['git', 'show', 'HEAD:params.yaml'], cwd=root, capture_output=True, text=True)
    if committed.returncode: pytest.skip('params.yaml is not committed yet')
    assert params.compose('mini').read_text() == committed.stdout


def test_experiments_and_stages_match(stages):
    used = [s for cmd, *_ in stages.values() for name in runs(cmd) for s in run.groups()[name]]
    assert set(used) == {p.stem for p in paper} - by_hand
    for stem in {s for s in used if s[0] in '89'}: assert used.count(stem) == 1, f'{stem} is run by {used.count(stem)} stages'


def test_stages_depend_on_the_code_of_their_notebooks(stages):
    for name, (cmd, deps, outs) in stages.items():
        missing = {f'out/code/{s}.txt' for s in runs(cmd)} - {*deps}
        assert not missing, f'{name} runs without depending on {missing}'
        pushed = [o for o, push in outs if push and not o.startswith('out/code')]
        assert not pushed, f'{name}: push: false is missing at {pushed}, or `dvc push` takes them into the store'


def test_training_depends_on_no_plot():
    drawing = {line.split()[0] for line in run.fingerprint('20_train_sr').splitlines()} & {'srnb.report.figures', 'srnb.report.tables', 'srnb.pipeline.items'}
    assert not drawing


@pytest.mark.parametrize('path', [p for p in paper if p.name[0] in '89'], ids=lambda p: p.stem)
def test_figures_and_tables_wait_for_no_torch(path):
    imports = [ast.unparse(n) for n in ast.walk(ast.parse(code(path))) if isinstance(n, ast.Import | ast.ImportFrom)]
    asked = '\n'.join([*imports, 'import sys', "sys.exit('torch' in sys.modules)"])
    assert subprocess.run([sys.executable, '-c', asked], cwd=root).returncode == 0, f'{path.stem} imports torch'


# names and requirements

def test_no_path_of_one_machine():
    mark = re.compile(r'/(?:home|root|Users|work|mnt|opt)/\w|[A-Z]:\\\\')
    for p, text in texts():
        if p == Path(__file__): continue
        assert not (found := mark.search(text)), f'{p.relative_to(root)}: {found[0]}'
        assert p == root/'.ci'/'run' or '../' + 'shared' not in text, f'{p.relative_to(root)} names a folder outside the repository'


def test_names_are_ours():
    foreign = re.compile(r'\b(netG|netD|l_rate|LQ|num_feat|upscale_factor|calculate_psnr|calculate_ssim)\b')
    for p, text in texts():
        if p != Path(__file__) and p.suffix in {'.py', '.ipynb'}: assert not (found := foreign.search(text)), f'{p.relative_to(root)}: {found[0]}'


def needed(name: str, seen: set):
    "The installed packages that `name` needs, and those they need."
    for r in map(Requirement, requires(name) or ()):
        key = re.sub(r'[-_.]+', '-', r.name).lower()
        if key in seen or (r.marker and not (r.marker.evaluate({'extra': 'dev'}) if name == 'srnb' else r.marker.evaluate({'extra': ''}))): continue
        seen.add(key)
        needed(key, seen)
    return seen


def test_constraints_cover_what_is_needed():
    lines = (root/'constraints.txt').read_text().splitlines()
    assert all(re.fullmatch(r'[\w.-]+==[\w.!]+', line) for line in lines), 'name==version, one a line'
    pinned = {re.sub(r'[-_.]+', '-', n).lower(): v for n, v in (line.split('==') for line in lines)}
    installed = {re.sub(r'[-_.]+', '-', d.name).lower() for d in distributions()}
    wanted = (needed('srnb', set()) | {'opencv-python-headless'}) & installed - {'setuptools', 'pip', 'wheel'}
    assert not wanted - pinned.keys()
    assert {n: v for n in wanted if (v := distribution(n).version) != pinned[n]} == {}


def test_requirements_are_in_settings_alone():
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    declared = {Requirement(r).name for k in ('requirements', 'dev_requirements') for r in ini['DEFAULT'][k].split()}
    assert declared == {Requirement(r).name for r in requires('srnb')}


def test_opencv_asks_for_no_screen():
    site = Path(distribution('opencv-python-headless').locate_file(''))
    binaries = [p for folder in ('cv2', 'opencv_python.libs', 'opencv_python_headless.libs') for p in (site/folder).rglob('*.so*')]
    assert binaries
    asking = [p.name for p in binaries if b'libGL.so' in p.read_bytes()]
    assert not asking, f'{asking} ask for libGL: install opencv-python-headless last'


def test_the_store_holds_the_photographs_and_no_more():
    sizes = [p.stat().st_size for p in committed() if p.relative_to(root).parts[0] == 'store']
    assert 0 < sum(sizes) <= 30e6


def test_readme_opens_with_the_published_verdicts():
    "README's table, counts and quoted sentences are those of results/mini_sets."
    readme, published = (root/'README.md').read_text(encoding='utf-8'), root/'results/mini_sets/paper'
    table = [line for line in (published/'verdicts.md').read_text(encoding='utf-8').splitlines() if line.startswith('|')]
    assert '\n'.join(table) in readme
    claims = pd.read_csv(published/'claims.csv').assign(verdict=lambda t: t.verdict.str.split(':').str[0])
    decided = claims.verdict.value_counts()
    assert f"Of the {len(claims)} sentences of the papers that can be true or false, {decided['holds']} hold, {decided['fails']} fail, {decided['undecided']} are undecided, {decided['not available']} cannot be asked" in readme
    quoted = {s: word for word, line in re.findall(r'^\* \*\*(\w+)\*\*: (“.*)$', readme, re.M) for s in re.findall('“(.*?)”', line)}
    assert len(quoted) >= 15 and quoted.items() <= {*zip(claims.sentence, claims.verdict)}


def test_readme_shows_the_published_seeds():
    "The table of three seeds, number by number."
    readme = (root/'README.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\|[^|]*\| (\S+, \S+, \S+) \| (\S+ \[\S+, \S+\]) \|', readme, re.M)
    shown = lambda x: f'{x:+.2f}'.replace('-', '−')
    found = pd.read_csv(root/'results/mini_sets/tables/claims/claims_seeds.csv')
    by = [t.set_index('seed') for _, t in found.groupby('claim')]
    published = {(', '.join(shown(t.value[f'seed {s}']) for s in range(3)), '{} [{}, {}]'.format(*map(shown, t.loc['all seeds', ['value', 'low', 'high']]))) for t in by}
    assert len(rows) >= 7 and {*rows} <= published
