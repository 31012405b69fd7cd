"The house: order and names of the modules, size and state of the notebooks."
import ast
import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import srnb
from srnb.pipeline import run

root = Path(__file__).parents[1]
library = sorted(root.glob('nbs/library/*.ipynb'))
paper = sorted(root.glob('nbs/paper/*.ipynb'))
modules = sorted(p for p in root.glob('srnb/**/*.py') if not p.name.startswith('_'))

pytestmark = pytest.mark.usefixtures('here')


def each(paths): return pytest.mark.parametrize('path', paths, ids=lambda p: p.stem)

def cells(path: Path) -> list[str]: return [c['source'] for c in run.code_cells(path)]

def code(path: Path) -> str:
    "A module's or a test's text, a notebook's code cells."
    return '\n\n'.join(cells(path)) if path.suffix == '.ipynb' else path.read_text(encoding='utf-8')

def dotted(path: Path) -> str: return '.'.join(path.relative_to(root).with_suffix('').parts)


# numbers and names

def test_modules_import_only_lower_numbered_ones():
    found = {p: re.search(r'^#\| *default_exp (\S+)', code(p), re.M) for p in library}
    exports = {p: m[1] for p, m in found.items() if m}              # a notebook that only teaches exports nothing
    number = {f'srnb.{name}': int(p.name[:2]) for p, name in exports.items()}
    assert number.keys() == {dotted(p) for p in modules}
    for p in library:
        wrong = {n for n in run.mentions(code(p))[0] if number.get(n, -1) >= int(p.name[:2])}
        assert not wrong, f'{p.name} imports {", ".join(wrong)}, whose number is not smaller'
        assert p.stem[3:] == exports.get(p, p.stem[3:]), f'{p.name} writes {exports[p]}: the names differ'


def test_numbers_are_unique():
    by = defaultdict(list)
    for p in library: by[p.name[:2]].append(p.stem)
    assert not {number: names for number, names in by.items() if len(names) > 1}


def public(path: Path) -> list[str]:
    "What a module exports."
    assigned = [n for n in ast.parse(code(path)).body if isinstance(n, ast.Assign)]
    return next((ast.literal_eval(n.value) for n in assigned if ast.unparse(n.targets[0]) == '__all__'), [])


def test_no_public_name_in_two_modules():
    by = defaultdict(list)
    for p in modules:
        for name in public(p): by[name].append(dotted(p))
    assert not {name: where for name, where in by.items() if len(where) > 1}


def test_modules_have_telling_names():
    parts = {part for p in modules for part in dotted(p).split('.')}
    assert not parts & {'utils', 'util', 'common', 'helpers', 'misc', 'base'}


# what notebooks and tests take from the library

@cache
def names_in(path: Path) -> set[str]:
    "What stands in a module, its own or imported."
    found = {'__file__', '__name__', '__doc__'}
    for statement in ast.parse(code(path)).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef): found.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom): found |= {a.asname or a.name for a in statement.names}
        else: found |= variables(statement)
    return found


def variables(node: ast.AST) -> set[str]:
    "Names that a piece of code gives to things of its own."
    stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}


def taken(source: str) -> set[tuple[str, str]]:
    "(module, name) of all that a code takes: `from module import name`, and `module.name` where no variable hides it."
    known, body = {dotted(p) for p in modules}, ast.parse(source).body
    alias, found = {}, set()
    for node in (n for statement in body for n in ast.walk(statement)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or '').startswith('srnb'): continue
        for a in node.names:
            if (full := f'{node.module}.{a.name}') in known: alias[a.asname or a.name] = full
            else: found.add((node.module, a.name))
    everywhere = set().union(*(variables(s) for s in body if not isinstance(s, ast.FunctionDef | ast.ClassDef)))
    for statement in body:
        visible = alias.keys() - everywhere - variables(statement)
        for n in ast.walk(statement):
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in visible:
                found.add((alias[n.value.id], n.attr))
    return found


@each(library + paper + sorted(root.glob('tests/*.py')))
def test_names_taken_from_the_library_exist(path):
    "Also in notebooks that no test runs."
    known = {dotted(p): p for p in modules}
    names = {'srnb': {*srnb.__all__, '__version__'}} | {module: names_in(p) for module, p in known.items()}
    missing = [f'{module}.{name}' for module, name in taken(code(path)) if name not in names[module]]
    assert not missing


# notebooks

def height(node: ast.AST) -> int: return node.end_lineno - node.lineno + 1


@each(library)
def test_an_export_cell_is_one_idea(path):
    "40 lines at most; a class may be longer where none of its methods is longer than 20."
    for cell in cells(path):
        if not re.match(r'#\| *export', cell): continue
        classes = [n for n in ast.parse(cell).body if isinstance(n, ast.ClassDef)]
        methods = [f for c in classes for f in c.body if isinstance(f, ast.FunctionDef)]
        lines = cell.count('\n')
        outside = lines - sum(map(height, classes))
        assert lines <= 40 or (outside <= 40 and all(height(f) <= 20 for f in methods)), f'{lines} lines:\n{cell[:200]}'


def test_nbdev_export_leaves_no_diff(copy):
    subprocess.run(['nbdev_export'], cwd=copy, check=True, capture_output=True)
    made = {p.relative_to(copy): p.read_bytes() for p in copy.glob('srnb/**/*.py')}
    assert made == {p.relative_to(root): p.read_bytes() for p in root.glob('srnb/**/*.py')}, 'run nbdev_export'


def test_notebooks_are_clean(copy):
    subprocess.run(['nbdev_clean', '--fname', 'nbs'], cwd=copy, check=True, capture_output=True)
    for p in library + paper:
        assert (copy/p.relative_to(root)).read_bytes() == p.read_bytes(), f'{p.name}: run nbdev_clean'
        assert p.stat().st_size < 300_000, f'{p.name}: outputs too large'


@each(paper)
def test_experiments_keep_their_parameters_tag(path): run.parameter_names(path.stem)


@each(library + paper)
def test_notebooks_stay_plain(path):
    source = code(path)
    for word in ('import *', 'sys.path.', 'if cuda'): assert word not in source, word
    assert not re.search(r'^\s*[!%]', source, re.M), 'a command of the shell or of IPython'
    assert len(cells(path)) <= (14 if path in paper else 60)
