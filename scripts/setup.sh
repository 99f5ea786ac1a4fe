#!/usr/bin/env bash
# Make or update the virtual environment: setup.sh VENV DISTRIBUTION...
# Environment: PYTHON (an interpreter, may be empty), TORCH (requirement for pip), TORCH_CHOSEN (not empty: use no outer torch).
set -euo pipefail

venv=$1
shift
tools=(pytest pytest-timeout hypothesis transformers xllamacpp gguf sentencepiece tiktoken openai schemathesis playwright markdown-it-py mypy ruff import-linter)
builders=(build hatchling editables)
# Runs in any interpreter: 0 where a torch of the range that zoo-core wants can be imported.
torch_fits='import sys, torch; sys.exit(not (2, 9) <= tuple(map(int, torch.__version__.split(".")[:2])) < (3, 0))'
python_fits='import sys; sys.exit(sys.version_info < (3, 11))'
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        # A name on the PATH may be a shim that cannot run: only running it tells.
        if "$candidate" -c "$python_fits" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or later runs here (tried: ${PYTHON:-python3, python3.11 to python3.14});" \
        "install one (Debian, Ubuntu: apt install python3 python3-venv) or name one: make setup PYTHON=/path/to/python"
}

make_venv() {
    local python=$1 flags=()
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python cannot make virtual environments: apt install python3-venv (or python$(version "$python")-venv)"
    if [[ -z ${TORCH_CHOSEN:-} ]] && "$python" -c "$torch_fits" >/dev/null 2>&1; then
        say "using the torch that $python already has"
        flags=(--system-site-packages)
    fi
    say "making $venv with $python (Python $(version "$python"))"
    # Whatever stops this, no half environment stays.
    trap 'rm -rf "$venv"' EXIT
    "$python" -m venv --clear ${flags[@]+"${flags[@]}"} "$venv"
    trap - EXIT
}

usable() { "$venv/bin/python" -c "$python_fits" >/dev/null 2>&1 && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

if ! usable || { [[ -n ${PYTHON:-} ]] && [[ $(version "$venv/bin/python") != $(version "$PYTHON") ]]; }; then
    python=$(find_python)  # apart, so that its failure ends the script
    make_venv "$python"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# First, so that no other package chooses a torch.
if ! "$venv/bin/python" -c "$torch_fits" >/dev/null 2>&1; then
    say "downloading $TORCH: about 200 MB for a CPU build, about 3 GB where the package index serves a CUDA build"
    pip install -c constraints.txt "$TORCH"
fi
kept=$(mktemp)
trap 'rm -f "$kept"' EXIT
pip freeze | grep -i '^torch==' >"$kept" || true

say "installing zoo and the test tools: about 120 MB to download the first time"
pip install --quiet -c constraints.txt "${builders[@]}"
editable=()
for distribution in "$@"; do editable+=(-e "./$distribution"); done
pip install --quiet -c constraints.txt -c "$kept" --no-build-isolation "${editable[@]}" "${tools[@]}"
say "done: $venv"
