#!/usr/bin/env bash
# A scratch Docker engine for the tests, apart from any engine of the user's.
#
#   engine.sh up DIR [swarm|plain|build]   a new engine; its files live in DIR
#       swarm  a swarm of one manager (default)
#       plain  no swarm, and live-restore: containers outlive a stopped dockerd
#       build  no network of its own: for `docker build --network host`, nothing else
#   engine.sh stop DIR     SIGTERM to dockerd, waits until it is gone
#   engine.sh kill DIR     SIGKILL to dockerd, waits until it is gone
#   engine.sh start DIR    dockerd again, after stop or kill; waits until it answers
#   engine.sh down DIR     everything away: processes, mounts, links, cgroups, DIR; no harm if nothing is there
#   engine.sh env DIR      prints SKEP_TEST_DIR, SKEP_TEST_DOCKER (unix://...) and SKEP_TEST_ENGINE (this script)
#   engine.sh enter DIR NETWORK[,NETWORK...] -- COMMAND...
#       becomes COMMAND (same process id) in the network and host name of an anchor container on these networks.
#       So a binary of this machine reaches overlay and bridge addresses, and its host name is a container's id.
#       Files are this machine's: the socket in SKEP_TEST_DOCKER works.
#   engine.sh address DIR NETWORK[,NETWORK...]
#       prints the anchor's address: this machine connects to it, so a test talks to what listens there.
#   engine.sh anchor DIR NETWORK[,NETWORK...]     prints the anchor's container name (it is made if missing)
#
# Images: skep-test:1 (exposes 80), :bare (exposes nothing), :two (exposes 80 and 81), :health (exposes 80, has a
# HEALTHCHECK: `docker exec C touch /tmp/sick` makes it unhealthy, `rm /tmp/sick` healthy).
# Each answers any path in plain text: first line its host name, then the request line and the headers that it got.
# Paths ending in /status/503 answer that status, /delay/2 wait two seconds. Settings by environment: PORT (80),
# LINGER (seconds that it goes on serving after SIGTERM; 0). Requests in flight at SIGTERM are finished.
#
# How: one `unshare` holds process, mount, network and host name namespaces. Its first process is the keeper: when that
# dies the kernel ends every process in there and drops the mounts and links. A veth pair leads from this machine into it.
# Addresses are from 198.18.0.0/15, which is kept for tests of network devices: a block of 16 /24 for each engine.
set -euo pipefail

[ "$(id -u)" = 0 ] || exec sudo --preserve-env "$0" "$@"

self=$(realpath "$0")
fail() { echo "engine.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$self"; }
[ $# -ge 2 ] || { usage; exit 2; }

command=$1 dir=$(realpath -m "$2")
shift 2
name=skep-$(printf %s "$dir" | cksum | cut -d' ' -f1)
docker() { command docker -H "unix://$dir/docker.sock" "$@"; }
keeper() { cat "$dir/keeper" 2>/dev/null || fail "no engine in $dir"; }
inside() { nsenter -t "$(keeper)" --pid --mount --net --uts -- "$@"; }
# The engine's block, from the third byte of its first /24.
block() { echo "198.$((18 + $1 / 16)).$(($1 % 16 * 16 + ${2:-0}))"; }

# The first process of the namespaces: bash, because it reaps whatever orphan it is given.
hold() {
    read -r pid _ </proc/self/stat # /proc is still this machine's, so the id is too
    mount -t proc proc /proc
    # What dockerd and containerd would leave in, or read from, fixed places of this machine.
    for fixed in /etc/docker /run/containerd /run/docker; do
        mkdir -p "$fixed"
        mount -t tmpfs tmpfs "$fixed"
    done
    hostname "$name"
    echo "$pid" >"$dir/keeper.new" && mv "$dir/keeper.new" "$dir/keeper"
    trap 'exit 0' TERM
    while :; do sleep 3600 & wait $! || true; done
}

link() {
    local n
    for n in $(seq 0 31); do
        [ -z "$(ip -4 route show root "$(block "$n").0/20")" ] || continue
        ip link add "skep$n" type veth peer name host0 netns "$(keeper)" 2>/dev/null || continue
        ip address add "$(block "$n").1/24" dev "skep$n"
        ip link set "skep$n" up
        ip route add "$(block "$n").0/20" via "$(block "$n").2"
        inside ip link set lo up
        inside ip link set host0 up
        inside ip address add "$(block "$n").2/24" dev host0
        # Look-ups of registries fail at once instead of after a time-out.
        inside ip route add unreachable default
        # This machine may reach every container; dockerd keeps the chain that it finds.
        inside iptables -N DOCKER-USER
        inside iptables -A DOCKER-USER -i host0 -j ACCEPT
        echo "$n" >"$dir/block"
        return
    done
    fail "all 32 blocks of 198.18.0.0/15 are in use"
}

flags() {
    local mode n driver
    mode=$(cat "$dir/mode") driver=$(cat "$dir/driver")
    printf '%s\n' --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" \
        --pidfile "$dir/dockerd.pid" -H "unix://$dir/docker.sock" --group "${SUDO_GID:-0}" \
        --storage-driver "$driver" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$name"
    if [ "$mode" = build ]; then
        printf '%s\n' --bridge none --iptables=false
    else
        n=$(cat "$dir/block")
        printf '%s\n' --bip "$(block "$n" 1).1/24" --default-address-pool "base=$(block "$n" 8).0/21,size=26"
    fi
    [ "$mode" != plain ] || echo --live-restore
}

# Starts dockerd and waits for its answer; false if it ended or stayed mute.
launch() {
    local arguments
    mapfile -t arguments < <(flags)
    rm -f "$dir/dockerd.pid"
    setsid nsenter -t "$(keeper)" --pid --mount --net --uts -- dockerd "${arguments[@]}" \
        </dev/null >>"$dir/dockerd.log" 2>&1 &
    local waiter=$!
    for _ in $(seq 300); do
        docker version >/dev/null 2>&1 && return
        kill -0 "$waiter" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

signal() {
    local pid
    pid=$(cat "$dir/dockerd.pid")
    inside kill "-$1" "$pid"
    for _ in $(seq 300); do
        inside kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    fail "dockerd $pid did not end within 30 s"
}

images() {
    local root=$dir/root
    mkdir -p "$root"/{bin,tmp,proc,sys,dev,etc}
    chmod 1777 "$root/tmp"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in sh nc sleep usleep head hostname cat ls test touch rm kill pidof wget httpd ip env echo; do
        ln -sf busybox "$root/bin/$applet"
    done
    cat >"$root/bin/serve" <<'SERVE'
#!/bin/sh
trap 'sleep ${LINGER:-0}; kill $listener; while pidof answer >/dev/null; do usleep 20000; done; exit 0' TERM INT
nc -ll -p "${PORT:-80}" -e /bin/answer &
listener=$!
wait
SERVE
    cat >"$root/bin/answer" <<'ANSWER'
#!/bin/sh
read -r method target version || exit 0
status=200 length=0
head=$(hostname)"
$method $target ${version%?}"
while read -r line && line=${line%?} && [ -n "$line" ]; do
    head="$head
$line"
    case $line in [Cc]ontent-[Ll]ength:*) length=${line#*:} ;; esac
done
[ $((length)) = 0 ] || head -c $((length)) >/dev/null
case $target in
*/status/*) status=${target##*/} ;;
*/delay/*) sleep "${target##*/}" ;;
esac
printf 'HTTP/1.1 %s Test\r\nContent-Type: text/plain\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s\n' \
    "$status" $((${#head} + 1)) "$head"
ANSWER
    chmod +x "$root/bin/serve" "$root/bin/answer"
    tar -C "$root" -cf "$dir/root.tar" .
    import() { docker import -c 'CMD ["/bin/serve"]' "${@:2}" "$dir/root.tar" "skep-test:$1" >/dev/null; }
    import 1 -c 'EXPOSE 80'
    import bare
    import two -c 'EXPOSE 80 81'
    import health -c 'EXPOSE 80' \
        -c 'HEALTHCHECK --interval=500ms --timeout=2s --retries=1 CMD ["test", "!", "-e", "/tmp/sick"]'
}

up() {
    local mode=${1:-swarm} namespaces=(--pid --mount --uts)
    [ "$mode" = build ] || namespaces+=(--net)
    down
    mkdir -p "$dir"
    echo "$mode" >"$dir/mode"
    echo overlay2 >"$dir/driver"
    echo '{}' >"$dir/daemon.json"
    setsid unshare --fork --propagation slave "${namespaces[@]}" -- bash "$self" hold "$dir" \
        </dev/null >"$dir/keeper.log" 2>&1 &
    for _ in $(seq 50); do [ -s "$dir/keeper" ] && break; sleep 0.1; done
    [ -s "$dir/keeper" ] || fail "no namespaces: $(cat "$dir/keeper.log")"
    [ "$mode" = build ] || link
    if ! launch; then
        echo vfs >"$dir/driver" # overlay2 wants a file system below that can carry it
        launch || fail "dockerd did not start: $(tail -n 20 "$dir/dockerd.log")"
    fi
    [ "$mode" = build ] || images
    [ "$mode" != swarm ] || docker swarm init --advertise-addr "$(block "$(cat "$dir/block")").2" >/dev/null
}

down() {
    local pid
    if [ -s "$dir/keeper" ]; then
        pid=$(cat "$dir/keeper")
        # An id may have been given away since; the keeper is known by its arguments.
        if grep -qzxF "$dir" "/proc/$pid/cmdline" 2>/dev/null; then
            kill -9 "$pid"
            while [ -d "/proc/$pid" ]; do sleep 0.05; done
        fi
    fi
    [ ! -s "$dir/block" ] || ip link delete "skep$(cat "$dir/block")" 2>/dev/null || true
    find /sys/fs/cgroup -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null || true
    # The keeper is gone, so a directory with its marks holds no foreign mounts.
    [ ! -e "$dir/mode" ] || rm -rf --one-file-system "$dir"
}

anchor() {
    local networks=${1//,/ } anchor=anchor-${1//,/-} network
    if [ "$(docker inspect -f '{{.State.Running}}' "$anchor" 2>/dev/null)" != true ]; then
        docker rm -f "$anchor" >/dev/null 2>&1 || true
        docker create --name "$anchor" --stop-timeout 1 --network "${networks%% *}" skep-test:1 sleep 1000000 >/dev/null
        for network in ${networks#"${networks%% *}"}; do docker network connect "$network" "$anchor"; done
        docker start "$anchor" >/dev/null
    fi
    echo "$anchor"
}

# The anchor's process, as a path below this machine's /proc.
process() { echo "/proc/$(keeper)/root/proc/$(docker inspect -f '{{.State.Pid}}' "$1")"; }

address() {
    local n prefix address
    n=$(cat "$dir/block") prefix=198.$((18 + n / 16))
    address=$(nsenter --net="$(process "$(anchor "$1")")/ns/net" ip -4 -o address |
        sed -n "s/.* inet \(${prefix//./\\.}\.[0-9.]*\)\/.*/\1/p" | head -n 1)
    [ -n "$address" ] || fail "an anchor on $1 has no address that this machine reaches"
    echo "$address"
}

enter() {
    local process
    process=$(process "$(anchor "$1")")
    if [ "${2:-}" != -- ] || [ $# -lt 3 ]; then fail "enter DIR NETWORK[,NETWORK...] -- COMMAND..."; fi
    exec nsenter --net="$process/ns/net" --uts="$process/ns/uts" -- "${@:3}"
}

case $command in
up) up "$@" ;;
stop) signal TERM ;;
kill) signal KILL ;;
start) launch || fail "dockerd did not start: $(tail -n 20 "$dir/dockerd.log")" ;;
down) down ;;
env) printf 'SKEP_TEST_DIR=%s\nSKEP_TEST_DOCKER=unix://%s/docker.sock\nSKEP_TEST_ENGINE=%s\n' "$dir" "$dir" "$self" ;;
enter) enter "$@" ;;
address) address "$1" ;;
anchor) anchor "$1" ;;
hold) hold ;;
*) usage; exit 2 ;;
esac
