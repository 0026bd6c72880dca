#!/bin/sh
# Installs svcnet from this checkout.
#
#   ./install.sh lab       build and install it, bring up a 3-node lab, show it working
#   ./install.sh server    … and start `svcnet server` on this host
#   ./install.sh agent     … and start `svcnet agent`: SVCNET_SERVER and SVCNET_TOKEN say which cluster to join
#
# Run again, it does nothing twice. What it needs and can get from Debian it installs itself.
set -eu
cd "$(dirname "$0")"

bin=/usr/local/bin/svcnet
etc=/etc/svcnet
target=${CARGO_TARGET_DIR:-target}

say() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit "$1"
}

# need PROGRAM PACKAGE WHY: installs the package if the program is not there.
need() {
  if have "$1"; then return 0; fi
  if ! have apt-get; then
    fail "$1 is missing ($3): please install it; its Debian package is called $2"
  fi
  say "installing the Debian package $2 ($3)"
  if [ -z "${updated:-}" ]; then
    apt-get update -qq || fail "apt-get update failed: please install $2 by hand"
    updated=1
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null ||
    fail "the package $2 can not be installed: please install $1 by hand ($3)"
}

# The newest release binary that was built, if there is one.
built() {
  for candidate in "$target/x86_64-unknown-linux-gnu/release/svcnet" \
    "$target/aarch64-unknown-linux-gnu/release/svcnet" "$target/release/svcnet"; do
    if [ -x "$candidate" ]; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  return 1
}

# Whether a source is newer than the binary: then another build is due.
stale() {
  [ -n "$(find Cargo.toml Cargo.lock cmd pkg -newer "$1" \( -name '*.rs' -o -name 'Cargo.*' \) -print -quit 2>/dev/null)" ]
}

build() {
  if binary=$(built) && { ! have cargo || ! stale "$binary"; }; then
    return 0
  fi
  have cargo || fail "no cargo on the PATH: install Rust 1.90 or later first"
  need cc gcc "to build"
  say "building svcnet (a release build takes some minutes the first time)"
  cargo build --release --locked -p svcnet
  binary=$(built) || fail "the build left no binary under $target"
}

install_binary() {
  build
  if [ -x "$bin" ] && cmp -s "$binary" "$bin"; then
    say "$bin is up to date"
  else
    say "installing $bin"
    # Renamed into place: a running svcnet keeps the file that it was started from.
    install -m 0755 "$binary" "$bin.new"
    mv -f "$bin.new" "$bin"
  fi
  "$bin" version
}

# run COMMAND…: shows a command as one would type it, and runs it.
run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

# ask MEMBER URL: what a URL answers to a member of the lab, tried again while rules are on their way.
ask() {
  tries=0
  while :; do
    if answer=$("$bin" lab exec "$1" -- curl -sS --noproxy '*' --max-time 2 "$2" 2>&1); then
      printf '%s\n' "$answer"
      return 0
    fi
    tries=$((tries + 1))
    [ "$tries" -lt 50 ] || fail "$2 does not answer $1: $answer"
    sleep 0.1
  done
}

# both MEMBER URL: asks until both pods have answered.
both() {
  seen=""
  count=0
  while [ "$count" -lt 200 ]; do
    answer=$(ask "$1" "$2")
    case " $seen " in
    *" $answer "*) ;;
    *) seen="$seen $answer" ;;
    esac
    case "$seen" in
    *web1*web2* | *web2*web1*)
      printf '  from %-7s %-46s answered by%s\n' "$1" "$2" "$seen"
      return 0
      ;;
    esac
    count=$((count + 1))
  done
  fail "$2 is not answered by both pods from $1, but only by:$seen"
}

kubectl_in_lab() { "$bin" lab exec n1 -- kubectl "$@"; }

# field OBJECT JSONPATH: waits until a field of an object has a value.
field() {
  tries=0
  while :; do
    value=$(kubectl_in_lab get "$1" -o "jsonpath=$2" 2>/dev/null) || value=""
    if [ -n "$value" ]; then
      printf '%s\n' "$value"
      return 0
    fi
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || fail "$1 has no $2"
    sleep 0.1
  done
}

has_pod() { "$bin" lab list | grep -Eq "^lab +$1 +pod .* ready "; }

manifest() {
  cat <<'YAML'
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: lab, namespace: metallb-system}
spec: {addresses: [172.30.0.200-172.30.0.220]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: lab, namespace: metallb-system}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80}]
YAML
}

lab() {
  need kubectl kubernetes-client "to talk to the cluster's API"
  need curl curl "to try the Services"
  install_binary
  "$bin" check --quiet
  say "bringing up a lab of three nodes"
  "$bin" lab up >/dev/null
  run "$bin" lab list
  say "two pods on two nodes behind one Service"
  for pod in 1 2; do
    has_pod "web$pod" || run "$bin" lab pod run "web$pod" --node "n$((pod + 1))" --label app=web --container-port 80
  done
  kubectl_in_lab get namespace metallb-system >/dev/null 2>&1 || run kubectl_in_lab create namespace metallb-system
  manifest=$(mktemp)
  trap 'rm -f "$manifest"' EXIT
  manifest >"$manifest"
  kubectl_in_lab apply -f "$manifest"
  cluster=$(field svc/web '{.spec.clusterIP}')
  nodeport=$(field svc/web '{.spec.ports[0].nodePort}')
  balancer=$(field svc/web '{.status.loadBalancer.ingress[0].ip}')
  kubectl_in_lab get svc,pods -o wide
  say "what was proved"
  both web1 "http://$cluster"
  both web1 http://web.default.svc.cluster.local
  both client "http://172.30.0.11:$nodeport"
  both client "http://$balancer"
  cat <<TEXT

The lab stays up. Play on with:
  svcnet lab exec n1 -- kubectl get svc,pods,nodes -o wide
  svcnet lab exec client -- curl -s http://$balancer
  svcnet lab node stop n2 --signal KILL     # and ask again: web2 answers; \`svcnet lab node start n2\` brings n2 back
  svcnet lab down
TEXT
}

# service ROLE: a unit of systemd or OpenRC that starts the role, or how to start it by hand.
service() {
  role=$1
  name="svcnet-$role"
  mkdir -p "$etc"
  if [ -d /run/systemd/system ]; then
    unit=/etc/systemd/system/$name.service
    cat >"$unit.new" <<UNIT
[Unit]
Description=svcnet $role
Documentation=$bin $role --help
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=$bin $role
Restart=always
RestartSec=1
LimitNOFILE=1048576
# What it programmed stays in the kernel when it stops.
KillMode=process

[Install]
WantedBy=multi-user.target
UNIT
    if ! cmp -s "$unit.new" "$unit"; then mv -f "$unit.new" "$unit"; else rm -f "$unit.new"; fi
    systemctl daemon-reload
    systemctl enable --now "$name"
    say "$name runs; \`journalctl -u $name\` shows its log"
  elif have rc-service && [ -d /etc/init.d ]; then
    cat >"/etc/init.d/$name" <<UNIT
#!/sbin/openrc-run
description="svcnet $role"
supervisor=supervise-daemon
command=$bin
command_args=$role
output_log=/var/log/$name.log
error_log=/var/log/$name.log
depend() {
  need net
}
UNIT
    chmod 0755 "/etc/init.d/$name"
    rc-update add "$name" default >/dev/null
    rc-service "$name" start
    say "$name runs; its log is /var/log/$name.log"
  else
    say "there is neither systemd nor OpenRC here. Start it by hand:"
    printf '  %s %s\n' "$bin" "$role"
  fi
}

# set_key KEY VALUE: into the configuration file, unless the key is there.
set_key() {
  file=$etc/config.yaml
  mkdir -p "$etc"
  if [ -f "$file" ] && grep -q "^$1:" "$file"; then return 0; fi
  umask 077
  printf '%s: "%s"\n' "$1" "$2" >>"$file"
}

# runtimes: where containerd, CRI-O and podman look for their network.
runtimes() {
  set_key cni-conf-dir /etc/cni/net.d
  set_key cni-bin-dir /opt/cni/bin
}

server() {
  install_binary
  "$bin" check --quiet
  runtimes
  service server
  cat <<TEXT

Once it is ready:
  export KUBECONFIG=$etc/kubeconfig.yaml
  kubectl get nodes,svc -o wide
  cat /var/lib/svcnet/token      # what other nodes join with: ./install.sh agent
TEXT
}

agent() {
  install_binary
  "$bin" check --quiet
  runtimes
  if [ -n "${SVCNET_SERVER:-}" ]; then set_key server "$SVCNET_SERVER"; fi
  if [ -n "${SVCNET_TOKEN:-}" ]; then set_key token "$SVCNET_TOKEN"; fi
  if [ ! -f /var/lib/svcnet/agent/kubeconfig.yaml ] && ! grep -qs '^server:' "$etc/config.yaml"; then
    fail "which cluster? SVCNET_SERVER=https://BOX:6443 SVCNET_TOKEN=… ./install.sh agent
  (on the server: cat /var/lib/svcnet/token)"
  fi
  service agent
}

case "${1:-}" in
lab | server | agent)
  [ "$(uname -s)" = Linux ] || fail "svcnet runs on Linux"
  [ "$(id -u)" = 0 ] || fail "run it as root: it installs $bin and makes network namespaces"
  "$1"
  ;;
-h | --help) usage 0 ;;
*) usage 2 ;;
esac
