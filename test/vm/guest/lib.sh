# What checks are written with; sourced before each of them.
set -eu

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

# until_true WHAT COMMAND…: tries for a minute and more; emulated machines are slow, and a busy host makes them slower.
until_true() {
  echo "$1" >/tmp/waiting
  shift
  tries=0
  until "$@" >/tmp/until 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || exit 1
    sleep 0.2
  done
  rm /tmp/waiting
}
