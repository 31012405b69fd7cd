"The two pages to try a photograph of one's own, in a real browser: upload, wait, move, compare."
import os
import shutil
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import browser, free_port, in_chromium, notebook, pixels, running, wait
from skimage.data import chelsea

from srnb.app import page as app
from srnb.app.serve import SQUARE
from srnb.pictures.files import PictureFile, read_picture_file

root = Path(__file__).parents[1]
cat = chelsea()[60:180, 100:260]
method = app.own_methods()[0]


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).max()


@in_chromium
def test_the_notebook_enlarges_what_is_uploaded(toy, tmp_path):
    (toy/'nbs/paper').mkdir(parents=True)
    shutil.copy(root/'nbs/paper/67_try.ipynb', toy/'nbs/paper')
    look = app.look_at(cat, method, 0.5, 0.5)

    with notebook(toy, '67_try', tmp_path) as page:
        page.upload('button.widget-upload', app.png_bytes(cat), 'my cat.png')
        def shown(): return [pixels(url) for url in page.pictures()]
        def arrived(wanted): return (found := shown()) and levels_apart(found[0], wanted) <= 1

        wait(lambda: arrived(app.before_after(look.before, look.after, 0.5)), 'the photograph, half before, half after')
        page.drag(*page.centre('.noUi-handle', 3), -400)                    # the line, to the left: all of it after
        wait(lambda: arrived(app.before_after(look.before, look.after, 0)), 'all after')
        page.drag(*page.centre('.noUi-handle', 0), -400)                    # α, to 0
        wait(lambda: arrived(app.before_after(look.before, look.faithful, 0)), 'the faithful picture')
        page.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Enlarge it all').click()")
        made = toy/f'out/upscaled/my cat_{method}_0.png'
        wait(made.exists, 'the whole photograph')
        assert levels_apart(read_picture_file(made).pixels, app.ready(app.FAITHFUL)(cat)) <= 1
        page.upload('button.widget-upload', b'no picture', 'letter.png')
        wait(lambda: page.run("document.body.textContent.includes('letter.png is no picture')"), 'what is wrong')


@pytest.fixture
def address(tmp_path):
    "Where the page is served, from an empty folder outside the repository."
    port = free_port()
    serve = f'from srnb.app.serve import serve; serve(port={port})'
    with running([sys.executable, '-c', serve], cwd=tmp_path, env=os.environ):
        def answers():
            try: return urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5).status == 200
            except OSError: return False
        wait(answers, 'the server')
        yield f'http://127.0.0.1:{port}/'


@in_chromium
def test_the_served_page_enlarges_what_is_uploaded(address, tmp_path):
    look = app.look_at(cat, method, 0.5, 0.5, SQUARE)
    with browser(tmp_path) as page:
        def said(text): return wait(lambda: text in page.run("document.getElementById('said').textContent"), text)
        def seen(left, right=None):
            "Is this what stands on the screen, but for the edges, where a browser may mix pixels?"
            found, middle = page.screenshot('#look'), left.shape[1] // 2
            inside = slice(2, -2), slice(2, middle - 2), slice(middle + 2, -2)
            sides = zip(inside[1:], (left, left if right is None else right))
            return all(levels_apart(found[inside[0], x], wanted[inside[0], x]) <= 1 for x, wanted in sides)

        page.send('Page.navigate', url=address)
        listed = "document.querySelectorAll('#method option').length"
        wait(lambda: page.run(listed) == len(app.own_methods()), 'methods')
        page.upload('#file', app.png_bytes(cat), 'my cat.png')
        said('my cat.png: 160 × 120 px')
        for name, wanted in look._asdict().items():
            assert levels_apart(pixels(page.pictures(f'#{name}')[0]), wanted) == 0
        wait(lambda: seen(look.before, look.after), 'half before, half after')

        page.drag(*page.centre('#line'), -600)
        wait(lambda: seen(look.after), 'all after')
        x, y, width, height = page.frame('#alpha')
        page.drag(x + width - 8, y + height / 2, -width / 2 + 8)            # α, to the middle
        alpha = float(page.run("document.getElementById('alpha').value"))
        assert 0.4 < alpha < 0.6
        wait(lambda: seen(app.shade(look.faithful, look.after, alpha)), 'between faithful and pleasing')

        page.run("document.getElementById('whole').click()")
        said('Done.')
        page.run('''(async () => { const all = new Image()
            all.id = 'all'; all.src = document.getElementById('made').href
            await all.decode(); document.body.append(all) })()''')
        made = page.pictures('#all')[0]
        assert levels_apart(pixels(made), app.enlarged_picture(PictureFile(cat), method, alpha).pixels) == 0
        assert page.run("document.getElementById('made').download") == f'my cat_{method}_{alpha:g}.png'

        x, y, width, height = page.frame('#photograph')
        page.drag(x + 2, y + 2, 0)                                          # a click: the corner at the left, above
        corner = app.look_at(cat, method, 0, 0, SQUARE)
        wait(lambda: seen(app.shade(corner.faithful, corner.after, alpha)), 'another place')
        page.upload('#file', b'no picture', 'letter.png')
        said('letter.png is no picture of a known kind')
