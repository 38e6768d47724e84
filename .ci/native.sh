#!/bin/sh
# The core's own tests: on the objects that the package is made of, under sanitizers, and on emulated
# processors that lack newer instructions; and a look at the objects, that none of those can leak.
#
# The three builds go on side by side, and each one's tests while the others are built.
set -eu
cd "$(dirname "$0")/.."
root=build/native-tests
PATH="$PWD/.venv/bin:$PATH"
export PATH
plain=build/$(python -c 'import sys; print(sys.implementation.cache_tag)')
mkdir -p "$root"

fail() { echo "native-test: $1" >&2; exit 1; }

# build NAME FOLDER: the test binary of a folder that is configured.
build() {
  cmake --build "$2" --target headrace_tests >>"$root/$1.log" 2>&1 ||
    { cat "$root/$1.log"; fail "the $1 build failed"; }
}

# configure NAME FLAGS
configure() {
  cmake -S . -B "$root/$1" -G Ninja -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_FLAGS=$2" \
    -DHEADRACE_OPTIMIZATION=-O0 >"$root/$1.log" 2>&1 ||
    { cat "$root/$1.log"; fail "$1 cannot be configured"; }
}

# report NAME OUTPUT STATUS: says what ran; all of it when a test failed.
report() {
  [ "$3" = 0 ] || { cat "$2"; fail "$1: a test failed"; }
  echo "native-test: $1: $(sed -n 1p "$2" | sed 's/.*; instruction/instruction/'); $(tail -n 1 "$2")"
}

# run NAME COMMAND...
run() {
  name=$1; shift
  status=0
  "$@" >"$root/$name.out" 2>&1 || status=$?
  report "$name" "$root/$name.out" "$status"
}

objects=$plain/native/CMakeFiles/headrace_core.dir

# Anything else that a per-processor file exports, inline functions above all, could be merged with
# the baseline's copy and bring its instructions along.
check_exports() {
  exported=$(nm --defined-only --extern-only --format=posix "$objects/isa_$1.cpp.o" | cut -d' ' -f1)
  [ "$exported" = "$2" ] || fail "isa_$1.cpp must export its table alone, not: $exported"
}

# check_instructions PATTERN OBJECT...: no instruction whose text matches.
check_instructions() {
  pattern=$1; shift
  for object in "$@"; do
    found=$(objdump -d --no-show-raw-insn "$object" | grep -E -m 3 "$pattern" || true)
    [ -z "$found" ] || fail "$(basename "$object") holds newer instructions:
$found"
  done
}

check_objects() {
  command -v nm >/dev/null && command -v objdump >/dev/null || fail "needs nm and objdump (binutils)"
  check_exports portable _ZN8headrace16kPortableKernelsE
  check_exports avx2 _ZN8headrace12kAvx2KernelsE
  check_exports avx512 _ZN8headrace14kAvx512KernelsE
  # Where the compiler knows AMX.
  [ ! -f "$objects/isa_amx.cpp.o" ] || check_exports amx _ZN8headrace9kAmxGemmsE
  tab=$(printf '\t')
  baseline=$(find "$objects" -name '*.o' ! -name 'isa_a[mv]*')
  # shellcheck disable=SC2086
  check_instructions "$tab(v[a-z0-9]+ .*%[xyz]mm|[a-z0-9]+ .*%(ymm|zmm|k[0-7]))" $baseline
  check_instructions "%(zmm|k[0-7]|[xy]mm(1[6-9]|[23][0-9]))" "$objects/isa_avx2.cpp.o"
  echo "native-test: objects: each table alone is exported, no newer instruction outside its file"
}

# emulate CPU EXPECTED-ISA: what the emulator cannot do is switched off, as it warns of each.
emulate() {
  run "emulated-$2" qemu-x86_64 -cpu "$1" "$plain/native/tests/headrace_tests" --quick \
    --expect-isa "$2"
}

emulate_all() {
  if ! command -v qemu-x86_64 >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user >/dev/null
  fi
  if ! command -v qemu-x86_64 >/dev/null; then
    [ -z "${CI:-}" ] || fail "needs qemu-x86_64 (Debian: qemu-user)"
    echo "native-test: no qemu-x86_64 here (Debian: qemu-user): older processors are not tested"
    return
  fi
  emulate qemu64 portable
  emulate Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm avx2
}

test_plain() {
  : >"$root/plain.log"
  build plain "$plain"
  run plain "$plain/native/tests/headrace_tests"
  if [ "$(uname -m)" = x86_64 ] && [ "$(uname -s)" = Linux ]; then
    check_objects
    emulate_all
  fi
}

test_asan() {
  configure asan "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -g1"
  build asan "$root/asan"
  run asan "$root/asan/native/tests/headrace_tests" --quick
}

test_tsan() {
  configure tsan "-fsanitize=thread -g1"
  build tsan "$root/tsan"
  # Older sanitizer runtimes cannot live with much address randomization.
  fixed="setarch $(uname -m) -R"
  $fixed true 2>/dev/null || fixed=""
  TSAN_OPTIONS=halt_on_error=1 run tsan $fixed "$root/tsan/native/tests/headrace_tests" --quick
}

[ -f "$plain/CMakeCache.txt" ] || fail "$plain holds no build of the package; run: make setup"
echo "native-test: building the tests, plain and under sanitizers"
test_asan & asan=$!
test_tsan & tsan=$!
test_plain & plainly=$!
status=0
for each in $plainly $asan $tsan; do
  wait "$each" || status=1
done
exit "$status"
