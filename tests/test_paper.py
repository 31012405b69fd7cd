"One item of the papers: what it needs is made, and no more."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from srnb.pipeline import book, items, run
from srnb.report import compare
from srnb.core import Error

root = Path(__file__).parents[1]
SCORES = '''
import csv, pathlib, sys
method = sys.argv[1]
pathlib.Path('out/scores').mkdir(parents=True, exist_ok=True)
with open(f'out/scores/{method}.csv', 'w') as file:
    lines = csv.writer(file, lineterminator='\\n')
    lines.writerow(['method', 'seed', 'set', 'image', 'metric', 'protocol', 'value'])
    for image in (0, 1): lines.writerow([method, 0, 'set5', image, 'psnr', 'luma, shave 4', 28 + image])
'''
CELLS = ['methods = ["bicubic_float"]', '''
from srnb.report import published, results, tables
ours = results.mean_scores(results.scores(methods))
tables.save_table(tables.beside(ours, published.cells("eusr_table_2")), "eusr_table_2")
''']


@pytest.fixture
def paper(toy):
    "A repository with two methods and one table that reads one of them."
    for folder in 'conf', 'srnb': shutil.copytree(root/folder, toy/folder)
    (toy/'nbs/paper').mkdir(parents=True)
    shutil.copy(root/'nbs/paper/published.json', toy/'nbs/paper')
    (toy/'params.yaml').write_text('profile: tiny\n')
    (toy/'scores.py').write_text(SCORES)
    stage = {'cmd': f'{sys.executable} scores.py ${{item}}', 'deps': ['scores.py'], 'outs': ['out/scores/${item}.csv']}
    stages = {'assess': {'foreach': ['bicubic_float', 'eusr'], 'do': stage}}
    (toy/'dvc.yaml').write_text(yaml.safe_dump({'stages': stages}))
    cells = [{'cell_type': 'code', 'id': f'c{k}', 'metadata': {'tags': ['parameters']} if k == 0 else {},
              'source': source, 'outputs': [], 'execution_count': None} for k, source in enumerate(CELLS)]
    about = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    notebook = {'cells': cells, 'metadata': about, 'nbformat': 4, 'nbformat_minor': 5}
    (toy/'nbs/paper/90_eusr_table_2.ipynb').write_text(json.dumps(notebook))
    subprocess.run([sys.executable, '-m', 'dvc', 'init', '--no-scm', '-q'], check=True)
    return toy


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")             # DVC's
def test_an_item_makes_what_it_needs_and_prints_it(paper):
    assert items.make_item('eusr_table_2', dry=True).splitlines() == ['assess@bicubic_float', '90_eusr_table_2']
    assert '| Set5/Bicubic | PSNR | 28.42 | 28.50 | 0.0822 | differs |' in items.make_item('eusr_table_2')
    assert (paper/'out/scores/bicubic_float.csv').exists() and not (paper/'out/scores/eusr.csv').exists()
    assert (paper/'out/tables/eusr/eusr_table_2.csv').exists()
    assert items.make_item('eusr_table_2', dry=True).splitlines() == ['90_eusr_table_2']
    listed = items.listing().set_index('item')
    assert listed.state['eusr_table_2'] == 'made' and listed.state['eusr_table_3'] == 'no notebook'
    (paper/'scores.py').write_text('1/0')
    why = 'needs assess@bicubic_float, and one of them failed'
    with pytest.raises(Error, match=why): items.make_item('eusr_table_2')


@pytest.mark.usefixtures('here')
def test_every_item_of_the_papers_has_one_notebook_and_a_place_in_the_book():
    listed = [item for sections in book.SECTIONS.values() for named in sections.values() for item in named.split()]
    assert sorted(listed) == sorted(items.items())
    missing = [i for i in items.items() if f"{'80' if '_fig_' in i else '90'}_{i}" not in run.notebooks()]
    assert not missing, f'no notebook makes {", ".join(missing)}'


@pytest.fixture
def again(toy):
    "The published run of `mini`, as if it had been made here, too."
    shutil.copytree(root/'results/mini', toy/'results/mini')
    shutil.copytree(root/'results/mini', toy/'out')
    shutil.copy(root/'results/mini/params.yaml', toy)
    (toy/'results/mini/machine.json').write_text(json.dumps(compare.machine() | {'processor': 'another'}))
    return toy


def rescore(run: Path, change):
    "Change every score of a run: `change` is given a file's method and its table."
    for file in run.glob('out/scores/*.csv'):
        table = pd.read_csv(file)
        table.assign(value=change(file.stem, table)).to_csv(file, index=False)


def test_committed_results_agree_with_themselves(again):
    assert {*compare.compare().files.outcome} == {'same bytes'}
    assert subprocess.run([sys.executable, '-m', 'srnb.report.compare'], stdout=subprocess.DEVNULL).returncode == 0


def test_rounding_is_the_same_on_another_machine_and_not_on_this_one(again):
    rng = np.random.default_rng(0)
    rescore(again, lambda method, table: table.value * (1 + 1e-6 * rng.normal(size=len(table))))
    found = compare.compare()
    same, text = compare.conclusion(found)
    assert same and 'The same, in the sense of another training' in text and 'It differs in processor' in text
    assert not compare.conclusion(found._replace(machine=[]))[0]                   # bytes are asked for there
    assert compare.conclusion(found._replace(machine=None))[0]                     # results of old have no record


def test_what_is_broken_is_named(again):
    off = {'bicubic': 1, 'srgan': 300}
    rescore(again, lambda method, table: table.value + (table.metric == 'niqe') * off.get(method, 0))
    same, text = compare.conclusion(compare.compare())
    assert not same and 'niqe of bicubic on ' in text and 'nothing was trained for it' in text
    assert 'niqe of srgan on ' in text and 'another training is within' in text
    far = compare.compare().scores.query("word == 'too far'")
    assert {*far.row} == {'bicubic', 'srgan'} and {*far.metric} == {'niqe'}


def test_a_row_with_other_parameters_is_not_compared(again):
    params = yaml.safe_load((again/'params.yaml').read_text())
    params['gan']['srgan']['rate'] *= 2
    (again/'params.yaml').write_text(yaml.safe_dump(params))
    rescore(again, lambda method, table: table.value + 300 * (method == 'srgan'))
    same, text = compare.conclusion(compare.compare())
    assert same and 'Rows that have other parameters here and are not compared: srgan' in text
