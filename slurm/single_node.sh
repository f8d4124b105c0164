#!/usr/bin/env bash
# Starts a real SLURM on this machine: one node, loopback interface only, all files in one folder. It runs as root or as any user, without systemd.
#
#   eval "$(slurm/single_node.sh start)"     start it, and make this shell use it (SLURM_CONF, PATH)
#   slurm/single_node.sh env                 the same exports for another shell
#   slurm/single_node.sh status              nodes and jobs
#   slurm/single_node.sh pause | resume      stop or start only the controller, to simulate a failure
#   slurm/single_node.sh stop [--clean]      stop it; with --clean, remove its folder
#
# Options of start:
#   --folder DIR       the folder of all files; a short path, because sockets lie in it [${KDBENCH_SLURM:-/tmp/kdbench-slurm}]
#   --port N           the first of three ports [16820]
#   --cpus N           CPUs of the simulated node [as many as there are]
#   --threads N        threads of each core; CPUs are granted in multiples of this [1]
#   --whole-nodes      the partition main grants whole nodes only (OverSubscribe=EXCLUSIVE)
#   --gpus N           GPUs of the simulated node: jobs can request them, but they do not exist [2]
#   --memory-mb N      memory of the node [that of the machine]; a job that uses more than it requested is killed
#   --grace-s N        seconds that a preempted job of main may still run [0]
#   --accounting KIND  none (sacct does not work, as on many clusters) or slurmdbd (needs slurmdbd and mariadb-server) [none]
#   --set KEY=VALUE    a line of slurm.conf; may be given several times
#
# Partitions: `main`, and `urgent`, whose jobs preempt those of main (requeue, with SLURM's default signals).
# Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge   (for slurmdbd: slurmdbd mariadb-server)
set -euo pipefail

verb=${1:-help}
shift || true
folder=${KDBENCH_SLURM:-/tmp/kdbench-slurm} port=16820 cpus=$(nproc) gpus=2 grace_s=0 accounting=none clean=no threads=1 whole=
memory_mb=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024))
sets=()
while (($#)); do
  case $1 in
    --folder) folder=$2; shift 2 ;;
    --port) port=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --threads) threads=$2; shift 2 ;;
    --whole-nodes) whole=OverSubscribe=EXCLUSIVE; shift ;;
    --gpus) gpus=$2; shift 2 ;;
    --grace-s) grace_s=$2; shift 2 ;;
    --memory-mb) memory_mb=$2; shift 2 ;;
    --accounting) accounting=$2; shift 2 ;;
    --set) sets+=("$2"); shift 2 ;;
    --clean) clean=yes; shift ;;
    *) echo "single_node.sh: '$1' is not an option; see the head of this file" >&2; exit 2 ;;
  esac
done
# Named localhost, SLURM binds to it, whatever the machine's own name resolves to.
host=localhost
me=$(id -un)
export PATH=/usr/sbin:/sbin:$PATH SLURM_CONF=$folder/slurm.conf

need() {
  for tool in "$@"; do
    command -v "$tool" > /dev/null || { echo "single_node.sh: there is no $tool here; see the head of the file for what to install" >&2; exit 3; }
  done
}

configure() {
  mkdir -p "$folder"/{state,spool,log,munge,devices}
  chmod 755 "$folder" "$folder"/{spool,log}
  chmod 711 "$folder/munge"
  [ -s "$folder/munge/key" ] || (umask 077; head -c 256 /dev/urandom > "$folder/munge/key")
  : > "$folder/gres.conf"
  local gres=""
  for ((i = 0; i < gpus; i++)); do
    : > "$folder/devices/gpu$i"
    echo "NodeName=$host Name=gpu File=$folder/devices/gpu$i" >> "$folder/gres.conf"
  done
  ((gpus)) && gres="Gres=gpu:$gpus"
  # Without systemd and cgroups nothing but polling can limit memory; later SLURMs look for cgroups unless this is switched off.
  case $(slurmctld -V | awk '{print $2}') in 22.*) ;; 23.*) echo IgnoreSystemd=yes > "$folder/cgroup.conf" ;; *) echo CgroupPlugin=disabled > "$folder/cgroup.conf" ;; esac
  declare -A conf=(
    [ClusterName]=single [SlurmctldHost]="$host(127.0.0.1)" [SlurmctldPort]=$port [SlurmdPort]=$((port + 1))
    [CommunicationParameters]=NoCtldInAddrAny,NoInAddrAny
    [SlurmUser]=$me [SlurmdUser]=$me
    [AuthType]=auth/munge [CredType]=cred/munge
    # A requeued job may not start again before its credential expires: 120 s by default, and 5 is the smallest value that has an effect.
    [AuthInfo]="socket=$folder/munge/socket,cred_expire=5"
    [StateSaveLocation]=$folder/state [SlurmdSpoolDir]=$folder/spool
    [SlurmctldPidFile]=$folder/slurmctld.pid [SlurmdPidFile]=$folder/slurmd.pid
    [SlurmctldLogFile]=$folder/log/slurmctld.log [SlurmdLogFile]=$folder/log/slurmd.log
    [ProctrackType]=proctrack/linuxproc [TaskPlugin]=task/none [MpiDefault]=none [SwitchType]=switch/none
    [JobAcctGatherType]=jobacct_gather/linux [JobAcctGatherFrequency]=task=1 [JobAcctGatherParams]=OverMemoryKill,UsePss
    [SelectType]=select/cons_tres [SelectTypeParameters]=CR_Core_Memory
    [DefMemPerNode]=$((memory_mb / (cpus > 2 ? cpus : 2)))
    [SlurmdParameters]=config_overrides [ReturnToService]=2
    [PreemptType]=preempt/partition_prio [PreemptMode]=REQUEUE
    [KillWait]=10
    # Look at the queue at once: on one node with a handful of jobs nothing is gained by waiting.
    [SchedulerParameters]=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
    [AccountingStorageType]=accounting_storage/none [GresTypes]=gpu
  )
  if [ "$accounting" = slurmdbd ]; then
    conf[AccountingStorageType]=accounting_storage/slurmdbd
    conf[AccountingStorageHost]=127.0.0.1
    conf[AccountingStoragePort]=$((port + 2))
    # The clients look for munge here, and not where AuthInfo says.
    conf[AccountingStoragePass]=$folder/munge/socket
    conf[AccountingStorageEnforce]=associations,limits,qos
  fi
  for one in "${sets[@]}"; do conf[${one%%=*}]=${one#*=}; done
  {
    for key in "${!conf[@]}"; do [ -z "${conf[$key]}" ] || echo "$key=${conf[$key]}"; done | sort
    echo "NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus CoresPerSocket=$((cpus / threads)) ThreadsPerCore=$threads RealMemory=$memory_mb $gres State=UNKNOWN"
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=$grace_s $whole"
    echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF"
  } > "$SLURM_CONF"
}

database() {
  need slurmdbd mariadbd mariadb-install-db sacctmgr
  local data=$folder/database socket=$folder/database.sock
  if [ ! -d "$data/mysql" ]; then
    mkdir -p "$data"
    mariadb-install-db --no-defaults --user="$me" --datadir="$data" --auth-root-authentication-method=normal --skip-test-db > "$folder/log/install-db.log" 2>&1
  fi
  mariadbd --no-defaults --user="$me" --datadir="$data" --socket="$socket" --skip-networking --pid-file="$folder/mariadbd.pid" \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 > "$folder/log/mariadbd.log" 2>&1 < /dev/null &
  until_true 200 test -S "$socket"
  (
    umask 077
    cat > "$folder/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
SlurmUser=$me
PidFile=$folder/slurmdbd.pid
LogFile=$folder/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
CONF
  )
  MYSQL_UNIX_PORT=$socket slurmdbd >&2
  until_true 50 timeout 5 sacctmgr -n show cluster
  if ! sacctmgr -n show cluster format=cluster | grep -q single; then
    sacctmgr -i add cluster single > /dev/null
    sacctmgr -i add account lab description=lab organization=lab > /dev/null
    sacctmgr -i add user "$me" account=lab > /dev/null
  fi
}

until_true() { # until_true TIMES COMMAND...: a tenth of a second apart
  local times=$1
  shift
  for ((i = 0; i < times; i++)); do "$@" > /dev/null 2>&1 && return 0; sleep 0.1; done
  return 1
}

node_ready() { sinfo -h -p main -o %t 2> /dev/null | grep -qxE 'idle|mix|alloc'; }

exports() { printf 'export SLURM_CONF=%q KDBENCH_SLURM=%q PATH=/usr/sbin:$PATH\n' "$SLURM_CONF" "$folder"; }

controller() { slurmctld -f "$SLURM_CONF" "$@" >&2; }

start() {
  need munged slurmctld slurmd sbatch srun
  configure
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" --num-threads=2 >&2
  [ "$accounting" = none ] || database
  controller -i
  slurmd -f "$SLURM_CONF" -N "$host" >&2
  if ! until_true 300 node_ready; then
    echo "single_node.sh: SLURM did not come up; the ends of its logs:" >&2
    tail -n 5 "$folder"/log/*.log >&2
    exit 1
  fi
  exports
}

end() { # end PIDFILE: that very process, by its id, and wait for it
  local pid name
  [ -s "$1" ] || return 0
  pid=$(cat "$1")
  name=$(basename "$1" .pid)
  # A number in a file that outlived its daemon may be another process's by now.
  [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "$name" ] || return 0
  kill "$pid" 2> /dev/null || return 0
  until_true 100 ended "$pid" || kill -9 "$pid" 2> /dev/null || true
}

ended() { [ ! -d "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status" 2> /dev/null; }

stop() {
  [ -f "$SLURM_CONF" ] || return 0
  timeout 20 scancel --user="$me" 2> /dev/null || true
  until_true 60 no_jobs || true
  leftover_steps
  for file in slurmd.pid slurmctld.pid slurmdbd.pid mariadbd.pid munge/munged.pid; do end "$folder/$file"; done
  [ "$clean" = no ] || rm -rf "$folder"
}

leftover_steps() { # a step whose controller was away when it ended may wait for its answer for ever
  local process
  for process in /proc/[0-9]*; do
    [ "$(cat "$process/comm" 2> /dev/null)" = slurmstepd ] || continue
    case $(readlink "$process/cwd" 2> /dev/null) in "$folder"/*) kill -9 "${process#/proc/}" 2> /dev/null || true ;; esac
  done
}

no_jobs() { [ -z "$(squeue -h 2> /dev/null)" ]; }

case $verb in
  start) start ;;
  env) exports ;;
  status) sinfo; squeue --array ;;
  pause) end "$folder/slurmctld.pid" ;;
  resume) controller; until_true 300 node_ready ;;
  stop) stop ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" ;;
esac
