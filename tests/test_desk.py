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


def test_index_is_written_from_the_notebooks(monkeypatch):
    monkeypatch.chdir(root)
    assert (root/'nbs/index.ipynb').read_text(encoding='utf-8') == index.notebook(), 'a notebook came, went or changed its title: run `python -m srnb.pipeline.index`'


def test_index_leads_to_every_notebook_and_says_what_it_is():
    text = '\n'.join(''.join(c['source']) for c in json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells'])
    found = dict(re.findall(r'^- \[[^\]]+\]\(([^)]+)\):? ?(.*)$', text, re.M))
    assert found.keys() == {str(p.relative_to(root/'nbs')) for p in root.glob('nbs/*/*.ipynb')}
    assert not [name for name, said in found.items() if len(said) < 10], 'a notebook without a sentence: its first cell wants a line that begins with >'


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
    with contextlib.suppress(urllib.error.URLError, ConnectionError, ValueError, TimeoutError), urllib.request.urlopen(url, timeout=5) as r: return json.loads(r.read())


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
        for kind, at in ('mouseMoved', x), ('mousePressed', x), ('mouseMoved', x + by / 2), ('mouseMoved', x + by), ('mouseReleased', x + by):
            self.send('Input.dispatchMouseEvent', type=kind, x=at, y=y, button='left', buttons=int(kind != 'mouseReleased'), clickCount=int(kind != 'mouseMoved'))


PICTURES = '''[...document.querySelectorAll('img.widget-image')].filter(i => i.naturalWidth).map(i => {
    const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
    c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL() })'''
HANDLE = '''(() => { const h = document.querySelectorAll('.noUi-handle')[1]; if (!h) return null; h.scrollIntoView({block: 'center'});
    const b = h.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()'''


@pytest.mark.skipif(chromium is None, reason='no Chromium on this machine (Debian: apt install chromium)')
def test_a_slider_moves_the_pictures(tmp_path):
    desk_folder = tmp_path/'srnb'
    (desk_folder/'nbs/paper').mkdir(parents=True)
    for name in 'settings.ini', 'dvc.yaml': (desk_folder/name).touch()
    shutil.copy(root/'nbs/paper/61_look.ipynb', desk_folder/'nbs/paper')
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    for method in 'hr', 'bicubic', 'srgan':
        path = desk_folder/'out/sr'/method/'classic/noise.png'
        path.parent.mkdir(parents=True)
        Image.fromarray(np.roll(noise, len(method), 1)).save(path)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    lab = [sys.executable, '-m', 'jupyterlab', '--no-browser', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--ServerApp.ip=127.0.0.1', '--IdentityProvider.token=desk', f'--ServerApp.root_dir={desk_folder}',
           '--ServerApp.allow_root=True', '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    own = {'JUPYTER_CONFIG_DIR': str(tmp_path/'config'), 'JUPYTER_DATA_DIR': str(tmp_path/'data'), 'JUPYTER_RUNTIME_DIR': str(tmp_path/'runtime'), 'JUPYTERLAB_WORKSPACES_DIR': str(tmp_path/'workspaces'),
           'JUPYTERLAB_SETTINGS_DIR': str(tmp_path/'lab_settings'), 'IPYTHONDIR': str(tmp_path/'ipython'), 'JUPYTER_PREFER_ENV_PATH': '1'}
    profile = tmp_path/'chromium'
    look = [chromium, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--remote-debugging-port=0', f'--user-data-dir={profile}', '--window-size=1400,1400', 'about:blank']
    with running(lab, cwd=desk_folder, env=os.environ | own), running(look):
        wait(lambda: answer(f'http://127.0.0.1:{port}/api/status?token=desk'), 'JupyterLab')
        gate = wait(lambda: (profile/'DevToolsActivePort').exists() and (profile/'DevToolsActivePort').read_text().splitlines()[:1], 'Chromium')[0]
        pages = wait(lambda: [p for p in answer(f'http://127.0.0.1:{gate}/json/list') or [] if p['type'] == 'page'], 'a page of Chromium')
        page = Browser(pages[0]['webSocketDebuggerUrl'])
        with contextlib.closing(page.socket):
            page.send('Page.navigate', url=f'http://127.0.0.1:{port}/lab/tree/nbs/paper/61_look.ipynb?token=desk&reset')
            wait(lambda: page.run("document.querySelectorAll('.jp-Notebook .jp-CodeCell').length >= 3 && !!window.jupyterapp"), 'the notebook')
            wait(lambda: page.run("!!document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')"), 'its kernel')
            page.run("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
            before = wait(lambda: len(p := page.run(PICTURES)) == 3 and p, 'three pictures')
            x, y = wait(lambda: page.run(HANDLE), 'a slider')
            page.drag(x, y, 60)
            after = wait(lambda: len(p := page.run(PICTURES)) == 3 and all(a != b for a, b in zip(before, p)) and p, 'three other pictures after the slider moved')
            assert len({*before, *after}) == 6
