# One clear sentence for what is missing before set-up starts.
python=$1
fail() { echo "headrace set-up: $1" >&2; exit 1; }
command -v "$python" >/dev/null 2>&1 || fail "no '$python' on this machine; install Python 3.11 or newer, or name one with PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" --version) is too old; headrace needs Python 3.11 or newer (name one with PYTHON=...)."
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "this Python has no venv module; install it (Debian and Ubuntu: apt-get install python3-venv)."
for cxx in ${CXX:-c++} g++ clang++; do command -v "$cxx" >/dev/null 2>&1 && exit 0; done
fail "no C++ compiler found; install one (Debian and Ubuntu: apt-get install g++) or use the wheel: pip install headrace."
