"A sweep that two machines make between them, of one shared remote."
import os
import subprocess

import pytest

from srnb.pipeline import machines

pytestmark = pytest.mark.slow


def sh(command: str, cwd, **more) -> str:
    "What a command prints; its errors, if it fails."
    mine = {'GIT_AUTHOR_NAME': 'a', 'GIT_AUTHOR_EMAIL': 'a@b', 'GIT_COMMITTER_NAME': 'a', 'GIT_COMMITTER_EMAIL': 'a@b'}
    env = os.environ | mine | more
    done = subprocess.run(['bash', '-c', command], cwd=cwd, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def desk(tmp_path):
    "A repository of one stage, its origin, and a remote that every machine reaches."
    here = tmp_path/'desk'
    (here/'data').mkdir(parents=True)
    (here/'data/photo.txt').write_text('a photograph\n')
    (here/'params.yaml').write_text('rank: 0.03\n')
    stage = 'echo made >> $COUNTER && (cat data/photo.txt; grep rank params.yaml) > scores.txt'
    (here/'dvc.yaml').write_text(f"stages:\n  assess:\n    cmd: {stage}\n    deps: [data]\n    params: [rank]\n"
                                 "    outs: [scores.txt]\n")
    sh(f'git init -q --bare {tmp_path}/origin && git init -q && dvc init -q && dvc config core.analytics false '
       f'&& dvc remote add -d store {tmp_path}/store && dvc remote add shared {tmp_path}/shared '
       '&& dvc add -q data && dvc push -q data.dvc && git add . && git commit -qm begin '
       f'&& git remote add origin {tmp_path}/origin && git push -q origin HEAD', here)
    return here


def test_tasks_of_an_array_meet_in_the_shared_remote(desk, tmp_path):
    count = tmp_path/'count'
    commit = sh('git rev-parse HEAD', desk).strip()
    chosen = machines.points(['rank=0.01,0.1'])
    body = machines.task('weights', chosen, ['assess'], str(tmp_path/'origin'), commit, 'shared')
    script = tmp_path/'weights.sh'
    script.write_text(machines.slurm_array('weights', body, 2))
    for number in range(2): sh(f'bash {script}', tmp_path, SLURM_ARRAY_TASK_ID=str(number), COUNTER=str(count))
    assert count.read_text() == 'made\n' * 2
    sh('dvc exp pull -q --run-cache --remote shared origin weights-0 weights-1 && dvc exp apply -q weights-1', desk)
    assert (desk/'scores.txt').read_text() == 'a photograph\nrank: 0.1\n'
    sh('dvc repro -q', desk, COUNTER=str(count))
    assert count.read_text() == 'made\n' * 2                                # nothing is computed again at the desk
    sh(f'git push -q {tmp_path}/origin --delete refs/exps/$(git -C {tmp_path}/origin for-each-ref refs/exps '
       "--format='%(refname)' | head -1 | sed 's#refs/exps/##')", desk)
    sh(f'bash {script}', tmp_path, SLURM_ARRAY_TASK_ID='0', COUNTER=str(count))
    assert count.read_text() == 'made\n' * 2                                # nor by a task that is started again
