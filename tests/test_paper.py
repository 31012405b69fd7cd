"One item of the papers: what it needs is made, and no more."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from srnb.pipeline import book, items, run
from srnb.report import compare

root = Path(__file__).parents[1]
SCORES = 'import sys, pathlib\nm = sys.argv[1]\npathlib.Path("out/scores").mkdir(parents=True, exist_ok=True)\npathlib.Path(f"out/scores/{m}.csv").write_text("method,seed,set,image,metric,protocol,value\\n" + "".join(f"{m},0,set5,{i},psnr,\'luma, shave 4\',{28 + i}\\n" for i in (0, 1)).replace("\'", chr(34)))\n'
CELLS = ['methods = ["bicubic_float"]', 'from srnb.report import published, results, tables\nours = results.mean_scores(results.scores(methods))\ntables.save_table(tables.beside(ours, published.cells("eusr_table_2")), "eusr_table_2")']


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A repository with two methods and one table that reads one of them."
    (tmp_path/'nbs/paper').mkdir(parents=True)
    shutil.copytree(root/'conf', tmp_path/'conf')
    shutil.copy(root/'nbs/paper/published.json', tmp_path/'nbs/paper')
    (tmp_path/'settings.ini').touch()
    (tmp_path/'params.yaml').write_text('profile: tiny\n')
    (tmp_path/'scores.py').write_text(SCORES)
    stage = {'cmd': f'{sys.executable} scores.py ${{item}}', 'deps': ['scores.py'], 'outs': ['out/scores/${item}.csv']}
    (tmp_path/'dvc.yaml').write_text(yaml.safe_dump({'stages': {'assess': {'foreach': ['bicubic_float', 'eusr'], 'do': stage}}}))
    cells = [{'cell_type': 'code', 'id': f'c{k}', 'metadata': {'tags': ['parameters']} if not k else {}, 'source': s, 'outputs': [], 'execution_count': None} for k, s in enumerate(CELLS)]
    about = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    (tmp_path/'nbs/paper/90_eusr_table_2.ipynb').write_text(json.dumps({'cells': cells, 'metadata': about, 'nbformat': 4, 'nbformat_minor': 5}))
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, '-m', 'dvc', 'init', '--no-scm', '-q'], check=True)
    return tmp_path


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")             # DVC's
def test_an_item_makes_what_it_needs_and_prints_it(toy, capfd):
    assert items.make('eusr_table_2', dry=True).splitlines() == ['assess@bicubic_float', '90_eusr_table_2']
    assert items.main(['eusr_table_2']) == 0
    assert '| Set5/Bicubic | PSNR | 28.42 | 28.50 | 0.0822 | differs |' in capfd.readouterr().out
    assert (toy/'out/scores/bicubic_float.csv').exists() and not (toy/'out/scores/eusr.csv').exists()
    assert (toy/'out/tables/eusr/eusr_table_2.csv').exists()
    assert items.make('eusr_table_2', dry=True).splitlines() == ['90_eusr_table_2']
    listed = items.listing().set_index('item')
    assert listed.loc['eusr_table_2', 'state'] == 'made' and listed.loc['eusr_table_3', 'state'] == 'no notebook'
    (toy/'scores.py').write_text('1/0')
    assert items.main(['eusr_table_2']) == 1 and 'needs assess@bicubic_float, and one of them failed' in capfd.readouterr().err


def test_every_item_of_the_papers_has_one_notebook_and_a_place_in_the_book(monkeypatch):
    monkeypatch.chdir(root)
    assert sorted(i for parts in book.SECTIONS.values() for items in parts.values() for i in items.split()) == sorted(items.items())
    missing = [i for i in items.items() if f"{'80' if '_fig_' in i else '90'}_{i}" not in run.notebooks()]
    assert not missing, f'no notebook makes {", ".join(missing)}'


def test_committed_results_agree_with_themselves(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in 'settings.ini', 'dvc.yaml': (tmp_path/name).touch()
    (tmp_path/'params.yaml').write_text('profile: mini')
    shutil.copytree(root/'results/mini', tmp_path/'results/mini')
    shutil.copytree(root/'results/mini', tmp_path/'out')
    found = compare.compare()
    assert set(found.verdict) == {'same bytes'} and compare.main([]) == 0
