"What the tests share: the repository or an empty one as working directory, copies of it, one run of all stages."
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

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


# the pipeline at its smallest, run once

OURS = {'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'SRNB_DEVICE': 'cpu', 'CUDA_VISIBLE_DEVICES': '', 'OMP_WAIT_POLICY': 'passive',
        **{f'GIT_{who}_{what}': value for who in ('AUTHOR', 'COMMITTER')
           for what, value in {'NAME': 'test', 'EMAIL': 'test@example.invalid'}.items()}}
environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'DVC_ROOT')} | OURS


class Clone:
    "A working copy in which commands are run."
    def __init__(self, folder: Path): self.folder, self.environment = folder, environment

    def __truediv__(self, path): return self.folder/path

    def sh(self, *words, status=0, timeout=5400) -> str:
        "What a command printed; it must end with `status`."
        p = subprocess.run(words, cwd=self.folder, env=self.environment, text=True, timeout=timeout,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert p.returncode == status, f'{" ".join(words)} → {p.returncode}\n{p.stdout[-4000:]}'
        return p.stdout

    def run(self, *words) -> str:
        "What the runner of notebooks printed."
        return self.sh('python', '-m', 'srnb.pipeline.run', *words)

    def repro(self, *targets, by=('python', '-m', 'srnb.pipeline.repro')) -> set[str]:
        "The stages that `make` ran, or another command, `code` aside: that one always runs."
        said = self.sh(*by, *targets)
        return {*re.findall(r"^Running stage '(.+)':", said, re.M)} - {'code'}

    def error(self, *words, status=1) -> str:
        "The message with which a command failed; there must be no traceback."
        said = self.sh(*words, status=status)
        assert 'Traceback' not in said, said
        return said

    def set(self, at: str, value):
        "Change one entry of params.yaml; the old value."
        *above, last = at.split('.')
        tree = everything = yaml.safe_load((self/'params.yaml').read_text())
        for key in above: tree = tree[key]
        old, tree[last] = tree[last], value
        (self/'params.yaml').write_text(yaml.safe_dump(everything, sort_keys=False))
        return old

    def bytes(self, *paths) -> dict[str, str]:
        "The digest of each file."
        return {p: hashlib.sha256((self/p).read_bytes()).hexdigest() for p in paths}


@pytest.fixture(scope='session')
def clone(tmp_path_factory, duplicate) -> Clone:
    "A copy with the photographs of its own store and a cache of its own, composed to `tiny`."
    there = Clone(duplicate(tmp_path_factory.mktemp('clone')/'srnb'))
    (there/'dvc.lock').unlink(missing_ok=True)
    there.sh('dvc', 'pull', '-q', 'data.dvc')
    there.run('--compose', 'tiny')
    there.sh('git', 'add', '-A')
    there.sh('git', 'commit', '-q', '-m', 'tiny')
    return there


def memory_of(folder: Path) -> int:
    "Bytes that the processes at work in a folder hold together; what they share counts once."
    found = 0
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):                                                    # it has ended
            if not Path(os.readlink(process/'cwd')).is_relative_to(folder): continue
            found += 1024 * int(re.search(r'^Pss:\s+(\d+)', (process/'smaps_rollup').read_text(), re.M)[1])
    return found


@contextlib.contextmanager
def peak_memory(folder: Path):
    "What `memory_of` says at most, looked at each second: in the list that it gives."
    over, peak = threading.Event(), [0]
    def look():
        while not over.wait(1): peak[0] = max(peak[0], memory_of(folder))
    watcher = threading.Thread(target=look)
    watcher.start()
    try: yield peak
    finally:
        over.set()
        watcher.join()


@pytest.fixture(scope='session')
def chain(clone) -> Clone:
    "The clone after a complete run; `ran` are its stages, `peak` the bytes of memory that they took."
    begun = time.monotonic()
    with peak_memory(clone.folder) as peak: clone.ran = clone.repro()
    clone.peak, = peak
    print(f'tiny: {time.monotonic() - begun:.0f} s, {clone.peak / 1e9:.1f} GB')
    return clone
