"What a stranger meets first: the front door, names, requirements."
import re
from configparser import ConfigParser
from importlib.metadata import distribution, distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

root = Path(__file__).parents[1]
TEXT = {'.py', '.ipynb', '.md', '.yaml', '.yml', '.ini', '.toml', '.txt', '.csv', '.cff', ''}

pytestmark = pytest.mark.usefixtures('here')


@pytest.fixture(scope='module')
def texts(committed) -> dict[Path, str]:
    "Everything committed that can be read."
    own = [p for p in committed if p.suffix in TEXT and p.relative_to(root).parts[0] != 'store']
    return {p: p.read_text(encoding='utf-8') for p in own}


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
    declared = {Requirement(r).name for k in ('requirements', 'dev_requirements') for r in ini['DEFAULT'][k].split()}
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
