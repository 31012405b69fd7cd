"""The photographs of the repository: complete, attributed, no photograph in two sets."""
import csv
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image

from srnb.data import image, pairs, photos
from srnb.core import Error

root = Path(__file__).parents[1]
data = root/'data'
needs_data = pytest.mark.skipif(not (data/'ATTRIBUTION.csv').exists(), reason='data/ is not there: dvc pull data.dvc')
FREE = {'CC0-1.0', 'public domain', *(f'CC-BY{kind}-{n}.0' for kind in ('', '-SA') for n in (2, 3, 4))}


def attribution():
    with open(data/'ATTRIBUTION.csv', newline='', encoding='utf-8') as f: return list(csv.DictReader(f))


@needs_data
def test_every_photograph_is_attributed():
    rows = attribution()
    there = {str(p.relative_to(data)) for p in data.rglob('*') if p.suffix in photos.SUFFIXES}
    assert {r['file'] for r in rows} == there
    for r in rows:
        assert r['licence'] in FREE and r['title'] and r['author'] and r['package'], r['file']
        assert hashlib.sha256((data/r['file']).read_bytes()).hexdigest() == r['sha256'], r['file']


@needs_data
def test_sets_hold_what_was_promised():
    sizes = {name: [photos.size(p) for p in photos.find(name)] for name in photos.OWN}
    assert sum(w * h for w, h in sizes['train']) >= 40e6
    assert len(sizes['valid']) >= 6 and len(sizes['classic']) >= 7 and len(sizes['crops']) >= 24
    assert set(sizes['crops']) == {(480, 480)}
    assert all(s % 12 == 0 for name in ('valid', 'classic', 'crops') for wh in sizes[name] for s in wh)
    assert all(p.suffix == '.png' for name in ('classic', 'crops') for p in photos.find(name))


@needs_data
def test_reduced_by_two_at_least():
    for r in attribution():
        if r['set'] != 'classic': assert float(r['change'].split()[2]) >= 2, r['file']


@needs_data
def test_no_photograph_is_in_two_sets_by_name():
    rows = attribution()
    for key in (lambda r: Path(r['file']).stem, lambda r: (r['title'], r['author']), lambda r: r['sha256']):
        names = [key(r) for r in rows]
        assert len(set(names)) == len(names)


def likeness(a, b):
    "The highest correlation of each small picture (n, h, w) with any place of `b`, (H, W): (n,)."
    n, h, w = a.shape
    if h > b.shape[0] or w > b.shape[1]: return torch.full((n,), -1.)
    a = a - a.mean((1, 2), keepdim=True)
    a = a / a.norm(dim=(1, 2), keepdim=True).clamp(min=1)
    b = (b - b.mean())[None, None]
    variance = (F.avg_pool2d(b * b, (h, w), 1) - F.avg_pool2d(b, (h, w), 1)**2).clamp(min=1)     # of each place
    return (F.conv2d(b, a[:, None]) / (variance * h * w).sqrt()).amax((0, 2, 3))


def small(path, k):
    "The brightness of a photograph, reduced by `k`: (h, w)."
    with Image.open(path) as file:
        size = [max(1, round(s / k)) for s in file.size]
        return torch.from_numpy(np.asarray(file.convert('L').resize(size, Image.Resampling.BOX), np.float32))


@needs_data
def test_no_photograph_is_in_two_sets_by_content():
    rows = [(r['set'], r['file'], small(data/r['file'], max(photos.size(data/r['file'])) / 20)) for r in attribution()]
    for (s, f, a), (t, g, b) in itertools.combinations(rows, 2):
        if s == t: continue
        h, w = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
        assert max(likeness(x[None, :h, :w], y) for x, y in ((a, b), (b, a))) < 0.97, f'{f} looks like {g}'


@needs_data
def test_no_crop_lies_in_another_photograph():
    "Every crop is looked for in every photograph, at the size at which it would lie there."
    names = photos.find('crops')
    crops = torch.stack([small(p, 40) for p in names])                             # (24, 12, 12)
    for other, k in [(p, 40) for p in photos.find('train')] + [(p, 40 * 768 / 2040) for p in photos.find('valid')]:
        found = likeness(crops, small(other, k))
        assert found.max() < 0.97, f'{names[found.argmax()].name} lies in {other.name}'


@needs_data
def test_likeness_finds_a_copy():
    "The two tests above can fail: a brighter, flatter copy of a corner is found in its photograph, and not in others."
    photographs = [small(p, 40) for p in photos.find('train')[:4]]
    corner = photographs[0][None, 3:15, 4:16] * 0.8 + 9
    found = [likeness(corner, b).item() for b in photographs]
    assert found[0] > 0.999 > 0.97 > max(found[1:])


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_pairs_from_a_folder(tmp_path, scale):
    x = torch.randint(0, 256, (3, 60, 70), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    image.write(tmp_path/'a.png', x)
    arena = photos.Arena(photos.pack(photos.find(f'folder:{tmp_path}'), tmp_path/'set'))
    lr, hr = next(pairs.Pairs(arena, patch=24, batch=3, scale=scale))
    assert lr.shape == (3, 3, 24 // scale, 24 // scale) and hr.shape == (3, 3, 24, 24)


def test_odd_files_are_converted_and_said(tmp_path):
    "16-bit, grey, palette, CMYK and transparent photographs train like others; each says what it was."
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path/'sixteen.png')
    for kind in ('L', 'P', 'LA', 'RGBA'): Image.fromarray(grey).convert(kind).save(tmp_path/f'{kind}.png')
    Image.fromarray(grey).convert('CMYK').save(tmp_path/'CMYK.tif')
    with pytest.warns(UserWarning) as said:
        arena = photos.Arena(photos.pack(photos.find(f'folder:{tmp_path}'), tmp_path/'set'))
    assert len(arena) == 6 == sum('converted to 8-bit RGB' in str(w.message) for w in said)
    for i in range(6): assert (arena[i][0].numpy().astype(int) - grey).__abs__().max() <= 1, arena.files[i]


def test_a_killed_packing_leaves_nothing_behind(tmp_path):
    "A process that dies in the middle leaves no file under the set's name, and the next one succeeds."
    image.write(tmp_path/'a.png', torch.zeros(3, 8, 8))
    die = f'''
import os
from srnb.data import photos
photos.image.read = lambda path: os._exit(9)
photos.pack(photos.find({str('folder:' + str(tmp_path))!r}), {str(tmp_path/'set')!r})
'''
    assert subprocess.run([sys.executable, '-c', die], capture_output=True).returncode == 9
    assert not (tmp_path/'set.npy').exists() and not (tmp_path/'set.csv').exists()
    with pytest.raises(Error, match='no packed photographs'): photos.Arena(tmp_path/'set')
    assert len(photos.Arena(photos.pack([tmp_path/'a.png'], tmp_path/'set'))) == 1


def test_a_full_disk_is_one_clear_error(tmp_path):
    image.write(tmp_path/'a.png', torch.zeros(3, 64, 64))
    if not Path('/dev/full').exists(): pytest.skip('no /dev/full here')
    real = open
    def full(file, mode='r', *args, **more):
        packing = str(file).endswith('.part.npy') and mode == 'wb'
        return real('/dev/full' if packing else file, mode, *args, **more)
    with pytest.MonkeyPatch.context() as m:
        m.setattr('builtins.open', full)
        with pytest.raises(Error, match='no space left on the disk'): photos.pack([tmp_path/'a.png'], tmp_path/'set')
    assert not (tmp_path/'set.npy').exists()


@pytest.mark.skipif('SRNB_DATA' not in os.environ, reason='SRNB_DATA is not set')
@pytest.mark.filterwarnings('ignore:.*converted to 8-bit RGB')                # Set14 has grey photographs
@pytest.mark.parametrize('name, count, sides', [
    ('set5', 5, (228, 512)), ('set14', 14, (248, 768)), ('bsd100', 100, (320, 480))])
def test_public_sets_in_the_users_folder(tmp_path, name, count, sides):
    folder = Path(os.environ['SRNB_DATA'])/'test'/name
    if not folder.is_dir(): pytest.skip(f'{folder} is not there')
    arena = photos.Arena(photos.pack(photos.find(name), tmp_path/name, multiple=4))
    assert len(arena) == count
    assert all(h % 4 == w % 4 == 0 for h, w in zip(arena.heights, arena.widths))
    assert min(arena.heights.min(), arena.widths.min()) >= sides[0]
    assert max(arena.heights.max(), arena.widths.max()) <= sides[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
def test_the_gpu_cuts_the_same_crops(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for k in range(3):
        x = torch.randint(0, 256, (3, 200 + k, 220), generator=generator)
        image.write(tmp_path/f'{k}.png', x.to(torch.uint8))
    arena = photos.Arena(photos.pack(photos.image_files(tmp_path), tmp_path/'set'))
    cpu = pairs.Pairs(arena, 96, 8)
    for gpu in (pairs.Pairs(arena, 96, 8, device='cuda'), pairs.Pairs(arena, 96, 8, device='cuda', resident=False)):
        for n in range(3):
            (lr, hr), (lr_gpu, hr_gpu) = cpu.at(n), next(gpu)
            assert (hr - hr_gpu.cpu()).abs().max() < 1e-6
            off = (lr - lr_gpu.cpu()).abs()
            assert off.max() < 1.1 / 255 and (off > 1e-6).float().mean() < 1e-3    # a half may be rounded the other way
