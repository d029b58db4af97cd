#!/usr/bin/env bash
# SLURM for real, on one machine: two tasks of launch/slurm.sbatch train a tiny
# reward model, the job is put back in the queue while it trains, and goes on.
#
#   sudo apt-get install -y slurm-wlm munge
#   sudo benchmarks/slurm_one_machine.sh [PYTHON]
#
# Starts munged, slurmctld and slurmd for itself, in a temporary directory and
# on ports of their own, and ends them whatever happens. PYTHON has the packages
# of requirements.txt; .venv/bin/python by default. Ends with "passed".

set -euo pipefail
cd "$(dirname "$0")/.."

python="${1:-.venv/bin/python}"
for program in munged slurmctld slurmd sbatch scontrol squeue "${python}"; do
  command -v "${program}" >/dev/null || {
    printf 'error: %s is missing; see the top of %s\n' "${program}" "$0" >&2
    exit 2
  }
done
[[ $(id -u) -eq 0 ]] || {
  printf 'error: SLURM starts tasks for others, and has to be root for it\n' >&2
  exit 2
}

started=${SECONDS}
place="$(mktemp -d /tmp/slurm.XXXXXX)"
chmod 755 "${place}"  # munged refuses its socket in a closed directory
daemons=()
job=''

# shellcheck disable=SC2317,SC2329  # the trap below calls it
finish() {
  local status=$?
  trap - EXIT
  [[ -z ${job} ]] || scancel --quiet "${job}" 2>/dev/null || true
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
    kill "${daemons[i]}" 2>/dev/null || true
    wait "${daemons[i]}" 2>/dev/null || true
  done
  if [[ ${status} -ne 0 ]]; then
    tail -n 30 "${place}"/*.log >&2 || true
  fi
  rm -rf "${place}"
  exit "${status}"
}
trap finish EXIT

# until_true SECONDS WHAT COMMAND...: waits for a command to succeed.
until_true() {
  local end=$((SECONDS + $1)) what="$2"
  shift 2
  until "$@" >/dev/null 2>&1; do
    [[ ${SECONDS} -lt ${end} ]] || {
      printf 'error: %s\n' "${what}" >&2
      return 1
    }
    read -r -t 0.2 <> <(:) || true
  done
}

mkdir "${place}/munge" "${place}/state" "${place}/spool"
head -c 1024 /dev/urandom > "${place}/munge/key"
chmod 600 "${place}/munge/key"
munged --foreground --force --key-file="${place}/munge/key" \
  --socket="${place}/munge/socket" --pid-file="${place}/munge/pid" \
  --seed-file="${place}/munge/seed" > "${place}/munged.log" 2>&1 &
daemons+=($!)
until_true 20 "munged did not start" test -S "${place}/munge/socket"

host="$(hostname -s)"
export SLURM_CONF="${place}/slurm.conf"
cat > "${SLURM_CONF}" <<EOF
ClusterName=one_machine
SlurmctldHost=${host}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=${place}/munge/socket
CredType=cred/munge
StateSaveLocation=${place}/state
SlurmdSpoolDir=${place}/spool
SlurmctldPidFile=${place}/slurmctld.pid
SlurmdPidFile=${place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=requeue_setup_env_fail
KillWait=5
NodeName=${host} NodeAddr=127.0.0.1 CPUs=$(nproc --all) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
cat > "${place}/cgroup.conf" <<EOF
CgroupPlugin=cgroup/v1
EOF
slurmctld -D -c -f "${SLURM_CONF}" > "${place}/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D -N "${host}" -f "${SLURM_CONF}" > "${place}/slurmd.log" 2>&1 &
daemons+=($!)
is_idle() { [[ $(sinfo --noheader --format=%T) == idle ]]; }
until_true 30 "the node did not become idle" is_idle
printf 'SLURM %s is up after %d s\n' "$(sinfo --version | cut -d' ' -f2)" \
  $((SECONDS - started))

# The tiny reward model of the tests.
workdir="${place}/reward"
arguments=(--config=configs/reward.py "--workdir=${workdir}"
  --config.model.preset=tiny --config.model.scan_unroll=1 --config.lora.rank=2
  --config.data.vocab_size=400 --config.data.max_len=136
  --config.data.prompt_len=88 --config.data.response_len=12
  '--config.data.buckets=()' --config.data.options.size=48
  --config.data.options.validation_size=8 --config.eval.batch_size=8
  --config.batch_size=8 --config.steps=24 --config.eval_every=6
  --config.log_every=3)
export PYTHON="${python}" JAX_PLATFORMS=cpu PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR="${place}/compiled"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

printf '$ sbatch --ntasks=2 launch/slurm.sbatch --config=configs/reward.py ...\n'
job="$(sbatch --parsable --ntasks=2 --output="${place}/job.log" \
  launch/slurm.sbatch "${arguments[@]}")"
has_step() { grep -q "\"step\": $1," "${workdir}/metrics.jsonl"; }
until_true 180 "the job wrote no metrics" has_step 9
printf 'job %s has trained for 9 steps after %d s; back in the queue with it\n' \
  "${job}" $((SECONDS - started))
scontrol requeue "${job}"
# Held back for a while after a requeue: begin at once.
is_pending() { [[ $(squeue --noheader --jobs="${job}" --format=%T) == PENDING ]]; }
until_true 60 "the job did not go back into the queue" is_pending
scontrol update "JobId=${job}" StartTime=now
is_over() { ! squeue --noheader --jobs="${job}" --states=all --format=%T |
  grep -q -v -E 'COMPLETED|FAILED|CANCELLED|TIMEOUT'; }
until_true 240 "the job did not end" is_over
state="$(scontrol show job "${job}" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')"
printf 'job %s: %s after %d s\n\n' "${job}" "${state}" $((SECONDS - started))
sed "s#${place}#TMP#g; s#$(pwd)#REPO#g; s#${host}#HOST#g" "${place}/job.log" |
  grep -v -e '^$'
printf '\n'

[[ ${state} == COMPLETED ]]
for expected in 'process 0 of 2' 'Rank 1 is connected to 1 peer' \
  'Resuming after step'; do
  grep -q "${expected}" "${place}/job.log" || {
    printf 'error: the log has no "%s"\n' "${expected}" >&2
    exit 1
  }
done
"${python}" - "${workdir}" <<'EOF'
import json, pathlib, sys
workdir = pathlib.Path(sys.argv[1])
summary = json.loads((workdir / "summary.json").read_text())
rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
steps = [row["step"] for row in rows if "train/loss" in row]
# The first step after a resume is written too.
assert steps in ([1, *range(3, 25, 3)], [1, 3, 6, 7, *range(9, 25, 3)]), steps
print({k: summary[k] for k in ("accuracy", "log_loss", "trainable_share")})
EOF
printf 'passed in %d s\n' $((SECONDS - started))
