"A real browser for tests: Chromium without a window, moved by its debugging protocol, and JupyterLab to show it."
import base64
import contextlib
import io
import json
import os
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

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)


def in_chromium(test):
    "Mark a test that needs a browser."
    missing = pytest.mark.skipif(chromium is None, reason='no Chromium on this machine (Debian: apt install chromium)')
    return pytest.mark.browser(missing(test))


def wait(ready, what: str, seconds: float = 180):
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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


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


PICTURES = '''[...document.querySelectorAll(%s)].filter(i => i.naturalWidth).map(i => {
    const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
    c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL() })'''
FRAME = '''(() => {
    const e = document.querySelectorAll(%s)[%d];
    if (!e) return null;
    e.scrollIntoView({block: 'center'});
    const b = e.getBoundingClientRect();
    return [b.x, b.y, b.width, b.height] })()'''
UPLOAD = '''(async () => {                               // a button that opens a dialogue, or the input itself
    let input = document.querySelector(%s)
    if (input.tagName !== 'INPUT') {
        const button = input, click = HTMLInputElement.prototype.click
        HTMLInputElement.prototype.click = function() { input = this }
        button.click()
        HTMLInputElement.prototype.click = click }
    const files = new DataTransfer()
    files.items.add(new File([Uint8Array.from(atob(%s), c => c.charCodeAt(0))], %s))
    input.files = files.files
    input.dispatchEvent(new Event('change', {bubbles: true})) })()'''


class Browser:
    "A page of Chromium."
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

    def pictures(self, selector: str = 'img.widget-image') -> list[str]:
        "The pictures of the page, as PNG in data URLs."
        return self.run(PICTURES % json.dumps(selector))

    def frame(self, selector: str, which: int = 0) -> tuple[float, float, float, float]:
        "Where an element is, once it is there: left, top, width, height."
        return wait(lambda: self.run(FRAME % (json.dumps(selector), which)), selector)

    def centre(self, selector: str, which: int = 0) -> tuple[float, float]:
        x, y, width, height = self.frame(selector, which)
        return x + width / 2, y + height / 2

    def upload(self, selector: str, data: bytes, name: str):
        "Choose a file as a person does with the button or the input that `selector` names."
        wait(lambda: self.run(f'!!document.querySelector({json.dumps(selector)})'), selector)
        self.run(UPLOAD % (json.dumps(selector), json.dumps(base64.b64encode(data).decode()), json.dumps(name)))

    def screenshot(self, selector: str) -> np.ndarray:
        "What is seen of an element: (h, w, 3) uint8."
        x, y, width, height = map(round, self.frame(selector))              # pixels are painted whole
        clip = {'x': x, 'y': y, 'width': width, 'height': height, 'scale': 1}
        return pixels('data:,' + self.send('Page.captureScreenshot', format='png', clip=clip)['data'])


def pixels(url: str) -> np.ndarray:
    "(h, w, 3) uint8 of a PNG in a data URL."
    with Image.open(io.BytesIO(base64.b64decode(url.split(',', 1)[1]))) as file: return np.asarray(file.convert('RGB'))


@contextlib.contextmanager
def browser(home: Path):
    "A page of a Chromium whose profile lies in `home`."
    options = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
               '--remote-debugging-port=0', f'--user-data-dir={home}/chromium', '--window-size=1400,1400',
               '--force-color-profile=srgb', 'about:blank']
    listens = home/'chromium/DevToolsActivePort'
    with running([chromium, *options]):
        gate = wait(lambda: listens.exists() and listens.read_text().splitlines()[:1], 'Chromium')[0]
        def shown(): return answer(f'http://127.0.0.1:{gate}/json/list') or []
        found = wait(lambda: [p for p in shown() if p['type'] == 'page'], 'a page of Chromium')
        page = Browser(found[0]['webSocketDebuggerUrl'])
        with contextlib.closing(page.socket): yield page


def jupyterlab(desk: Path, port: int) -> list[str]:
    "A JupyterLab of its own, which opens no browser and asks nobody for news."
    server = {'port': port, 'port_retries': 0, 'ip': '127.0.0.1', 'root_dir': desk, 'allow_root': True}
    app = {'expose_app_in_browser': True, 'news_url': None, 'check_for_updates_class': 'jupyterlab.NeverCheckForUpdate'}
    options = [f'--ServerApp.{k}={v}' for k, v in server.items()] + [f'--LabApp.{k}={v}' for k, v in app.items()]
    return [sys.executable, '-m', 'jupyterlab', '--no-browser', '--IdentityProvider.token=desk', *options]


CELLS = "document.querySelectorAll('.jp-Notebook .jp-CodeCell').length >= 3 && !!window.jupyterapp"
IDLE = "!!document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')"
RUN = "void window.jupyterapp.commands.execute('notebook:run-all-cells')"


@contextlib.contextmanager
def notebook(desk: Path, name: str, home: Path):
    "A page with a notebook of the repository `desk`, all of whose cells are running; JupyterLab's own files in `home`."
    folders = {'JUPYTER_CONFIG_DIR': 'config', 'JUPYTER_DATA_DIR': 'data', 'JUPYTER_RUNTIME_DIR': 'runtime',
               'JUPYTERLAB_WORKSPACES_DIR': 'workspaces', 'JUPYTERLAB_SETTINGS_DIR': 'lab_settings',
               'IPYTHONDIR': 'ipython'}
    own = {name: str(home/folder) for name, folder in folders.items()} | {'JUPYTER_PREFER_ENV_PATH': '1'}
    port = free_port()
    lab = f'http://127.0.0.1:{port}'
    with running(jupyterlab(desk, port), cwd=desk, env=os.environ | own), browser(home) as page:
        wait(lambda: answer(f'{lab}/api/status?token=desk'), 'JupyterLab')
        page.send('Page.navigate', url=f'{lab}/lab/tree/nbs/paper/{name}.ipynb?token=desk&reset')
        wait(lambda: page.run(CELLS), 'the notebook')
        def kernels(): return [k['execution_state'] for k in answer(f'{lab}/api/kernels?token=desk') or []]
        wait(lambda: 'idle' in kernels() and page.run(IDLE), 'its kernel')      # one that is not there looks idle, too
        page.run(RUN)
        yield page
