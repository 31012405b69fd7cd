"The desk: an index that cannot rot, and a notebook that works in a real browser."
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import in_chromium, notebook, wait
from PIL import Image

from srnb.pipeline import index

root = Path(__file__).parents[1]


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

def three_pictures(page, unlike=()) -> list[str]:
    "The pictures of the page, once there are three, none of which stood there before."
    found = page.pictures()
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


@in_chromium
def test_a_slider_moves_the_pictures(desk, tmp_path):
    with notebook(desk, '61_look', tmp_path) as page:
        before = wait(lambda: three_pictures(page), 'three pictures')
        page.drag(*page.centre('.noUi-handle', 1), 60)
        after = wait(lambda: three_pictures(page, before), 'three other pictures after the slider moved')
        assert len({*before, *after}) == 6
