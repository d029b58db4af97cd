#!/usr/bin/env bash
# Trains on the GPUs of this machine: one process that uses all of them.
#
#   launch/gpu.sh [options] -- \
#       --config=configs/rl.py --workdir=runs/rl --config.mesh.fsdp=2
#
#   --cuda=12|13   JAX's CUDA; by default what the driver can do
#   --venv=DIR     where Python packages go; .venv of the working tree by default
#   --packages=A,B installed too, such as wandb; gcsfs and s3fs are where an
#                  argument has gs:// or s3://
#   --gpus=0,1     some of the GPUs; all by default
#   --no-install   the packages are there already
#   --dry-run      writes the commands down and runs nothing
#
# Mesh: `--config.mesh.data=-1`, the default, gives each GPU a part of the batch
# and a copy of the base: the fastest while the base fits one GPU. If it does
# not, `--config.mesh.data=1 --config.mesh.fsdp=-1` splits the base as well;
# `--config.mesh.tensor=2` splits every kernel over pairs, which wants NVLink.
# Paths are those of the current directory.
# Several machines: launch/slurm.sbatch, or --coordinator_address, docs/launching.md.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cuda='' venv='' packages='' gpus='' no_install=0
options 'cuda venv packages gpus' 'no-install' "$@"
[[ -z ${gpus} || ${gpus} =~ ^[0-9]+(,[0-9]+)*$ ]] ||
  die "--gpus=${gpus}: give numbers with commas between them, as nvidia-smi has"
need nvidia-smi "there is no NVIDIA driver here, or it is not on PATH"

# "CUDA Version: 12.8" in the head of nvidia-smi is the newest of the driver.
if [[ -z ${cuda} ]]; then
  cuda=12
  if [[ ${DRY_RUN} -eq 0 ]]; then
    cuda="$(nvidia-smi | sed -n 's/.*CUDA[^:]*Version: \([0-9]*\)\..*/\1/p')"
  fi
fi
[[ ${cuda} =~ ^[0-9]+$ && ${cuda} -ge 12 ]] ||
  die "CUDA '${cuda}': JAX needs a driver for CUDA 12 or newer"
[[ ${cuda} -le 13 ]] || cuda=13
packages_for "cuda${cuda}" "${packages}"

if [[ ${DRY_RUN} -eq 0 ]]; then
  nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader >&2
fi
# Not cd: paths of the arguments are those of the current directory.
tree="$(root)"
venv="${venv:-${tree}/.venv}"
if [[ ${no_install} -eq 0 ]]; then
  [[ -x ${venv}/bin/python ]] || run python3 -m venv "${venv}"
  run "${venv}/bin/python" -m pip install --quiet \
    -r "${tree}/requirements.txt" "${PACKAGES[@]}"
fi
command=(env "PYTHONPATH=${tree}${PYTHONPATH:+:${PYTHONPATH}}")
[[ -z ${gpus} ]] || command+=("CUDA_VISIBLE_DEVICES=${gpus}")
run_last "${command[@]}" "${venv}/bin/python" -m perl_jax.main "${ARGUMENTS[@]}"
