"The `srnb` command and the library, for someone who has a photograph and nothing else."
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image, ImageCms
from safetensors.torch import save_file

import srnb
from srnb import core
from srnb.app import cards, upscale
from srnb.app.command import command_line
from srnb.data import image
from srnb.models.ledig import LedigResNet
from srnb.models.published import drawn_picture, published_network
from srnb.pictures.files import PictureFile, read_picture_file, write_picture_file

root = Path(__file__).parents[1]
rng = np.random.default_rng(0)


@pytest.fixture
def away(tmp_path, monkeypatch) -> Path:
    "An empty folder outside of the repository as working directory."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(core.Error): core.root()
    return tmp_path


@pytest.fixture
def small(away) -> str:
    "A network of a second, as a file."
    core.seed(0)
    save_file(LedigResNet(4, 1).eval().state_dict(), away/'net.safetensors')
    return str(away/'net.safetensors')


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# a folder of all kinds

def good_pictures(folder: Path) -> dict[str, tuple]:
    "Pictures that can be enlarged: name → size, mode and bits of the result."
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a hill'
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    rgb = Image.fromarray(noise(20, 30, 3))
    rgb.save(folder/'plain.png')
    rgb.save(folder/'lies.jpg', 'PNG')                                  # a name is no kind
    rgb.save(folder/'turned.jpeg', exif=exif.tobytes(), icc_profile=profile)
    rgb.convert('CMYK').save(folder/'ink.jpg')
    rgb.quantize(8).save(folder/'palette.png')
    rgb.quantize(8).save(folder/'hole.gif', transparency=3)
    rgb.convert('L').save(folder/'grey.webp', lossless=True)            # which WebP stores as RGB
    rgb.convert('L').save(folder/'light.png')
    Image.fromarray(noise(20, 30, 2)).save(folder/'light_alpha.png')
    Image.fromarray(noise(20, 30, dtype=np.uint16)).save(folder/'deep.tif')
    write_picture_file(folder/'deep_colour.png', PictureFile(noise(20, 30, 4, dtype=np.uint16)))
    Image.new('RGB', (1, 1), 'red').save(folder/'dot.png')
    Image.fromarray(noise(10, 20_000)).save(folder/'long.png')
    found = dict.fromkeys(['plain', 'ink', 'palette', 'lies'], (120, 80, 3, 8))
    return found | {'turned': (80, 120, 3, 8), 'hole': (120, 80, 4, 8), 'grey': (120, 80, 3, 8),
                    'light': (120, 80, 1, 8), 'light_alpha': (120, 80, 2, 8), 'deep': (120, 80, 1, 16),
                    'deep_colour': (120, 80, 4, 16), 'dot': (4, 4, 3, 8), 'long': (80_000, 40, 1, 8)}


def bad_files(folder: Path) -> dict[str, str]:
    "Files that cannot be: name → what is said."
    (folder/'empty.jpg').touch()
    (folder/'notes.txt').write_text('buy milk')
    (folder/'notes.png').write_text('buy bread')
    for kind in 'png', 'jpg':
        Image.fromarray(noise(90, 90, 3)).save(folder/f'whole.{kind}')
        whole = (folder/f'whole.{kind}').read_bytes()
        (folder/f'cut_{kind}.{kind}').write_bytes(whole[:len(whole) * 2 // 3])
        (folder/f'whole.{kind}').unlink()
    first = Image.fromarray(noise(9, 9))
    for name in 'moves.gif', 'moves.png', 'pages.tif':
        first.save(folder/name, save_all=True, append_images=[first.rotate(90)])
    Image.new('1', (12_000, 9_000)).save(folder/'huge.png')
    Image.new('F', (9, 9)).save(folder/'real.tif')
    foreign, damaged, several = 'no picture of a known kind', 'may be damaged', '2 pictures'
    return {'empty.jpg': 'is empty', 'notes.txt': foreign, 'notes.png': foreign, 'cut_png.png': damaged,
            'cut_jpg.jpg': damaged, 'moves.gif': several, 'moves.png': several, 'pages.tif': several,
            'real.tif': 'floating-point', 'huge.png': '12,000×9,000 pixels would become 48,000×36,000, which takes'}


def check_results(out: Path, good: dict[str, tuple]):
    "Are there those that can be, as they should be, and nothing else?"
    assert sorted(p.name for p in out.iterdir()) == sorted(f'{name}.png' for name in good)
    for name, (w, h, c, bits) in good.items():
        made = read_picture_file(out/f'{name}.png')
        assert (made.pixels.shape, made.pixels.itemsize * 8) == ((h, w, c), bits), name
        exif = Image.Exif()
        exif.load(made.about.get('exif', b''))
        if name == 'turned': assert exif[0x010E] == 'a hill' and 0x0112 not in exif and 'icc_profile' in made.about


def test_a_folder_of_all_kinds(away, small, capsys):
    good = good_pictures(away/'mixed')
    bad = bad_files(away/'mixed')
    begin = ['upscale', 'mixed', '-o', 'out', '-m', small, '--memory', '1G']
    assert command_line(begin) == 1
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == len(bad) + 1 and 'Traceback' not in said.err
    for name, why in bad.items(): assert sum(name in line and why in line for line in lines) == 1, (name, lines)
    assert lines[-1] == f'{len(bad)} of {len(good) + len(bad)} could not be enlarged'
    assert 'out/ink.png: 120×80, CMYK became RGB by rule' in said.out
    check_results(away/'out', good)
    kept = {p: p.stat().st_mtime_ns for p in (away/'out').iterdir()}
    (away/'out/plain.png').unlink()                                     # as if it had been stopped
    assert command_line(begin) == 1
    said = capsys.readouterr()
    assert said.out.count('\n') == 2 and f'{len(good) - 1} kept' in said.out
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items() if p.name != 'plain.png')
    for name in bad: (away/'mixed'/name).unlink()
    assert command_line([*begin, '--overwrite']) == 0
    assert all(p.stat().st_mtime_ns > then for p, then in kept.items())


@pytest.mark.parametrize('kind', ['jpg', 'webp', 'tif'])
def test_other_kinds_of_files(away, small, kind):
    Image.fromarray(noise(20, 30, 3)).save('a.png')
    assert command_line(['upscale', 'a.png', '-m', small, '--format', kind]) == 0
    assert read_picture_file(f'upscaled/a.{kind}').pixels.shape == (80, 120, 3)


# bad input

def said_of(words: list[str], capsys) -> str:
    "The one line with which a command fails."
    assert command_line(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines and not any('Traceback' in line for line in lines)
    return lines[0]


def test_a_wrong_method_names_the_nearest(away, capsys):
    Image.fromarray(noise(9, 9, 3)).save('a.png')
    def asked(*words): return said_of(['upscale', 'a.png', *words], capsys)
    assert "unknown method 'srgan_ledg'; did you mean 'srgan_ledig'?" in asked('-m', 'srgan_ledg')
    assert 'no weights at nowhere.pth' in asked('-m', 'nowhere.pth')
    assert 'enlarges by 4, not by 3' in asked('-m', 'srgan_ledig', '-s', '3')
    assert 'no amount of memory' in asked('-m', 'bicubic', '--memory', 'much')
    assert 'alpha is a share' in asked('-m', 'srgan_ledig', '--blend', '1.5')
    assert not (away/'upscaled').exists()


def test_weights_that_are_others_are_refused(away, capsys, monkeypatch):
    net = LedigResNet(4, 1)
    save_file(net.state_dict(), away/'mine.safetensors')
    card = {'name': 'mine', 'about': 'a', 'good': 'b', 'bad': 'c', 'licence': 'd', 'weights': 'mine.safetensors',
            'sha256': cards.sha256(away/'mine.safetensors')}
    (away/'mine.card.json').write_text(json.dumps(card))
    monkeypatch.setenv('SRNB_WEIGHTS', str(away))
    Image.fromarray(noise(9, 9, 3)).save('a.png')
    assert command_line(['upscale', 'a.png', '-m', 'mine']) == 0
    damaged = bytearray((away/'mine.safetensors').read_bytes())
    damaged[-1] ^= 1
    (away/'mine.safetensors').write_bytes(damaged)
    said = said_of(['upscale', 'a.png', '-m', 'mine', '-o', 'new'], capsys)
    assert f"SHA-256 of {away/'mine.safetensors'} begins with" in said and 'fetch it again' in said
    assert not (away/'new').exists()


def test_a_place_that_cannot_be_written_to(away, small, capsys, monkeypatch):
    Image.fromarray(noise(9, 9, 3)).save('a.png')
    (away/'taken').touch()
    assert 'taken/out cannot be written to' in said_of(['upscale', 'a.png', '-m', small, '-o', 'taken/out'], capsys)
    (away/'closed').mkdir(mode=0o500)
    if not os.access(away/'closed', os.W_OK):                           # of root everything can be written
        assert 'Permission denied' in said_of(['upscale', 'a.png', '-m', small, '-o', 'closed'], capsys)
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.fsync', full)
    assert 'no space left on the disk' in said_of(['upscale', 'a.png', '-m', small, '-o', 'full'], capsys)
    assert not [*(away/'full').iterdir()]


LITTLE = '''
import resource, sys
import numpy as np
from srnb.app.upscale import Enlarger
enlarge, pixels = Enlarger(sys.argv[1]), np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (350 << 20), -1))
enlarge.tile_side = lambda *_: 900                          # as if there were enough
seen = set()
enlarge(pixels, lambda done, whole: seen.add(whole))
print(*sorted(seen))
'''

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_what_runs_out_of_memory_is_tried_in_halves(away, small):
    "A real bound, which the system enforces."
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'SRNB_DEVICE': 'cpu'}
    p = subprocess.run([sys.executable, '-c', LITTLE, small], capture_output=True, text=True, env=environment)
    assert p.returncode == 0, p.stderr
    assert max(map(int, p.stdout.split())) >= 4


# tiles and speed, with published networks

@pytest.mark.parametrize('options', [{}, {'back_project': 20}, {'blend': 0.5}], ids=str)
@torch.no_grad()
def test_tiled_and_whole_agree(away, options):
    "Within a grey level: a drawing and noise, by the published SRGAN and as the network was read, nothing rearranged."
    enlarge = upscale.Enlarger('srgan_ledig', memory='4G', **options)
    drawn = (drawn_picture(150)[0, :, :64] * 255).byte()
    for x in drawn, torch.from_numpy(noise(3, 64, 150)):
        pixels = x.permute(1, 2, 0).numpy()
        whole = enlarge(pixels).astype(int)
        if not options:
            plain = image.quantize(published_network('srgan_ledig')(x[None] / 255))[0].permute(1, 2, 0).numpy() * 255
            assert np.abs(whole - plain).max() <= 1.01
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(enlarge, 'tile_side', lambda *_: 50)
            assert np.abs(enlarge(pixels).astype(int) - whole).max() <= 1


@pytest.mark.slow
@torch.no_grad()
def test_tiles_of_a_deep_network_agree(away):
    "A halo of 48 pixels is enough for 350 convolutions."
    enlarge = upscale.Enlarger('esrgan_realsr', memory='8G')
    assert enlarge.needs.reach > enlarge.halo == upscale.HALO
    for x in (drawn_picture(160)[0, :, :16] * 255).byte(), torch.from_numpy(noise(3, 16, 160)):
        pixels = x.permute(1, 2, 0).numpy()
        whole = enlarge(pixels).astype(int)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(enlarge, 'tile_side', lambda *_: 54)
            assert np.abs(enlarge(pixels).astype(int) - whole).max() <= 1


@pytest.mark.slow
def test_ready_networks_are_sooner_and_the_same():
    "1.5 times at least, in the processor's own time, on the published ResNet: 256×170 → ×4."
    threads, lr = torch.get_num_threads(), drawn_picture(256)[:, :, :170]
    plain = published_network('srresnet_ledig')
    ready = upscale.quick(plain)
    torch.set_num_threads(1)                                            # whose time is the process's
    took = {plain: [], ready: []}
    try:
        for net in [plain, ready] * 3:
            with torch.inference_mode() if net is ready else torch.no_grad():
                x = lr.contiguous(memory_format=torch.channels_last) if net is ready else lr
                begun = time.process_time()
                net(x)
                took[net].append(time.process_time() - begun)
        with torch.no_grad(): away = (ready(lr) - plain(lr)).abs().max()
    finally: torch.set_num_threads(threads)
    assert away < 0.1 / 255
    assert min(took[plain]) / min(took[ready]) >= 1.5, took


BOUND = '''
import re, sys
import numpy as np
from srnb.app.upscale import Enlarger
def megabytes(what: str) -> int: return int(re.search(what + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10
enlarge = Enlarger('srgan_ledig', memory='4G')
enlarge(np.zeros((16, 16, 3), np.uint8))                    # libraries are loaded
enlarge.memory, before = int(sys.argv[1]) << 20, megabytes('VmRSS')
enlarge(np.zeros((160, 200, 3), np.uint8))
print(megabytes('VmHWM') - before)
'''

@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_memory_stays_in_its_bound(away):
    for most in 300, 500:
        run = [sys.executable, '-c', BOUND, str(most)]
        assert 20 < int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) < most


# what stands for others to use

def test_the_surface_is_there_and_light(away):
    script = ("import sys, srnb; from srnb.app.command import command_line; assert command_line([]) == 0\n"
              "heavy = {'torch', 'torchvision', 'pandas', 'scipy', 'numba', 'matplotlib', 'IPython', 'dvc', 'yaml'}\n"
              "assert not heavy & {*sys.modules}, heavy & {*sys.modules}")
    subprocess.run([sys.executable, '-c', script], check=True, capture_output=True)
    for name in srnb.__all__:
        assert getattr(srnb, name).__module__ == f'srnb.{srnb.SURFACE[name]}'
    with pytest.raises(AttributeError, match="no attribute 'upscaled'"): srnb.upscaled


def test_upscale_gives_what_it_was_given(away, small):
    from srnb import upscale
    Image.fromarray(noise(20, 30, 3)).save('a.png')
    with Image.open('a.png') as opened: assert upscale('a.png', small).size == upscale(opened, small).size == (120, 80)
    assert upscale(torch.rand(2, 3, 8, 9), small).shape == (2, 3, 32, 36)
    assert upscale(noise(8, 9), small).shape == (32, 36)


def test_the_example_of_the_front_door_trains(away):
    block, = re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S)
    assert len(block.splitlines()) <= 11
    found = {}
    exec(block, found)
    assert all(p.grad.abs().sum() > 0 for p in found['net'].parameters())
    assert all(p.grad is None for p in found['ranker'].parameters())


def test_cards_of_what_is_installed(here, monkeypatch):
    "Each says what it is, its weights are those that it names, and together they are small."
    monkeypatch.delenv('SRNB_WEIGHTS', raising=False)
    known = cards.cards()
    assert {p.parent for p in (card.path for card in known.values())} == {root/'srnb/app/networks'}
    assert sum(p.stat().st_size for p in (root/'srnb/app/networks').iterdir()) < 12e6
    named = {f'{card.name}.card.json' for card in known.values()} | {card.weights for card in known.values()}
    for p in (root/'srnb/app/networks').iterdir(): assert p.name in named or p.name.endswith('.failures.png'), p.name
    for card in known.values():
        found = upscale.load_method(card.name)
        assert sum(p.numel() for p in found.net.parameters()) == card.parameters, card.name
        assert found.scale in card.scales
        if card.faithful: upscale.blended(found, card.name, 0.5)


# a wheel, alone

def base_packages() -> list[importlib.metadata.Distribution]:
    "What an installation of the wheel without extras brings along, of what is installed here."
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    found, todo = {}, ini['DEFAULT']['requirements'].split()
    while todo:
        r = Requirement(todo.pop())
        name = re.sub(r'[-_.]+', '-', r.name).lower()
        if name in found or (r.marker and not r.marker.evaluate({'extra': ''})): continue
        found[name] = importlib.metadata.distribution(r.name)
        todo += found[name].requires or []
    return list(found.values())


@pytest.fixture(scope='module')
def installed(tmp_path_factory, duplicate) -> Path:
    "An environment with the wheel and its base requirements, which are borrowed, and nothing else."
    folder = tmp_path_factory.mktemp('wheel')
    source = duplicate(folder/'source', without=('store', 'results'))
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']
    quiet = {'check': True, 'capture_output': True}
    subprocess.run([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, source], **quiet)
    shutil.rmtree(source)                                               # nothing of it is looked at
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder/'env'], **quiet)
    wheel, = folder.glob('srnb-*.whl')
    assert wheel.stat().st_size < 14e6
    subprocess.run([*pip, '--python', folder/'env/bin/python', 'install', '--no-deps', '--no-index', wheel], **quiet)
    site, = folder.glob('env/lib/python3*/site-packages')
    for package in base_packages():
        for top in {p.parts[0] for p in package.files or [] if p.parts[0] not in ('..', '__pycache__')}:
            here = Path(package.locate_file(top))
            with contextlib.suppress(FileExistsError): (site/top).symlink_to(here)
    return folder/'env/bin'


@pytest.mark.slow
def test_a_wheel_enlarges_photographs_in_an_empty_directory(installed, away):
    good = good_pictures(away/'mixed')
    bad = bad_files(away/'mixed')
    environment = {'PATH': str(installed), 'HOME': str(away), 'SRNB_DEVICE': 'cpu'}
    def run(*words):
        return subprocess.run([installed/words[0], *words[1:]], env=environment, text=True, capture_output=True)
    alone = ("import importlib.util as u, srnb, sys; assert srnb.__file__.startswith(sys.prefix), srnb.__file__\n"
             "print(*[n for n in ('pandas', 'yaml', 'numba', 'dvc', 'IPython', 'pyiqa') if u.find_spec(n)])")
    p = run('python', '-c', alone)
    assert (p.returncode, p.stdout) == (0, '\n'), p.stderr
    assert all(name in run('srnb', 'methods').stdout for name in cards.cards())
    p = run('srnb', 'upscale', 'mixed', '-o', 'out', '--method', 'srgan_ledig', '--blend', '0.7', '--memory', '1500M')
    assert p.returncode == 1 and Counter(line[:6] for line in p.stderr.splitlines())['failed'] == len(bad), p.stderr
    check_results(away/'out', good)
    p = run('srnb', 'compare', 'mixed/plain.png', 'out/plain.png')
    assert p.returncode == 0 and 'PSNR' in p.stdout, p.stderr
    for name, level in ('a', 0), ('b', 9):
        noise = np.random.default_rng(0).integers(0, 200, (112, 120, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(level)).save(away/f'{name}.png')
    p = run('srnb', 'compare', 'a.png', 'b.png', '-o', 'both.png')                          # large enough for NIQE
    assert p.returncode == 0 and 'NIQE' in p.stdout and (away/'both.png').exists(), p.stderr
    p = run('srnb', 'score', 'out/plain.png')
    assert (p.returncode, p.stdout) == (1, '') and "pip install 'srnb[train]'" in p.stderr
