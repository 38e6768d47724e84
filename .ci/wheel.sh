# Builds the wheel, installs it where no compiler can be found, and generates with it.
set -eu
: "${PYTHON:=python3}" "${BIN:=.venv/bin}"
cd "$(dirname "$0")/.."
model_home=${HEADRACE_TEST_HOME:-$PWD/.cache/headrace}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$BIN/pip" wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work/dist" .
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$work"/dist/headrace-*.whl
cd "$work"
# PATH holds the new environment alone, and the checkout is out of reach.
answer=$(env -i HOME="$work" PATH="$work/venv/bin" HEADRACE_HOME="$model_home" \
  headrace generate --max-tokens 12 --temperature 0 "Say hello.")
test -n "$answer" || { echo "the installed wheel generated nothing" >&2; exit 1; }
echo "wheel: installed without a compiler, answered: $answer"
