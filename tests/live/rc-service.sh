#!/bin/bash
# Stands in for OpenRC's rc-service: ends whatever runs, starts containerd and returns, as `start-stop-daemon --background` does.
# Each start takes a line of /run/faults, the way in which it fails. /sbin/kind says what another distribution has elsewhere.
name=containerd program=/usr/local/bin/containerd config=/etc/containerd/config.toml options=
render() { :; }
[ -e /sbin/kind ] && . /sbin/kind
[ "$1 $2" = "$name restart" ] || { echo "rc-service: service \`$1' does not exist" >&2; exit 1; }
exec 9>/run/openrc/lock; flock 9
fault=$(head -n 1 /run/faults 2>/dev/null) && sed -i 1d /run/faults
[ "$fault" = ignored ] && { echo "ERROR: $name is busy" >&2; exit 1; }
# Something is done on the node just before the restart.
[ "$fault" = asks ] && { echo >/run/asked; read -r _ </run/answered; }
if pid=$(cat /run/containerd.pid 2>/dev/null) && kill -TERM "$pid" 2>/dev/null; then
    kill -CONT "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.005; done
fi
render
case $fault in
    refuses) echo "ERROR: containerd failed to start" >&2; exit 1;;
    edited) (echo; echo "# of a person") >>$config; exit 1;;
    *without-cri) echo 'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"]' >/run/faulty.toml
        cat $config >>/run/faulty.toml; config=/run/faulty.toml;;
esac
setsid $program ${config:+--config $config} $options </dev/null >>/var/log/containerd.log 2>&1 9>&- &
pid=$!; echo $pid >/run/containerd.pid
case $fault in
    silent) until [ "$(cat /proc/$pid/comm)" = containerd ]; do :; done; kill -STOP $pid;;
    ends) kill -KILL $pid;;
    # As the pod that asked for it.
    dies*) kill -KILL $PPID;;
esac
exit 0
