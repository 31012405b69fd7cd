"What a stranger meets first: the front door, names, requirements."
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution, distributions, requires
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

root = Path(__file__).parents[1]
TEXT = {'.py', '.ipynb', '.md', '.yaml', '.yml', '.ini', '.toml', '.txt', '.csv', '.cff', ''}

pytestmark = pytest.mark.usefixtures('here')


@pytest.fixture(scope='module')
def texts(committed) -> dict[Path, str]:
    "Everything committed that can be read."
    own = [p for p in committed if p.suffix in TEXT and p.relative_to(root).parts[0] != 'store']
    return {p: p.read_text(encoding='utf-8') for p in own}


# the front door

DOORS = ['README.md', 'CONTRIBUTING.md', 'results/README.md']
README = (root/'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('door', DOORS)
def test_what_it_tells_you_to_type_exists(door):
    text, make = (root/door).read_text(encoding='utf-8'), (root/'Makefile').read_text(encoding='utf-8')
    stages = yaml.safe_load((root/'dvc.yaml').read_text(encoding='utf-8'))['stages']
    def at(name): return root/f'{name.replace(".", "/")}.py'
    assert not [m for m in re.findall(r'python -m (srnb[\w.]*\w)', text) if not at(m).exists()]
    assert not [t for t in re.findall(r'(?:^|`)make ([a-z-]+)', text, re.M) if not re.search(rf'^{t}:', make, re.M)]
    assert not {s for asked in re.findall(r'dvc repro ([\w ]+\w)', text) for s in asked.split()} - stages.keys()
    links = re.findall(r'\]\((?!http|#)([^)]+)\)', text)
    assert not [link for link in links if not (root/door).parent.joinpath(link).exists()]


def test_make_prints_its_targets():
    asked = subprocess.run(['make'], cwd=root, capture_output=True, text=True, check=True).stdout
    make = (root/'Makefile').read_text(encoding='utf-8')
    silent = {'compose', 'data', 'test-pipeline', 'test-others'}
    targets = {*re.search(r'^\.PHONY: (.*)', make, re.M)[1].split()} - silent
    assert {*re.findall(r'^  make (\S+) +\S', asked, re.M)} == targets


def test_layout_names_every_package():
    packages = {p.parent.name for p in root.glob('srnb/*/__init__.py')}
    alone = {p.stem for p in root.glob('srnb/*.py') if not p.name.startswith('_')}
    named = re.findall(r'^    (\w+(?:, \w+)*)  ', README, re.M)
    assert {word for line in named for word in line.split(', ')} == packages | alone


def test_nbdev_leaves_the_readme_alone(copy):
    "`nbdev_prepare` would render it from the notebook that settings.ini names: there must be none."
    before = (copy/'README.md').read_bytes()
    script = 'from nbdev.quarto import nbdev_readme; nbdev_readme.__wrapped__(chk_time=True)'
    said = subprocess.run([sys.executable, '-c', script], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert 'Could not find' in said and (copy/'README.md').read_bytes() == before


# what it says of the published run

published = root/'results/mini_sets'          # every number and sentence
RESULTS = (root/'results/README.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def claims() -> pd.DataFrame:
    table = pd.read_csv(published/'paper/claims.csv')
    return table.assign(verdict=table.verdict.str.split(':').str[0])


def test_results_open_with_the_published_verdicts():
    lines = (published/'paper/verdicts.md').read_text(encoding='utf-8').splitlines()
    table = [line for line in lines if line.startswith('|')]
    assert '\n'.join(table) in RESULTS
    names, numbers = ([c.strip() for c in line.strip('|').split('|')] for line in (table[0], table[-1]))
    of = dict(zip(names, numbers))
    assert (f"Of the {of['numbers']} numbers that the papers print, {of['reproduced']} are reproduced, "
            f"{of['same order']} more are ordered as in the paper, {of['differs']} differ") in README


def test_sentences_are_the_published_ones(claims):
    n = claims.verdict.value_counts()
    decided = f"{n['holds']} hold, {n['fails']} fail, {n['undecided']} are undecided"
    assert f'{len(claims)} sentences that can be true or false, {decided}.' in README
    assert (f"{len(claims)} sentences of the papers that can be true or false, {decided}, "
            f"{n['not available']} cannot be asked") in RESULTS
    listed = re.findall(r'^\* \*\*(\w+)\*\*: (“.*)$', RESULTS, re.M)
    quoted = {s: word for word, line in listed for s in re.findall('“(.*?)”', line)}
    assert len(quoted) >= 15 and quoted.items() <= {*zip(claims.sentence, claims.verdict)}


def shown(value: float) -> str: return f'{value:+.2f}'.replace('-', '−')


def test_seeds_are_the_published_ones():
    "The tables of all seeds, number by number, and what README repeats of them."
    made, seeds = set(), set()
    for run in 'mini', 'mini_sets':
        found = pd.read_csv(root/'results'/run/'tables/claims/claims_seeds.csv')
        for _, t in found.groupby('claim'):
            t = t.set_index('seed')
            value, low, high = map(shown, t.loc['all seeds', ['value', 'low', 'high']])
            alone = ', '.join(shown(t.value[seed]) for seed in t.index if seed != 'all seeds')
            made.add((alone, f'{value} [{low}, {high}]', t.verdict['all seeds'].split(':')[0]))
        seeds.add(found.seed.nunique() - 1)
    rows = re.findall(r'^\|[^|]*\| (\S+(?:, \S+)+) \| (\S+ \[\S+, \S+\]) \| \**(\w+)', RESULTS, re.M)
    assert len(rows) >= 12 and {*rows} <= made
    count, = ({3: 'three', 4: 'four', 5: 'five', 6: 'six'}[n] for n in seeds)
    repeated = re.findall(r'[+−][\d.]+ \[[+−][\d.]+, [+−][\d.]+\]', README)
    assert f'over {count} seeds' in README and repeated and {*repeated} <= {together for _, together, _ in made}


# names and requirements

def test_no_path_of_one_machine(texts):
    mark = re.compile(r'/(?:home|root|Users|work|mnt|opt)/\w|[A-Z]:\\\\')
    for p, text in texts.items():
        if p == Path(__file__): continue
        name = p.relative_to(root)
        assert not (found := mark.search(text)), f'{name}: {found[0]}'
        assert p == root/'.ci'/'run' or '../' + 'shared' not in text, f'{name} names a folder outside the repository'


def test_names_are_ours(texts):
    foreign = re.compile(r'\b(netG|netD|l_rate|LQ|num_feat|upscale_factor|calculate_psnr|calculate_ssim)\b')
    for p, text in texts.items():
        if p == Path(__file__) or p.suffix not in {'.py', '.ipynb'}: continue
        assert not (found := foreign.search(text)), f'{p.relative_to(root)}: {found[0]}'


def canonical(name: str) -> str: return re.sub(r'[-_.]+', '-', name).lower()

def needed(name: str, seen: set):
    "The installed packages that `name` needs, and those they need."
    extra = {'extra': 'dev' if name == 'srnb' else ''}
    for r in map(Requirement, requires(name) or ()):
        key = canonical(r.name)
        if key in seen or (r.marker and not r.marker.evaluate(extra)): continue
        seen.add(key)
        needed(key, seen)
    return seen


def test_constraints_cover_what_is_needed():
    lines = (root/'constraints.txt').read_text().splitlines()
    assert all(re.fullmatch(r'[\w.-]+==[\w.!]+', line) for line in lines), 'name==version, one a line'
    pinned = {canonical(n): v for n, v in (line.split('==') for line in lines)}
    installed = {canonical(d.name) for d in distributions()}
    wanted = (needed('srnb', set()) | {'opencv-python-headless'}) & installed - {'setuptools', 'pip', 'wheel'}
    assert not wanted - pinned.keys()
    assert {n: v for n in wanted if (v := distribution(n).version) != pinned[n]} == {}


def test_requirements_are_in_settings_alone():
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    kinds = [key for key in ini['DEFAULT'] if key.endswith('requirements')]
    declared = {Requirement(r).name for key in kinds for r in ini['DEFAULT'][key].split()}
    assert declared == {Requirement(r).name for r in requires('srnb')}


def test_opencv_asks_for_no_screen():
    site = Path(distribution('opencv-python-headless').locate_file(''))
    folders = 'cv2', 'opencv_python.libs', 'opencv_python_headless.libs'
    binaries = [p for folder in folders for p in (site/folder).rglob('*.so*')]
    assert binaries
    asking = [p.name for p in binaries if b'libGL.so' in p.read_bytes()]
    assert not asking, f'{asking} ask for libGL: install opencv-python-headless last'


def test_the_store_holds_the_photographs_and_no_more(committed):
    sizes = [p.stat().st_size for p in committed if p.relative_to(root).parts[0] == 'store']
    assert 0 < sum(sizes) <= 30e6


def test_version_to_cite_is_the_version():
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    assert yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))['version'] == ini['DEFAULT']['version']
