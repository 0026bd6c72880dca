# What checks are written with; sourced before each of them.
set -eu
trap 'status=$?; [ $status = 0 ] || explain' EXIT

# What a failed check shows beside its own words.
explain() {
  for log in /tmp/*.log; do
    [ -s "$log" ] || continue
    echo "-- the end of $(basename "$log"):"
    tail -n 15 "$log"
  done
}

# A fact that is shown also when the check passes.
say() { echo "say $*"; }

fail() { echo "FAILED: $*"; exit 1; }

# expect WHAT WANTED FOUND
expect() { [ "$2" = "$3" ] || fail "$1: expected \"$2\", found \"$3\""; }

# contains WHAT TEXT PART
contains() {
  case "$2" in
    *"$3"*) ;;
    *) fail "$1: no \"$3\" in:
$2" ;;
  esac
}

# lacks WHAT TEXT PART
lacks() {
  case "$2" in
    *"$3"*) fail "$1: still \"$3\" in:
$2" ;;
  esac
}

# until_true WHAT COMMAND…: tries for a minute; emulated machines are slow, and a busy host makes them slower.
until_true() {
  what=$1
  shift
  tries=0
  until "$@" >/tmp/until 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || fail "$what: not within a minute; the last try said: $(cat /tmp/until)"
    sleep 0.2
  done
}
