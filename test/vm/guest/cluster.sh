# A cluster of one node in the check's namespaces, as `svcnet server` makes it on a box, and a host outside of it.
# A check that needs it says `. /vm/cluster.sh`, and `# programs: kubectl` with what else it wants.

export KUBECONFIG=/etc/svcnet/kubeconfig.yaml
NODE=172.30.0.11
NODE6=fd00:30::11
CLIENT=172.30.0.100
CLIENT6=fd00:30::100

# The link to the outside, and a host there: the network namespace `client`.
outside() {
  ip netns add client
  ip link add eth0 type veth peer name eth0 netns client
  ip address add $NODE/24 dev eth0
  ip address add $NODE6/64 dev eth0 nodad
  ip link set eth0 up
  ip -n client address add $CLIENT/24 dev eth0
  ip -n client address add $CLIENT6/64 dev eth0 nodad
  ip -n client link set lo up
  ip -n client link set eth0 up
}

# server ARGUMENTS…: starts it, and returns when it is ready.
server() {
  rm -f /tmp/server.out
  # Its greeting comes when all its parts are ready.
  svcnet server --node-name box --node-ip $NODE "$@" >/tmp/server.out 2>>/tmp/server.log &
  SERVER=$!
  until_true "svcnet server is ready" greeted
}

greeted() {
  kill -0 $SERVER && grep "cluster is ready" /tmp/server.out
}

# pod NAME LABEL…: a pod that answers on port 80, over TCP and UDP, with its name; `answered` waits for it.
pod() {
  name=$1
  labels=""
  shift
  for label in "$@"; do labels="$labels --label $label"; done
  # shellcheck disable=SC2086 # a list of words
  svcnet pod run "$name" --node-name box --node-ip $NODE --container-port 80 --container-port 80/udp $labels 2>"/tmp/$name.log" &
}

# Not validated: kubectl would fetch the schemas of all kinds first, which takes it seconds here.
apply() { kubectl apply --validate=false -f - >/dev/null; }

# configure LINE…: the ConfigMap that kube-proxy's configuration stands in.
configure() {
  {
    printf '%s\n' "apiVersion: v1" "kind: ConfigMap" "metadata: {name: kube-proxy, namespace: kube-system}" "data:" "  config.conf: |"
    printf '    %s\n' "apiVersion: kubeproxy.config.k8s.io/v1alpha1" "kind: KubeProxyConfiguration" "$@"
  } | apply
}

# at NETNS COMMAND…: runs it there; `here` is this namespace, a pod's is pod-default-NAME.
at() {
  netns=$1
  shift
  [ "$netns" = here ] || set -- ip netns exec "$netns" "$@"
  "$@"
}

# ask NETNS ADDRESS PORT [WORD]: what is answered to a word over TCP. `hostname`: the pod's name; `clientip`: who asked.
ask() { printf '%s\n' "${4:-hostname}" | at "$1" timeout 5 nc "$2" "$3"; }

# answered NETNS ADDRESS PORT NAME…: waits until each of the names has answered from there.
answered() {
  from=$1 address=$2 port=$3
  shift 3
  for wanted in "$@"; do until_true "$wanted answers $from at $address:$port" answers "$wanted" "$from" "$address" "$port"; done
}

answers() {
  answer=$(ask "$2" "$3" "$4") || return 1
  echo "$answer"
  [ "$answer" = "$1" ]
}
