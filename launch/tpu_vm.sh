#!/usr/bin/env bash
# Trains on a TPU VM, on all of its hosts, and brings the logs back.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE --type=v5litepod-16 [options] -- \
#       --config=configs/rl.py --workdir=gs://BUCKET/rl --config.lora.rank=4
#
#   --name=NAME        of the TPU VM; made if there is none of that name
#   --zone=ZONE        such as us-west4-a
#   --type=TYPE        accelerator type, such as v5litepod-16, v5p-8, v6e-16
#   --version=VERSION  of the TPU software; by default the one for the type
#   --project=ID       by default that of the gcloud configuration
#   --spot             cheaper, and may be taken away: see below
#   --packages=A,B     installed too, such as wandb; gcsfs and s3fs are where an
#                      argument has gs:// or s3://
#   --env=A,B          variables that the run gets as they are here, such as
#                      HF_TOKEN; no command line has their values
#   --setup=COMMAND    run on each host before training, such as a mount
#   --logs=DIR         where each host's log goes; by default logs/NAME
#   --delete           deletes the VM at the end, however the run ended
#   --dry-run          writes the commands down and runs nothing
#
# What follows `--` is given to `python -m perl_jax.main --distributed` on every
# host. The workdir is gs://BUCKET/PATH, or one directory for all of them: on a VM
# of one host any, on several on a shared file system that --setup mounts, for
# example
#   --setup='sudo mkdir -p /mnt/runs && sudo mount -t nfs 10.0.0.2:/runs /mnt/runs'
# A spot VM that was taken away is deleted and made again by the same command,
# and the run goes on from its last checkpoint if the workdir outlived it.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' zone='' type='' version='' project='' packages='' env='' setup=''
logs='' spot=0 delete=0
options \
  'name zone type version project packages env setup logs' \
  'spot delete' "$@"
packages_for tpu "${packages}"
variables_of "${env}"
[[ -n ${name} && -n ${zone} && -n ${type} ]] ||
  die "give --name, --zone and --type; --help says more"
need gcloud "https://cloud.google.com/sdk/docs/install"

if [[ -z ${version} ]]; then
  case "${type}" in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-* | v3-* | v2-*) version=tpu-ubuntu2204-base ;;
    *) die "no software version is known for --type=${type}; give --version" ;;
  esac
fi
check_config
logs="${logs:-logs/${name}}"
where=("--zone=${zone}")
[[ -z ${project} ]] || where+=("--project=${project}")

tpu() {
  run gcloud compute tpus tpu-vm "$@" "${where[@]}"
}

everywhere() {
  tpu ssh "${name}" --worker=all "--command=$1"
}

# READY, PREEMPTED, ...; nothing if there is none.
state() {
  [[ ${DRY_RUN} -eq 0 ]] || return 0
  gcloud compute tpus tpu-vm describe "${name}" "${where[@]}" \
    '--format=value(state)' 2>/dev/null || true
}

create() {
  local asked=("--accelerator-type=${type}" "--version=${version}")
  [[ ${spot} -eq 0 ]] || asked+=(--spot)
  tpu create "${name}" "${asked[@]}"
}

case "$(state)" in
  READY) printf 'using the TPU VM %s\n' "${name}" >&2 ;;
  '') create ;;
  PREEMPTED | TERMINATED | STOPPED)
    tpu delete "${name}" --quiet
    create
    ;;
  *) die "the TPU VM ${name} is $(state): wait, or delete it" ;;
esac

scratch="$(mktemp -d)"
hosts=1
# shellcheck disable=SC2317,SC2329  # the trap below calls it
finish() {
  local status=$?
  rm -rf "${scratch}"
  if [[ ${delete} -eq 1 ]]; then
    tpu delete "${name}" --quiet
  elif [[ ${status} -ne 0 && ${DRY_RUN} -eq 0 ]]; then
    printf 'The run ended with status %s; the same command goes on with it.\n' \
      "${status}" >&2
  fi
}
trap finish EXIT

# The tree as it is, with what is not committed and without what git ignores.
tree="${scratch}/perl_jax.tgz"
if [[ ${DRY_RUN} -eq 0 ]]; then
  (cd "$(root)" && git ls-files -z --cached --others --exclude-standard |
    tar --null --files-from=- -czf "${tree}")
else
  printf '# the working tree, as perl_jax.tgz\n'
  tree=perl_jax.tgz
fi
tpu scp "${tree}" "${name}:perl_jax.tgz" --worker=all
# What an earlier start has brought goes, and what its run has written stays: a
# relative workdir lies there. The image's Python may be too old; uv brings one
# of its own.
everywhere "mkdir -p perl_jax && touch perl_jax.list \
&& (cd perl_jax && xargs --no-run-if-empty -d '\n' rm -f -- < ../perl_jax.list) \
&& tar -xzf perl_jax.tgz -C perl_jax && tar -tzf perl_jax.tgz > perl_jax.list \
&& python3 -m pip install --quiet --user uv \
&& ([ -d venv ] || python3 -m uv venv --quiet --python 3.11 venv) \
&& python3 -m uv pip install --quiet --python venv/bin/python -r perl_jax/requirements.txt $(quoted "${PACKAGES[@]}")"
[[ -z ${setup} ]] || everywhere "${setup}"

# Copied with its permissions, and gone before the run begins. Standard input of
# an ssh to all hosts would reach one of them.
read_variables=''
if [[ ${#VARIABLES[@]} -gt 0 ]]; then
  variables="${scratch}/perl_jax.env"
  if [[ ${DRY_RUN} -eq 0 ]]; then
    write_variables "${variables}" shell
  else
    printf '# %s, as perl_jax.env\n' "${env//,/, }"
    variables=perl_jax.env
  fi
  tpu scp "${variables}" "${name}:perl_jax.env" --worker=all
  read_variables='. ../perl_jax.env && rm ../perl_jax.env && '
fi

# The first that fails ends the others: see perl_jax/hosts. A VM that was lost
# and made again has other hosts, and is the same job to the lock of the workdir.
status=0
everywhere "cd perl_jax && set -o pipefail && ${read_variables}\
PERL_JAX_JOB=$(quoted "${zone}/${name}") ../venv/bin/python -m perl_jax.main \
--distributed $(quoted "${ARGUMENTS[@]}") 2>&1 | tee ../perl_jax.log" || status=$?

run mkdir -p "${logs}"
if [[ ${DRY_RUN} -eq 0 ]]; then
  hosts="$(gcloud compute tpus tpu-vm describe "${name}" "${where[@]}" \
    '--format=value(networkEndpoints.len())' || echo 1)"
fi
for ((worker = 0; worker < hosts; worker++)); do
  tpu scp "${name}:perl_jax.log" "${logs}/host${worker}.log" \
    "--worker=${worker}" || printf 'no log of host %s\n' "${worker}" >&2
done
exit "${status}"
