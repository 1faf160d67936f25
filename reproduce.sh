#!/usr/bin/env bash
# Sets up the locked environment and runs one tier of the reproduction; `bash reproduce.sh --help` lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=${GKP_VENV:-.venv}
python=$venv/bin/python
stamp=$venv/.requirements.lock # a copy of the lock that the environment was installed from
log=.cache/setup.log

usage() {
    cat <<'TEXT'
usage: bash reproduce.sh [smoke|replay|evaluate|train|test] [--suite NAME]

  (no job)   smoke, then replay
  smoke      the whole pipeline live on the embedded digits     <= 8 min on 2 cores
  replay     tables, figures and notebooks from results/        <= 2 min
  evaluate   attack the shipped checkpoints again               <= 60 min
  train      prune and fine-tune again                          hours; a GPU for the big suites
  test       pytest (with any further arguments), then nbval    <= 30 min

  --suite NAME     for replay, evaluate and train (the last two: cifar10-resnet20-short without it)

  GKP_PYTHON       the Python 3.11-3.13 to build the environment with
  GKP_VENV         the folder of the environment, .venv without it
  GKP_DATA         an offline copy of CIFAR-10; without it, evaluate and train download it
  GKP_CHECKPOINTS  an offline copy of the public checkpoints

The first job downloads 3 GB of packages, once; all of it takes 8 GB of disk.
The exit code is the job's, 0 when every claim holds. 2: wrong arguments; 3: no environment; 130: Ctrl-C.
TEXT
}

misuse() {
    printf 'reproduce.sh: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

give_up() {
    printf 'reproduce.sh: %s\n' "$1" >&2
    exit 3
}

# supported PYTHON: prints its path when it runs and is a Python 3.11-3.13.
supported() {
    "$1" -c 'import sys; print(sys.executable) if (3, 11) <= sys.version_info[:2] <= (3, 13) else sys.exit(1)' 2>/dev/null
}

# A GKP_PYTHON that does not work is named even where an environment is there already.
check_python() {
    local found
    [[ -n ${GKP_PYTHON:-} ]] || return 0
    found=$(supported "$GKP_PYTHON") && [[ -x $found ]] ||
        give_up "GKP_PYTHON=$GKP_PYTHON is not a working Python 3.11, 3.12 or 3.13: correct or unset it."
}

# Prints the Python to build with, or else the range: then uv looks further, and downloads one if it must.
choose_python() {
    if [[ -n ${GKP_PYTHON:-} ]]; then
        supported "$GKP_PYTHON"
        return
    fi
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        supported "$candidate" && return
    done
    echo '>=3.11,<3.14'
}

# Sets `uv`. A missing uv goes into .cache/uv, so that a Python that an operating system manages stays as it is.
find_uv() {
    local any=${GKP_PYTHON:-python3}
    for uv in uv .cache/uv/bin/uv; do
        "$uv" --version >>"$log" 2>&1 && return
    done
    echo "Installing uv into .cache/uv"
    { "$any" -m venv .cache/uv && .cache/uv/bin/python -m pip install uv; } >>"$log" 2>&1 && return
    # Debian without python3-venv cannot do that, but its pip may write to a folder of one's own.
    "$any" -m pip install --upgrade --target .cache/uv uv >>"$log" 2>&1 && return
    give_up "no environment in $venv, and uv could not be installed (no network? a Python without pip?); see $log."
}

install() {
    rm -f "$stamp"
    if ! supported "$python" >/dev/null; then
        "$uv" venv --no-project --allow-existing --python "$1" "$venv" || return
    fi
    "$uv" pip sync --python "$python" --require-hashes requirements.lock || return
    # Every torchattacks wheel carries an old copy of robustbench and may have overwritten the real one.
    "$uv" pip install --python "$python" --require-hashes --no-deps --reinstall-package robustbench \
        -r requirements.lock || return
    "$uv" pip install --python "$python" --no-deps --no-build-isolation --editable . || return
    cp requirements.lock "$stamp"
}

set_up() {
    if cmp -s requirements.lock "$stamp" && supported "$python" >/dev/null; then return; fi
    local base
    base=$(choose_python)
    mkdir -p .cache
    : >"$log"
    find_uv
    # uv does not read pip's settings, but a mirror that the environment names for pip is meant for uv too.
    if [[ -n ${PIP_INDEX_URL:-} ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi
    echo "Installing the locked packages into $venv (once; PyTorch is large)"
    install "$base" 2>&1 | while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        if [[ $line == *Downloading*[0-9][0-9][0-9].[0-9]MiB* ]]; then printf '%s\n' "$line"; fi # the slow ones
    done || give_up "no environment in $venv, and installing it failed (no network? full disk?); see $log."
}

# keep COMMAND...: runs it and goes on, so that a verdict is always printed; the first failure is the exit code.
status=0
keep() {
    local code=0
    "$@" || code=$?
    if ((status == 0)); then status=$code; fi
}

gkp() { "$python" -m gkp "$@"; }

smoke() {
    gkp run --suite digits --jobs 2 # without records there is nothing to show: a failure ends the script here
    keep gkp notebooks --suite digits --compute --jobs 2
    keep gkp report --suite digits
}

replay() {
    keep gkp notebooks --jobs 2 ${suite:+--suite "$suite"}
    keep gkp report ${suite:+--suite "$suite"}
}

job='' suite=''
while (($#)) && [[ $job != test ]]; do
    case $1 in
        -h | --help) usage && exit ;;
        --suite)
            [[ ${2:-} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || misuse "--suite needs a name"
            [[ -z $suite ]] || misuse "one suite at a time"
            suite=$2
            shift
            ;;
        smoke | replay | evaluate | train | test) [[ -z $job ]] || misuse "one job at a time"; job=$1 ;;
        *) misuse "unknown argument '$1'" ;;
    esac
    shift
done
if [[ $job == test && -n $suite ]]; then misuse "--suite is for replay, evaluate and train"; fi
if [[ $job == smoke && -n $suite && $suite != digits ]]; then misuse "smoke runs the digits; train runs '$suite'"; fi

trap 'printf "\nStopped; the same command goes on from here.\n" >&2; exit 130' INT
check_python
set_up
export PYTHONPATH=$PWD PYTHONNOUSERSITE=1 JUPYTER_PREFER_ENV_PATH=1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # threads that spin make a busy machine ten times slower
if [[ -n ${PYTHONDONTWRITEBYTECODE:-} ]]; then # every process would compile PyTorch anew, which takes seconds
    unset PYTHONDONTWRITEBYTECODE
    export PYTHONPYCACHEPREFIX=${PYTHONPYCACHEPREFIX:-$PWD/.cache/bytecode}
fi
case $job in
    smoke | replay) "$job" ;;
    '') smoke; replay ;; # and not `smoke && replay`, in which `set -e` would not hold
    evaluate) gkp evaluate --suite "${suite:-cifar10-resnet20-short}" --download ;;
    train)
        suite=${suite:-cifar10-resnet20-short}
        echo "The whole suite, from nothing (what results/ holds is skipped; Ctrl-C loses at most a few epochs):"
        gkp list | awk -v suite="$suite" 'NR <= 2 || $2 == suite'
        gkp run --suite "$suite" --download
        keep gkp report --suite "$suite"
        ;;
    test)
        # Without nbval, for which every process would import Jupyter's formats before conftest.py makes that fast.
        keep "$python" -m pytest -p no:nbval --numprocesses 2 --dist worksteal "$@"
        keep "$python" -m pytest --numprocesses 2 --dist loadfile --nbval --nbval-current-env notebooks
        ;;
esac
exit "$status"
