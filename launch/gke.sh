#!/usr/bin/env bash
# Trains on a GKE cluster of TPUs or GPUs, as an xpk workload.
#
#   launch/gke.sh --cluster=NAME --workload=NAME --tpu-type=v5litepod-16 \
#       --storage=NAME [options] -- \
#       --config=configs/rl.py --workdir=/runs/rl --config.lora.rank=4
#
#   --cluster=NAME      made with `xpk cluster create`
#   --workload=NAME     of the run; another for each
#   --tpu-type=TYPE     such as v5litepod-16; or
#   --device-type=TYPE  such as h100-mega-80gb-8
#   --count=N           slices of TPUs, or nodes of GPUs; 1 by default
#   --storage=NAME      attached with `xpk storage attach`; the workdir is in it,
#                       or in a bucket, --workdir=gs://BUCKET/PATH, without this
#   --image=IMAGE       with Python 3.11 or newer; python:3.11 by default
#   --packages=A,B      installed too, such as wandb; gcsfs and s3fs are where an
#                       argument has gs:// or s3://
#   --env=A,B           variables that the run gets as they are here, such as
#                       HF_TOKEN; no command line has their values, but who may
#                       look at the cluster's workloads sees them
#   --zone=ZONE --project=ID
#   --restarts=N        after a failure or preemption; 10 by default
#   --follow            waits for the end
#   --dry-run           writes the command down and runs nothing
#
# The working tree is laid over the image. What follows `--` is given to
# `python -m perl_jax.main --distributed` in every pod. A pod that fails or is
# taken away ends the others; the workload is then started again and goes on
# from its last checkpoint: the workdir outlives the pods. A pod that is told to
# stop (SIGTERM) saves first and ends with status 75, a failure that is started
# again.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cluster='' workload='' tpu_type='' device_type='' count=1 storage='' zone=''
project='' image=python:3.11 packages='' env='' restarts=10 follow=0
options \
  'cluster workload tpu-type device-type count storage image packages env zone project restarts' \
  'follow' "$@"
[[ -n ${cluster} && -n ${workload} ]] ||
  die "give --cluster and --workload; --help says more"
if [[ -n ${tpu_type} && -z ${device_type} ]]; then
  extra=tpu machines=("--tpu-type=${tpu_type}" "--num-slices=${count}")
elif [[ -n ${device_type} && -z ${tpu_type} ]]; then
  extra=cuda12 machines=("--device-type=${device_type}" "--num-nodes=${count}")
else
  die "give one of --tpu-type and --device-type"
fi
packages_for "${extra}" "${packages}"
variables_of "${env}"
[[ ${workload} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  die "--workload=${workload}: lower-case letters, digits and dashes only"
[[ ${count} =~ ^[1-9][0-9]*$ ]] || die "--count=${count} is not a number above 0"
[[ ${restarts} =~ ^[0-9]+$ ]] || die "--restarts=${restarts} is not a number"
need xpk "pip install xpk, 0.7 or newer; it needs gcloud, kubectl and docker too"

where=("--cluster=${cluster}")
[[ -z ${zone} ]] || where+=("--zone=${zone}")
[[ -z ${project} ]] || where+=("--project=${project}")
if [[ -n ${storage} ]]; then
  machines+=("--storage=${storage}")
fi
for argument in "${ARGUMENTS[@]}"; do
  case "${argument}" in
    --workdir=*://*) ;;
    --workdir=*)
      if [[ -z ${storage} ]]; then
        printf 'warning: without --storage %s is gone with the pod.\n' \
          "${argument}" >&2
      elif [[ ${argument} != --workdir=/* ]]; then
        printf 'warning: %s is gone with the pod: give a path in --storage.\n' \
          "${argument}" >&2
      fi
      ;;
  esac
done

check_config
if [[ ${#VARIABLES[@]} -gt 0 ]]; then
  variables=perl_jax.env
  if [[ ${DRY_RUN} -eq 0 ]]; then
    # xpk writes them into files of its own there, and leaves these behind.
    TMPDIR="$(mktemp -d)"
    export TMPDIR
    trap 'rm -rf "${TMPDIR}"' EXIT
    variables="${TMPDIR}/perl_jax.env"
    write_variables "${variables}" xpk
  else
    printf '# %s, as perl_jax.env\n' "${env//,/, }"
  fi
  machines+=("--env-file=${variables}")
fi

# By itself xpk starts again after signals only: 1 is an error, as where another
# pod is lost, and 75 the end of a pod that was told to stop.
run xpk workload create "--workload=${workload}" "${where[@]}" \
  "${machines[@]}" "--max-restarts=${restarts}" --restart-on-exit-codes=1,75 \
  "--base-docker-image=${image}" "--script-dir=$(root)" \
  "--command=pip install --quiet -r requirements.txt \
$(quoted "${PACKAGES[@]}") && \
PERL_JAX_JOB=$(quoted "${workload}") exec python -m perl_jax.main --distributed \
$(quoted "${ARGUMENTS[@]}")"
if [[ ${follow} -eq 1 ]]; then
  run xpk workload list "${where[@]}" "--wait-for-job-completion=${workload}"
else
  printf 'To follow it: xpk workload list %s --wait-for-job-completion=%s\n' \
    "$(quoted "${where[@]}")" "${workload}" >&2
fi
printf 'Its log: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=%s\n' \
  "${workload}" >&2
