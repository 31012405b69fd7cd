"The desk: an index that cannot rot, and a notebook that works in a real browser."
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srnb.pipeline import index

root = Path(__file__).parents[1]
chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)


@pytest.mark.usefixtures('here')
def test_index_is_written_from_the_notebooks():
    text = (root/'nbs/index.ipynb').read_text(encoding='utf-8')
    why = 'a notebook came, went or changed its title: run `python -m srnb.pipeline.index`'
    assert text == index.index_notebook(), why


def test_index_leads_to_every_notebook_and_says_what_it_is():
    cells = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells)
    found = dict(re.findall(r'^- \[[^\]]+\]\(([^)]+)\):? ?(.*)$', text, re.M))
    assert found.keys() == {str(p.relative_to(root/'nbs')) for p in root.glob('nbs/*/*.ipynb')}
    silent = [name for name, said in found.items() if len(said) < 10]
    assert not silent, f'{silent} say nothing of themselves: their first cells want a line that begins with >'


# a real browser

def wait(ready, what: str, seconds: float = 120):
    "The first true answer of `ready`."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready(): return found
        time.sleep(0.3)
    pytest.fail(f'{what}: not within {seconds:.0f} s')


def answer(url: str):
    "JSON at an address, None while nobody answers."
    silent = urllib.error.URLError, ConnectionError, ValueError, TimeoutError
    with contextlib.suppress(*silent), urllib.request.urlopen(url, timeout=5) as reply: return json.loads(reply.read())


@contextlib.contextmanager
def running(command: list[str], **more):
    "A process that ends with the block."
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try: yield process
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Browser:
    "A page of Chromium, by its debugging protocol."
    def __init__(self, address: str):
        import websocket
        self.socket, self.sent = websocket.create_connection(address, timeout=60, suppress_origin=True), 0

    def send(self, method: str, **params) -> dict:
        self.sent += 1
        self.socket.send(json.dumps({'id': self.sent, 'method': method, 'params': params}))
        while (said := json.loads(self.socket.recv())).get('id') != self.sent: pass           # events in between
        assert 'error' not in said, said
        return said['result']

    def run(self, script: str):
        "The value of a JavaScript expression; a promise is awaited."
        said = self.send('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in said, said['exceptionDetails'].get('exception', said['exceptionDetails'])
        return said['result'].get('value')

    def drag(self, x: float, y: float, by: float):
        "Press the left button at (x, y) and release it `by` pixels further to the right."
        def mouse(kind, at):
            held = {'button': 'left', 'buttons': int(kind != 'mouseReleased'), 'clickCount': int(kind != 'mouseMoved')}
            self.send('Input.dispatchMouseEvent', type=kind, x=at, y=y, **held)
        mouse('mouseMoved', x)
        mouse('mousePressed', x)
        for at in x + by / 2, x + by: mouse('mouseMoved', at)
        mouse('mouseReleased', x + by)


PICTURES = '''[...document.querySelectorAll('img.widget-image')].filter(i => i.naturalWidth).map(i => {
    const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
    c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL() })'''
HANDLE = '''(() => {
    const h = document.querySelectorAll('.noUi-handle')[1];
    if (!h) return null;
    h.scrollIntoView({block: 'center'});
    const b = h.getBoundingClientRect();
    return [b.x + b.width / 2, b.y + b.height / 2] })()'''
CELLS = "document.querySelectorAll('.jp-Notebook .jp-CodeCell').length >= 3 && !!window.jupyterapp"
IDLE = "!!document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')"
RUN = "window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"


def three_pictures(page, unlike=()) -> list[str]:
    "The pictures of the page, once there are three, none of which stood there before."
    found = page.run(PICTURES)
    return found if len(found) == 3 and all(a != b for a, b in zip(unlike, found)) else []


@pytest.fixture
def desk(toy) -> Path:
    "A repository with pictures of three methods, and the notebook that shows them."
    (toy/'nbs/paper').mkdir(parents=True)
    shutil.copy(root/'nbs/paper/61_look.ipynb', toy/'nbs/paper')
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    for method in 'hr', 'bicubic', 'srgan':
        path = toy/'out/sr'/method/'classic/noise.png'
        path.parent.mkdir(parents=True)
        Image.fromarray(np.roll(noise, len(method), 1)).save(path)
    return toy


def jupyterlab(desk: Path, port: int) -> list[str]:
    "A JupyterLab of its own, which opens no browser and asks nobody for news."
    server = {'port': port, 'port_retries': 0, 'ip': '127.0.0.1', 'root_dir': desk, 'allow_root': True}
    app = {'expose_app_in_browser': True, 'news_url': None, 'check_for_updates_class': 'jupyterlab.NeverCheckForUpdate'}
    options = [f'--ServerApp.{k}={v}' for k, v in server.items()] + [f'--LabApp.{k}={v}' for k, v in app.items()]
    return [sys.executable, '-m', 'jupyterlab', '--no-browser', '--IdentityProvider.token=desk', *options]


def headless(profile: Path) -> list[str]:
    "A Chromium without a window, which says where it listens."
    return [chromium, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
            '--remote-debugging-port=0', f'--user-data-dir={profile}', '--window-size=1400,1400', 'about:blank']



@pytest.mark.browser
@pytest.mark.skipif(chromium is None, reason='no Chromium on this machine (Debian: apt install chromium)')
def test_a_slider_moves_the_pictures(desk, tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    folders = {'JUPYTER_CONFIG_DIR': 'config', 'JUPYTER_DATA_DIR': 'data', 'JUPYTER_RUNTIME_DIR': 'runtime',
               'JUPYTERLAB_WORKSPACES_DIR': 'workspaces', 'JUPYTERLAB_SETTINGS_DIR': 'lab_settings',
               'IPYTHONDIR': 'ipython'}
    own = {name: str(tmp_path/folder) for name, folder in folders.items()} | {'JUPYTER_PREFER_ENV_PATH': '1'}
    profile, lab = tmp_path/'chromium', f'http://127.0.0.1:{port}'
    listens = profile/'DevToolsActivePort'
    with running(jupyterlab(desk, port), cwd=desk, env=os.environ | own), running(headless(profile)):
        wait(lambda: answer(f'{lab}/api/status?token=desk'), 'JupyterLab')
        gate = wait(lambda: listens.exists() and listens.read_text().splitlines()[:1], 'Chromium')[0]
        shown = lambda: answer(f'http://127.0.0.1:{gate}/json/list') or []
        pages = wait(lambda: [p for p in shown() if p['type'] == 'page'], 'a page of Chromium')
        page = Browser(pages[0]['webSocketDebuggerUrl'])
        with contextlib.closing(page.socket):
            page.send('Page.navigate', url=f'{lab}/lab/tree/nbs/paper/61_look.ipynb?token=desk&reset')
            wait(lambda: page.run(CELLS), 'the notebook')
            wait(lambda: page.run(IDLE), 'its kernel')
            page.run(RUN)
            before = wait(lambda: three_pictures(page), 'three pictures')
            page.drag(*wait(lambda: page.run(HANDLE), 'a slider'), 60)
            after = wait(lambda: three_pictures(page, before), 'three other pictures after the slider moved')
            assert len({*before, *after}) == 6
