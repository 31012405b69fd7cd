"Networks for other programs, read by those programs where they are installed."
import pytest
import torch

from srnb import core
from srnb.app.export import export, export_network
from srnb.models.ledig import LedigResNet
from srnb.models.onnx import missing_onnx
from srnb.models.published import drawn_picture, published_network
from srnb.models.rrdbnet import RRDBNet


def small(scale: int) -> RRDBNet:
    core.seed(scale)
    return RRDBNet(16, 32, 2, scale).eval()         # spandrel takes it for granted that there are 32 new maps


def read_by_spandrel(path):
    spandrel = pytest.importorskip('spandrel', reason='spandrel is not installed here')
    found = spandrel.ModelLoader('cpu').load_from_file(path)
    assert found.architecture.id == 'ESRGAN'
    return found


@torch.no_grad()
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('scale', [1, 2, 4, 8])
def test_spandrel_reads_an_rrdbnet_of_any_scale(tmp_path, scale, suffix):
    net, lr = small(scale), drawn_picture(24)[..., :17]
    found = read_by_spandrel(export_network(net, tmp_path/f'net{suffix}').path)
    assert (found.scale, found.input_channels, found.output_channels) == (scale, 3, 3)
    assert found.tags == ['16nf', '2nb']
    torch.testing.assert_close(found.model(lr), net(lr), rtol=0, atol=1e-6)


@torch.no_grad()
def test_spandrel_reads_the_published_network(tmp_path):
    found = read_by_spandrel(export('esrgan_realsr', tmp_path/'realsr.safetensors').path)
    lr = drawn_picture(16)
    torch.testing.assert_close(found.model(lr), published_network('esrgan_realsr')(lr), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_spandrel_saves_is_read(tmp_path):
    "The other way round: its network, saved under its names."
    from srnb.models.layouts import read_network
    found = read_by_spandrel(export_network(small(4), tmp_path/'net.pth').path)
    torch.save(found.model.state_dict(), tmp_path/'theirs.pth')
    lr = drawn_picture(16)
    torch.testing.assert_close(read_network(tmp_path/'theirs.pth').net(lr), found.model(lr), rtol=0, atol=1e-6)


@pytest.mark.parametrize('method', ['srgan_ledig', 'wide', 'narrow'])
def test_onnx_runtime_answers_as_torch(tmp_path, method):
    if missing := missing_onnx('onnx', 'onnxscript', 'onnxruntime'): pytest.skip(f'no {", ".join(missing)} here')
    if method == 'srgan_ledig': made = export(method, tmp_path/'net.onnx')
    else: made = export_network(small(4) if method == 'wide' else LedigResNet(8, 2, 2), tmp_path/'net.onnx')
    assert made.difference < 1e-5                      # of numbers from 0 to 1; sizes differ from that of the export
    assert made.path.read_bytes()[:1] == b'\x08' and [p.name for p in tmp_path.iterdir()] == ['net.onnx']


def test_without_onnx_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(core.Error, match=r"pip install 'srnb\[onnx\]'"):
        export_network(LedigResNet(8, 1), tmp_path/'net.onnx')
    assert not [*tmp_path.iterdir()]
