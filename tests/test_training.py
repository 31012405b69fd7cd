"""A training that is killed, cut short, poisoned or shared out among processes ends as it should, or says why not.

Tiny networks, no GPU."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from srnb import core
from srnb.data import image, pairs, photos
from srnb.training import loop, methods, processes
from srnb.core import Error
from srnb.params import EusrRow, GeneratorRow, LearningRow
from srnb.training.checkpoints import Checkpoints
from srnb.training.learn import learn
from srnb.training.log import log_of

CRITIC = {'nf': 4, 'stages': 3}
ROW = dict(name='toy', size={'nf': 4, 'blocks': 1}, patch=32, batch=4, steps=40, rate=1e-3, critic_rate=1e-3,
           schedule='cosine', warmup=3, ema=0.9, pixel=1., adversarial=0.01, critic=CRITIC,
           every=2, validate_every=20, save_every=4, block='gan', profile='tiny')


def row(**change) -> GeneratorRow: return GeneratorRow.read(ROW | change)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(before[0]); torch.set_deterministic_debug_mode(before[1])


@pytest.fixture
def repository(toy):
    "An empty repository with two photographs, as working directory."
    small = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, (300, 300), mode='bicubic').clamp(0, 1)
    for i, x in enumerate(large): image.write(toy/f'{i}.png', (255 * x).to(torch.uint8))
    for name in ('train', 'valid'): photos.pack(sorted(toy.glob('*.png')), core.out('photos', name))
    return toy


class Trainer:
    "A process that has everything imported; each training is a child of its own, which can be killed at any moment."
    script = '''
import json, os, sys, time, traceback
import torch, torch._dynamo                                        # imported late: children are born with it
from srnb.metrics import niqe
from srnb.params import GeneratorRow
from srnb.training import processes
from srnb.training.learn import learn
torch.set_num_threads(1)
niqe.niqe = lambda sr, crop, undefined: sr.mean((1, 2, 3))         # its compilation takes longer than the training
def slowly(f, flush=os.fsync): time.sleep(0.01); flush(f)         # a disk on which a write takes a while
os.fsync = slowly
print('ready', flush=True)
for line in sys.stdin:
    folder, code = json.loads(line)
    if not (pid := os.fork()):
        os.chdir(folder)
        try: exec(code)
        except BaseException: traceback.print_exc(); os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
'''
    def __init__(self, folder):
        self.said = open(folder/'said', 'w+')
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]
        self.process = subprocess.Popen([sys.executable, '-c', self.script], cwd=folder, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
                                        env=os.environ | {'SRNB_DEVICE': 'cpu', 'PYTHONPATH': os.pathsep.join(paths)})
        assert self.read() == 'ready', (folder/'said').read_text()

    def read(self): return self.process.stdout.readline().strip()

    def begin(self, row, code='learn(GeneratorRow.read({}))'):
        self.process.stdin.write(json.dumps([str(Path.cwd()), code.format(row)]) + '\n')
        self.process.stdin.flush()
        self.pid = int(self.read())

    def kill(self):
        "Kill the training, unless it has ended by itself; `end` says which."
        try: os.kill(self.pid, signal.SIGKILL)                     # a number is not given anew within these seconds
        except ProcessLookupError: pass

    def end(self) -> int: return int(self.read())

    def finish(self, *what, status: int = 0) -> str:
        "Train to the end; what was said."
        at = os.fstat(self.said.fileno()).st_size
        self.begin(*what)
        ended = self.end()
        self.said.seek(at); said = self.said.read()
        assert ended == status, said[-4000:]
        return said

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()


@pytest.fixture(scope='module')
def one_trainer(tmp_path_factory):
    t = Trainer(tmp_path_factory.mktemp('trainer'))
    yield t
    t.close()


@pytest.fixture
def trainer(repository, one_trainer): return one_trainer


def results() -> tuple[bytes, bytes]:
    return core.model_path('toy').read_bytes(), core.out('log', 'toy.csv').read_bytes()

def fresh():
    "Take the results away, so that the next run must make them."
    core.model_path('toy').unlink(missing_ok=True); core.out('log', 'toy.csv').unlink(missing_ok=True)

def states() -> list[Path]: return sorted(Path('out/scratch').glob('toy-*/[0-9]*.pt'))

def wait_for(what, seconds: float = 30.):
    end = time.monotonic() + seconds
    while not what(): assert time.monotonic() < end, 'nothing came'; time.sleep(0.0005)


# killed at any moment

@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(trainer):
    "Kills at random moments, and in the middle of writing a checkpoint; each run goes on where the last one stopped."
    asked = ROW | {'keep': 'niqe', 'keep_loss': 99., 'patience': 9}
    trainer.finish(asked)                                          # the first is slower than the others
    whole = results(); fresh()
    begun = time.monotonic()
    trainer.finish(asked)
    took = time.monotonic() - begun
    assert results() == whole
    assert not list(Path('out/scratch').iterdir())
    chance, halves, kills = random.Random(0), 0, 0
    for round in range(3):
        fresh()
        for attempt in range(4):
            trainer.begin(asked)
            if attempt == 1:
                seen = {p.name for p in Path('out/scratch').glob('toy-*/*')}
                def writes(): return any(p.name not in seen for p in Path('out/scratch').glob('toy-*/.*.pt.*part*'))
                wait_for(lambda: writes() or core.model_path('toy').exists())
            else: time.sleep(chance.random() * took * 0.6)
            trainer.kill()
            kills += trainer.end() == signal.SIGKILL
            halves += any(Path('out/scratch').glob('toy-*/.*.pt.*part*'))
        said = trainer.finish(asked)
        assert 'cannot be read' not in said, 'a kill left a torn checkpoint under its real name'
        assert results() == whole
        assert not list(Path('out/scratch').iterdir()), 'something was left behind'
    assert kills >= 6 and halves >= 1, f'{kills} kills, {halves} in the middle of a write: the test did not test'


@pytest.mark.slow
def test_a_changed_row_starts_anew(trainer):
    changed = ROW | {'rate': 2e-3, 'steps': 12}
    trainer.finish(changed)
    alone = results(); fresh()
    trainer.begin(ROW | {'steps': 12})
    wait_for(states)
    trainer.kill(); trainer.end()
    assert states(), 'killed too late to leave a checkpoint'
    trainer.finish(changed)
    assert results() == alone
    assert states(), "the other row's checkpoints are not this row's to remove"


@pytest.mark.slow
def test_a_truncated_checkpoint_is_noticed(trainer):
    trainer.finish(ROW); whole = results(); fresh()
    trainer.begin(ROW)
    wait_for(lambda: len(states()) == 2)
    trainer.kill(); trainer.end()
    newest = states()[-1]
    newest.write_bytes(newest.read_bytes()[:-500])
    said = trainer.finish(ROW)
    assert f'{newest.name} cannot be read' in said and 'the one before it is used' in said
    assert results() == whole


@pytest.mark.slow
def test_the_log_can_be_read_while_it_grows(trainer):
    trainer.begin(ROW)
    steps, log = [], None
    while not core.model_path('toy').exists():
        try: log = pd.read_csv(log_of('toy'))
        except (Error, FileNotFoundError): continue                # not yet begun, or just moved to its place
        steps.append(len(log))
        assert [*log.step] == [*range(2, 2 * len(log) + 1, 2)]
    assert trainer.end() == 0 and len(set(steps)) > 3, 'it was not seen growing'
    assert {'pixel', 'pixel_weighted', 'adversarial', 'critic', 'rate_net', 'rate_critic', 'gradient_net'} <= {*log}
    whole = pd.read_csv(core.out('log', 'toy.csv'))
    assert {'psnr', 'niqe'} <= {*whole} and list(whole.step[whole.psnr.notna()]) == [20, 40]


# health

def test_a_run_that_explodes_stops(repository):
    "A rate of 1e18 makes nonsense of the first weights; what was good is kept."
    said = (r"training stopped at step \d+: (the term|the gradient of) '\w+' is not finite"
            ".*The last good state is that of step 0")
    with pytest.raises(Error, match=said): learn(row(rate=1e18, critic_rate=1e18, ema=0, warmup=0))
    assert not core.model_path('toy').exists()


def test_the_last_good_state_is_kept(repository):
    update = methods.build(row())
    def batches(start):
        for i in range(start + 1, 99):
            x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(i))
            yield x[..., ::4, ::4], x * (float('inf') if i == 11 else 1)
    with pytest.raises(Error, match="stopped at step 11: the term 'pixel' is not finite.*state is that of step 8"):
        loop.train(update, batches, LearningRow(every=2, save_every=4), 20, 'run')
    state = Checkpoints('run').load()
    assert state['step'] == 8 and all(v.isfinite().all() for net in state['nets'].values() for v in net.values())
    assert list(pd.read_csv('run/log.csv').step) == [2, 4, 6, 8, 10]


class Still(loop.Update):
    "Learns nothing; its critic's loss is what it is told."
    nets, opts = {}, {}
    def __init__(self, critic): self.loss = torch.tensor(critic)
    def __call__(self): return {'critic': self.loss}


@pytest.mark.parametrize('loss, won', [(0.001, True), (0.6, False)])
def test_a_critic_that_has_won_is_reported(tmp_path, loss, won):
    def go(): loop.train(Still(loss), lambda start: iter([()] * 60), LearningRow(every=3), 60, tmp_path)
    if won:
        with pytest.warns(UserWarning, match='step 30: the critic has won'): go()
    else: go()


def test_a_long_run_is_estimated(tmp_path, capsys):
    update = methods.build(row(adversarial=0))
    x = torch.rand(1, 3, 32, 32)
    def batches(start):
        for i in range(15): yield x[..., ::4, ::4], x
    loop.train(update, batches, LearningRow(every=5, name='toy'), 1000, tmp_path)
    assert 's a step, about' in (said := capsys.readouterr().err) and 'minutes to go' in said and 'GB=' in said


# several processes

PLAIN = CRITIC | {'net': 'plain'}                                  # without batch norm
RELATIVISTIC = PLAIN | {'kind': 'relativistic'}
CASES = {
    'without statistics: pixel':     {'adversarial': 0},
    'without statistics: critic':    {'critic': PLAIN},
    'in two parts each':             {'critic': PLAIN, 'accumulate': 2},
    'relativistic mean: local':      {'critic': RELATIVISTIC},
    'relativistic mean: reduced':    {'critic': RELATIVISTIC, 'statistics': 'reduced'},
    'batch norm: local':             {},
    'batch norm: reduced':           {'statistics': 'reduced'},
}

def weights(change: dict) -> torch.Tensor:
    "All weights after 20 steps on the same global batches."
    plain = dict(ema=0, schedule='constant', warmup=0, rate=1e-4, critic_rate=1e-4, adversarial=0.1)
    asked = row(**plain | change)
    update = methods.build(asked)
    if asked.critic.kind == 'relativistic':
        # a shift of all logits cancels: the gradients of some biases are rounding, which Adam would make large
        for opt in update.opts.values(): opt.param_groups[0]['eps'] = 1e-2
        # opinions: the mean of half a batch is another than that of the whole
        update.critic.net.tail[-1].weight.data *= 300
    loop.fit(update, processes.shard(pairs.batches(asked)), 20)
    return torch.cat([p.detach().flatten() for net in update.nets.values() for p in net.parameters()])


def short(name: str): return learn(row(name=name, critic=PLAIN, rate=1e-4, critic_rate=1e-4, steps=8))


def in_each_process():
    processes.join()
    for i, change in enumerate(CASES.values()): torch.save(weights(change), f'case{i}-{processes.world()[0]}.pt')
    short('shared')


@pytest.mark.slow
def test_two_processes_compute_what_one_does(trainer):
    """The same global batch in one process and in two: equal where nothing depends on the whole batch,
    or where its statistics are reduced; local statistics are others."""
    trainer.finish('', 'import test_training; processes.launch(test_training.in_each_process, processes=2)')
    torch.set_num_threads(1)
    for i, (name, change) in enumerate(CASES.items()):
        one, (first, second) = weights(change), (torch.load(f'case{i}-{rank}.pt') for rank in (0, 1))
        assert torch.equal(first, second), name
        off = (one - first).abs().max().item()
        assert off > 1e-5 if 'local' in name else off < 1e-5, f'{name}: {off:.1e}'
    log = core.out('log', 'shared.csv')
    together, table = core.read_state(core.model_path('shared')), pd.read_csv(log)
    alone = short('alone')
    for k, v in core.read_state(core.model_path('alone')).items():
        torch.testing.assert_close(v, together[k], rtol=0, atol=1e-5)
    for term in ('pixel', 'critic', 'gradient_net', 'psnr'):       # the log is the whole batch's
        assert (table[term] - alone[term]).abs().max() < 1e-3 * alone[term].abs().max(), term
    assert not list(Path('out/scratch').iterdir()) and len(list(Path('out/log').iterdir())) == 2


@pytest.mark.slow
def test_a_failure_in_one_process_is_one_sentence(trainer):
    said = trainer.finish(ROW | {'net': 'srresnt'}, 'learn(GeneratorRow.read({}), processes=2)', status=256)
    assert 'srnb.core.Error: one of 2 processes failed: ' in said
    assert "unknown network 'srresnt'" in said.splitlines()[-1]


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(processes, 'world', lambda: (0, 3))
    batch = torch.zeros(4), torch.zeros(4)
    with pytest.raises(Error, match='a batch of 4 cannot be shared evenly by 3 processes'):
        next(processes.shard([batch]))


# what a row says reaches what it is about

def test_low_resolution_is_degraded_where_a_row_says_so(repository):
    "The same originals; the low resolution noisier by what the row asks for, batch for batch the same again."
    asked = GeneratorRow(patch=32, batch=2)
    spoiled = replace(asked, degrade={'noise': [8, 8]})
    (lr, hr), (noisy, same) = (next(methods.RECIPES[GeneratorRow].batches(row)) for row in (asked, spoiled))
    assert torch.equal(hr, same) and 5 < 255 * (noisy - lr).std() < 9
    assert torch.equal(next(methods.RECIPES[GeneratorRow].batches(spoiled))[0], noisy)
    with pytest.raises(Error, match='unknown defect'):
        methods.RECIPES[GeneratorRow].batches(replace(asked, degrade={'rain': [0, 1]}))
    with pytest.raises(Error, match='networks of several scales cannot'):
        methods.RECIPES[EusrRow].batches(EusrRow(patch=32, batch=2, passes=['x4'], degrade={'noise': [8, 8]}))

@pytest.mark.parametrize('kind, more', [
    (GeneratorRow, {}), (EusrRow, {'passes': ['x4']}), (EusrRow, {'scales': [2, 4]})])
@pytest.mark.parametrize('rounded', [True, False])
def test_low_resolution_is_rounded_or_not(repository, kind, more, rounded):
    "R19: a row's `round_lr` reaches the pairs of every kind of row."
    asked = kind(patch=32, batch=2, round_lr=rounded, **more)
    lr, hr = next(methods.RECIPES[kind].batches(asked))
    levels = 255 * lr
    assert (abs(levels - levels.round()).max() < 1e-3) == rounded
    assert abs(255 * hr - (255 * hr).round()).max() < 1e-3
