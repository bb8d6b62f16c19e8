#!/bin/bash
# A Slurm cluster of one node on the loopback address, for tests: cluster.sh start DIR | stop DIR
#
# Needs root and Debian's slurm-wlm and munge (installed here if they are missing). All its files lie in DIR, and
# SLURM_CONF=DIR/slurm.conf makes Slurm's commands speak to it. Where it cannot start, it says why and exits with 3.
set -u
action=${1:?start or stop}
dir=$(realpath -m "${2:?a folder}")

why() { echo "slurm test cluster: $*" >&2; exit 3; }

stop() {
  for daemon in slurmd slurmctld munged; do
    file=$dir/$daemon.pid
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    # Only what was started here: a reused pid is another program.
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ]; then
      kill "$pid"
      for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
      kill -9 "$pid" 2>/dev/null
    fi
    rm -f "$file"
  done
  return 0
}

install() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return
  command -v apt-get >/dev/null || why "slurmctld and munged are not installed, and there is no apt-get to install them"
  [ "$(id -u)" = 0 ] || why "slurmctld and munged are not installed, and installing them needs root"
  echo "slurm test cluster: installing slurm-wlm and munge ..." >&2
  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends slurm-wlm munge; } \
    >"$dir/apt.log" 2>&1 || why "apt-get could not install slurm-wlm and munge: $(tail -n 1 "$dir/apt.log")"
}

port() {  # a free port
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# A requeued job starts once its credential has expired, hence the short cred_expire.
start() {
  [ "$(uname)" = Linux ] || why "it needs Linux"
  mkdir -p "$dir" || why "cannot make $dir"
  install
  [ "$(id -u)" = 0 ] || why "slurmd needs root to start jobs"
  mkdir -p "$dir/state" "$dir/spool"
  dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 2>/dev/null
  chmod 600 "$dir/munge.key"
  # munge and slurm refuse folders that others can write to.
  chmod 755 "$dir"
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" >"$dir/munged.out" 2>&1 \
    || why "munged did not start: $(tail -n 2 "$dir/munged.out" "$dir/munged.log" 2>/dev/null | tr '\n' ' ')"
  local host cores
  host=$(hostname -s)
  cores=$(nproc)
  cat >"$dir/slurm.conf" <<CONF
ClusterName=mscale
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
MinJobAge=2
KillWait=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -c >"$dir/slurmctld.out" 2>&1 \
    || { local said; said=$(tail -n 2 "$dir/slurmctld.out" "$dir/slurmctld.log" 2>/dev/null | tr '\n' ' '); stop; why "slurmctld did not start: $said"; }
  slurmd -c >"$dir/slurmd.out" 2>&1 \
    || { local said; said=$(tail -n 2 "$dir/slurmd.out" "$dir/slurmd.log" 2>/dev/null | tr '\n' ' '); stop; why "slurmd did not start: $said"; }
  for _ in $(seq 100); do
    [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && { echo "$dir/slurm.conf"; return; }
    sleep 0.2
  done
  local found
  found=$(sinfo -h -o '%T %E' 2>&1)
  stop
  why "the node did not become idle ($found): $(tail -n 2 "$dir/slurmd.log" 2>/dev/null | tr '\n' ' ')"
}

case $action in
  start) start ;;
  stop) stop ;;
  *) echo "usage: cluster.sh start DIR | stop DIR" >&2; exit 2 ;;
esac
