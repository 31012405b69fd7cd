"""The metrics against numbers that others published or computed: committed pictures always, benchmark sets where
SRNB_DATA has them."""
import os
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from scipy import ndimage
from scipy.special import gamma

from srnb.data import image
from srnb.metrics import fidelity, ma, niqe, niqe_fast
from srnb.core import Error
from srnb.data.resize import imresize, imresize8, matrix

PICTURES = Path(__file__).parent/'images'
CALIBRATION = {                # picture: NIQE (luma, shave 4), NIQE (gray, no shave); computed by `port` below, once
    'cat.png': (2.907756, 2.751673),
    'cat_bicubic.png': (8.834024, 8.993972),
    'cat_third_flat.png': (12.612409, 14.779435),
}


def port(grey: np.ndarray, block: int = 96) -> float:
    "NIQE of whole grey levels (h, w) after the release's MATLAB, plainly: dense filters, loops over blocks."
    shapes = np.arange(0.2, 10.0005, 0.001)
    ratios = gamma(2 / shapes)**2 / gamma(1 / shapes) / gamma(3 / shapes)

    def aggd(v):
        if not (v < 0).any() or not (v > 0).any(): return [np.nan] * 3
        left, right = np.sqrt((v[v < 0]**2).mean()), np.sqrt((v[v > 0]**2).mean())
        g = left / right
        wanted = np.abs(v).mean()**2 / (v**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1)**2
        alpha = shapes[np.argmin((ratios - wanted)**2)]
        return [alpha] + [s * np.sqrt(gamma(1 / alpha) / gamma(3 / alpha)) for s in (left, right)]

    def block_features(v):
        alpha, left, right = aggd(v)
        out = [alpha, (left + right) / 2]
        for shift in (0, 1), (1, 0), (1, 1), (-1, 1):
            alpha, left, right = aggd(v * np.roll(v, shift, (0, 1)))
            out += [alpha, (right - left) * gamma(2 / alpha) / gamma(1 / alpha), left, right]
        return out

    t = np.arange(-3, 4)
    window = np.exp(-(t[:, None]**2 + t**2) / (2 * (7 / 6)**2))
    window /= window.sum()
    x = grey[:grey.shape[0] // block * block, :grey.shape[1] // block * block].astype(float)
    rows = []
    for size in block, block // 2:
        mu = ndimage.convolve(x, window, mode='nearest')
        m = (x - mu) / (np.sqrt(np.abs(ndimage.convolve(x * x, window, mode='nearest') - mu * mu)) + 1)
        m[np.abs(m) < 1e-9] = 0
        corners = [(i, j) for i in range(0, x.shape[0], size) for j in range(0, x.shape[1], size)]
        rows.append([block_features(m[i:i + size, j:j + size]) for i, j in corners])
        x = matrix(x.shape[0], x.shape[0] // 2, 0.5) @ x @ matrix(x.shape[1], x.shape[1] // 2, 0.5).T
    f = np.concatenate(rows, 1)
    whole = f[~np.isnan(f).any(1)]
    mu, cov = (v.numpy() for v in niqe.published_pristine())
    apart = np.nanmean(f, 0) - mu
    return float(np.sqrt(apart @ np.linalg.pinv((cov + np.cov(whole.T)) / 2) @ apart))


def picture(name: str) -> torch.Tensor: return image.read(PICTURES/name)[None] / 255


@pytest.mark.parametrize('name', CALIBRATION)
def test_calibration_table(name):
    luma, gray = CALIBRATION[name]
    x = picture(name)
    for implementation in niqe.niqe, niqe_fast.niqe_fast:
        assert implementation(x, 4).item() == pytest.approx(luma, rel=1e-3)
        assert implementation(x, space='gray').item() == pytest.approx(gray, rel=1e-3)
    assert niqe.niqe(x, 4).item() == pytest.approx(luma, rel=1e-5)


@pytest.mark.parametrize('name', CALIBRATION)
def test_three_implementations_agree(name):
    x = picture(name)
    p = fidelity.plane(x, 4, 'y8')
    expected = port(p[0, 0].numpy())
    assert niqe.niqe(x, 4).item() == pytest.approx(expected, rel=1e-5)
    assert niqe_fast.niqe_fast(x, 4).item() == pytest.approx(expected, rel=1e-3)


def test_fast_agrees_on_other_blocks_and_odd_sizes():
    x = picture('cat.png')[..., :277, :253]
    for block in 16, 32, 56, 96:
        assert niqe_fast.niqe_fast(x, 3, block).item() == pytest.approx(niqe.niqe(x, 3, block).item(), rel=1e-3)


def test_fast_leaves_torch_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        niqe_fast.niqe_fast(picture('cat.png').expand(8, -1, -1, -1))
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)


METRICS = {'niqe': niqe.niqe, 'niqe_fast': niqe_fast.niqe_fast, 'ma': ma.ma,
           'psnr': lambda x: fidelity.psnr(x, x), 'ssim': lambda x: fidelity.ssim(x, x)}


@pytest.mark.parametrize('metric', METRICS.values(), ids=METRICS)
@pytest.mark.parametrize('spoil, offence', [
    (lambda x: x.log(), 'not finite'),
    (lambda x: x * 255, 'outside 0…1'),
    (lambda x: (x * 255).int(), 'not int32'),
    (lambda x: x[0], r'\(n, 3, h, w\)'),
    (lambda x: x[:0], 'empty'),
], ids=['not finite', 'range', 'integers', 'shape', 'empty'])
def test_bad_input_is_named(metric, spoil, offence):
    x = torch.zeros(1, 3, 96, 96)
    x[..., ::3] = 0.5
    with pytest.raises(Error, match=offence): metric(spoil(x))


@pytest.mark.parametrize('metric', [niqe.niqe, niqe_fast.niqe_fast])
def test_small_and_constant_pictures_are_named(metric):
    with pytest.raises(Error, match='no block of 96x96'): metric(torch.rand(1, 3, 95, 200))
    with pytest.raises(Error, match='no block of 96x96'): metric(torch.rand(1, 3, 100, 200), crop=4)
    flat = torch.full((3, 96, 96), 0.3)
    with pytest.raises(Error, match='undefined for image 1'): metric(torch.stack([torch.rand(3, 96, 96), flat]))


def test_pictures_of_two_sizes_are_named():
    with pytest.raises(Error, match='differ in size'): fidelity.psnr(torch.rand(1, 3, 96, 96), torch.rand(1, 3, 96, 92))


def photographs(name: str):
    "The benchmark's pictures, sides a multiple of 4, and whether the file is grey."
    folder = Path(os.environ.get('SRNB_DATA', '/nowhere'))/'test'/name
    if not folder.exists(): pytest.skip(f'SRNB_DATA names no folder with test/{name}')
    for path in sorted(folder.glob('*.*g')):
        with Image.open(path) as f: grey = f.mode == 'L'
        a = np.asarray(Image.open(path).convert('RGB'))
        yield image.multiple(torch.from_numpy(a.copy()).permute(2, 0, 1), 4)[None].double() / 255, grey


def once(x, scale): return image.quantize(imresize(x, scale))


@pytest.mark.parametrize('name, psnr, ssim', [
    ('set5', 28.4178, 0.8098), ('set14', 26.0906, 0.7050), ('bsd100', 25.9566, 0.6693)])
def test_published_bicubic_fidelity(name, psnr, ssim):
    "4PP-EUSR's rows, from MATLAB's bicubic."
    pairs = [(once(once(hr, 1/4), 4), hr) for hr, _ in photographs(name)]
    assert np.mean([fidelity.psnr(*p).item() for p in pairs]) == pytest.approx(psnr, abs=0.02)
    assert np.mean([fidelity.ssim(*p).item() for p in pairs]) == pytest.approx(ssim, abs=0.002)


@pytest.mark.parametrize('name, eusr_4pp, ranksrgan', [
    ('set5', 8.5404, None), ('set14', 7.7637, 7.61), ('bsd100', 7.7120, 7.60)])
def test_published_bicubic_niqe(name, eusr_4pp, ranksrgan):
    "Two papers, two bicubics: MATLAB's of 8-bit pictures, enlarged in floats (4PP-EUSR) or in 8 bit (RankSRGAN)."
    ours: dict[str, list[float]] = {'4pp': [], 'rank': []}
    for hr, grey in photographs(name):
        lr = imresize8(hr, 1/4)
        for paper, sr in ('4pp', once(lr, 4)), ('rank', imresize8(lr, 4)):
            seen = sr[:, :1] if grey else sr                       # MATLAB takes a grey file as it is
            ours[paper].append(niqe_fast.niqe_fast(seen, 4).item())
    assert np.mean(ours['4pp']) == pytest.approx(eusr_4pp, abs=0.04)
    if ranksrgan: assert np.mean(ours['rank']) == pytest.approx(ranksrgan, abs=0.01)


@pytest.mark.parametrize('name, matlab, tolerance', [('I04', 3.6549215, 1e-4), ('I08', 3.1840333, 7e-3)])
def test_values_of_the_authors_matlab(name, matlab, tolerance):
    beside_data = Path(os.environ.get('SRNB_DATA', '/nowhere')).parent/'metrics'
    path = Path(os.environ.get('SRNB_METRICS', beside_data))/'images'/f'{name}.png'
    if not path.exists(): pytest.skip(f'no {path}, of TID2013: name a folder with images/{name}.png in SRNB_METRICS')
    x = image.read(path)[None] / 255
    for implementation in niqe.niqe, niqe_fast.niqe_fast:
        assert implementation(x, space='gray').item() == pytest.approx(matlab, rel=tolerance)
