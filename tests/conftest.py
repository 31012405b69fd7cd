"What the tests share: the repository or an empty one as working directory, what is committed, copies of it."
import shutil
import subprocess
from pathlib import Path

import pytest

from srnb import core

root = Path(__file__).parents[1]


@pytest.fixture
def here(monkeypatch) -> Path:
    "The repository itself as working directory."
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def toy():
    "An empty repository as working directory, gone after the test."
    with core.toy() as folder: yield folder


@pytest.fixture(scope='session')
def committed() -> list[Path]:
    "Files that are in git, or would be after `git add`."
    listing = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout.split('\0')
    return [p for name in sorted({*names} - {''}) if (p := root/name).is_file()]


@pytest.fixture(scope='session')
def duplicate(committed):
    "A function that copies what is committed to a folder, as a repository of its own."
    def make(there: Path, without: tuple[str, ...] = ()) -> Path:
        for p in committed:
            name = p.relative_to(root)
            if name.parts[0] in without: continue
            (there/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(p, there/name)
        subprocess.run(['git', 'init', '-q'], cwd=there, check=True)
        return there
    return make


@pytest.fixture(scope='module')
def copy(tmp_path_factory, duplicate) -> Path:
    "A copy to export, clean and compose in; without photographs and results."
    return duplicate(tmp_path_factory.mktemp('copy')/'srnb', without=('store', 'results'))
