"What a cluster is asked for, and how many threads a job there takes: with stand-ins for SLURM's commands."

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gan_covid import notebooks

SLURM = notebooks.ROOT / 'workflow' / 'profiles' / 'slurm'

# sbatch keeps what it is asked for, and runs the job at once; srun gives a step its processors, as SLURM's
STAND_INS = {
    'sbatch': """#!/bin/sh
printf '%s\\n' "$*" >> "$STANDIN/sbatch"
n=$(wc -l < "$STANDIN/sbatch")
[ "$STANDIN_RUNS" ] && sh >> "$STANDIN/log" 2>&1
echo "$n|COMPLETED" >> "$STANDIN/jobs"
echo "$n"
""",
    'srun': """#!/bin/sh
for a; do case $a in --cpus-per-task=*) export SLURM_CPUS_PER_TASK=${a#*=};; esac; done
exec sh -s
""",
    'squeue': '#!/bin/sh\ncat "$STANDIN/jobs"\n',
    'sacct': '#!/bin/sh\ncat "$STANDIN/jobs"\n',
    'sinfo': '#!/bin/sh\necho PARTITION\necho "all*"\n',
    'scontrol': '#!/bin/sh\necho "MinJobAge = 3600 sec"\n',
    'sacctmgr': '#!/bin/sh\n',
    'sshare': '#!/bin/sh\n',
    'scancel': '#!/bin/sh\n',
}

# stands for `gan-covid run NOTEBOOK LOG --json VALUES`: keeps arguments and threads, leaves the record
GAN_COVID = f"""#!{sys.executable}
import json, os, pathlib, sys
notebook, values = pathlib.Path(sys.argv[2]), json.loads(sys.argv[5])
with open(os.environ['STANDIN'] + '/calls', 'a') as f:
    f.write(json.dumps([notebook.stem, values, os.environ.get('OMP_NUM_THREADS')]) + chr(10))
base = pathlib.Path(values['work'])/values['profile']/values['paper']
record = base/notebook.stem/values.get('name', values['dataset'])/'record.json'
record.parent.mkdir(parents=True, exist_ok=True)
record.write_text('{{}}')
"""

PROFILE = {
    'data': 'phantom',
    'papers': {
        'head_ct': {
            'dataset': 'head_ct',
            'labels': ['hemorrhage', 'normal'],
            'arms': ['original', 'original+generated'],
            'gans': {
                'dcgan': {'labels': ['normal']},
                'style': {'model': 'stylegan2', 'labels': ['normal']},
            },
        }
    },
}


def _programs(folder, **scripts):
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    "Run Snakemake as `gan-covid reproduce --slurm` does, on a head node with 32 processors."
    bin_ = _programs(tmp_path / 'bin', **STAND_INS, **{'gan-covid': GAN_COVID})
    monkeypatch.setenv(
        'PATH', f'{bin_}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    )
    monkeypatch.setenv('STANDIN', str(tmp_path))
    monkeypatch.delenv('SLURM_CPUS_PER_TASK', raising=False)
    (tmp_path / 'jobs').touch()
    (tmp_path / 'p.yaml').write_text(json.dumps(PROFILE))
    work = tmp_path / 'work'
    record = work / 'p' / 'head_ct' / 'prepare' / 'head_ct' / 'record.json'
    record.parent.mkdir(parents=True)
    record.write_text('{}')
    config = {
        'profile': str(tmp_path / 'p.yaml'),
        'papers': ['head_ct'],
        'data': '',
        'work': str(work),
    }
    (tmp_path / 'config.json').write_text(json.dumps(config))

    def run(*extra, runs=False):
        monkeypatch.setenv('STANDIN_RUNS', '1' if runs else '')
        command = [
            sys.executable,
            '-m',
            'snakemake',
            '--snakefile',
            str(notebooks.ROOT / 'workflow' / 'Snakefile'),
            '--directory',
            str(work),
            '--cores',
            '32',
            '--nolock',
            '--configfile',
            str(tmp_path / 'config.json'),
            '--workflow-profile',
            str(SLURM),
            '--slurm-init-seconds-before-status-checks',
            '1',
            '--seconds-between-status-checks',
            '1',
            '--latency-wait',
            '1',
            '--keep-going',
            '--quiet',
            'rules',
            *extra,
        ]
        done = subprocess.run(command, cwd=notebooks.ROOT, capture_output=True, text=True)
        asked = (
            (tmp_path / 'sbatch').read_text().splitlines() if (tmp_path / 'sbatch').exists() else []
        )
        called = (
            (tmp_path / 'calls').read_text().splitlines() if (tmp_path / 'calls').exists() else []
        )
        log = (tmp_path / 'log').read_text() if (tmp_path / 'log').exists() else ''
        return done.returncode, asked, [json.loads(c) for c in called], done.stderr + log

    return run


def _asked(line, option):
    "The value of an option in a line of arguments, or None."
    found = re.search(rf'--{option}[= ](\S+)', line)
    return found[1] if found else None


def _of_rule(asked, rule):
    return next(a for a in asked if rule in _asked(a, 'comment'))


def test_a_training_asks_for_a_gpu_and_takes_the_threads_that_its_job_was_given(cluster):
    code, asked, called, log = cluster(
        '--until', 'train_stylegan2', '--config', 'cpus=1', 'gres=gpu:a100:2', runs=True
    )
    assert code == 0, log
    assert [_asked(a, 'gres') for a in asked] == ['gpu:a100:2'] and [
        _asked(a, 'cpus-per-task') for a in asked
    ] == ['1']
    assert [(c[0], c[2]) for c in called] == [
        ('train_stylegan2', '1')
    ]  # and not half of the head node's 32


def test_what_is_asked_for_follows_from_the_rules(cluster):
    _, asked, _, log = cluster(
        '--forcerun', 'prepare', '--until', 'prepare', 'train_dcgan', 'train_stylegan2'
    )
    of_prepare = _of_rule(asked, 'prepare')
    assert _asked(of_prepare, 'gres') is None and _asked(of_prepare, 'cpus-per-task') == '4', log


def test_a_cluster_without_gpus_is_not_asked_for_one(cluster):
    _, asked, _, log = cluster('--until', 'train_dcgan', 'train_stylegan2', '--config', 'gres=')
    assert len(asked) == 2, log
    assert all(_asked(a, 'gres') is None and _asked(a, 'cpus-per-task') == '4' for a in asked)
