#!/usr/bin/env bash
# Make a virtual environment with the project and its tools. Needs Python 3.11 or newer; says what is missing.
set -euo pipefail
python=$1 venv=$2
cd "$(dirname "$0")/.."

install_debian() { # names of packages
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing $* (Debian packages)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  else
    echo "setup: missing: $*. Install them (as root: apt-get install $*) and run this again." >&2
    exit 1
  fi
}

command -v "$python" >/dev/null || install_debian python3 python3-venv
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: $("$python" --version) is too old: Swingbus needs Python 3.11 or newer. Try make PYTHON=python3.12" >&2
  exit 1
}
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null || install_debian python3-venv
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi
echo "setup: installing packages (about a minute the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "pip>=25.1"
# Byte code is compiled: without it every agent start would cost 12 MB and half a second more.
env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --compile \
  -c requirements/constraints.txt -e '.[agent,controller,sim]' --group dev
if ! command -v cc >/dev/null && ! "$venv/bin/python" -c 'import ziglang' 2>/dev/null; then
  echo "setup: no C compiler: installing the wheel ziglang for the simulator's NVML stand-in"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ziglang
fi
