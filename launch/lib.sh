# shellcheck shell=bash
# What the scripts of launch/ share; they source it.

DRY_RUN=0
ARGUMENTS=()
PACKAGES=()
VARIABLES=()

# Reads a script's options into its variables, and checks what follows `--`.
#
#   options 'name zone' 'spot no-install' "$@"
#
# `--name=VALUE` sets `name`, `--spot` sets `spot` to 1, `--no-install` sets
# `no_install`. ARGUMENTS becomes what follows `--`.
options() {
  local values=" $1 " flags=" $2 " option
  shift 2
  while [[ $# -gt 0 ]]; do
    option="${1%%=*}"
    option="${option#--}"
    case "$1" in
      --help | -h) help; exit 0 ;;
      --dry-run) DRY_RUN=1 ;;
      --) shift; break ;;
      *)
        if [[ $1 == --*=* && ${values} == *" ${option} "* ]]; then
          printf -v "${option//-/_}" '%s' "${1#*=}"
        elif [[ $1 == --* && $1 != *=* && ${flags} == *" ${option} "* ]]; then
          printf -v "${option//-/_}" 1
        else
          die "unknown option $1; arguments of perl_jax.main come after --"
        fi
        ;;
    esac
    shift
  done
  check_training "$@"
  # shellcheck disable=SC2034  # the scripts read it
  ARGUMENTS=("$@")
}

# The comment at the top of the script that calls: its documentation.
help() {
  sed -n '2,/^$/{/^#/!d;/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"
}

# Says on standard error what is wrong, and ends the script.
die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Runs a command; with --dry-run writes it down instead, ready to be pasted.
run() {
  if [[ ${DRY_RUN} -eq 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# As `run`, but the command takes the place of the script: signals reach it.
run_last() {
  [[ ${DRY_RUN} -eq 1 ]] || exec "$@"
  run "$@"
}

# Ends the script if a program is missing that the run will need.
need() {
  if [[ ${DRY_RUN} -eq 0 ]] && ! command -v "$1" >/dev/null; then
    die "$1 is not installed: $2"
  fi
}

# "a 'b c'": arguments as one line that another shell reads back.
quoted() {
  local line
  line="$(printf '%q ' "$@")"
  printf '%s' "${line% }"
}

# Checks the arguments of `python -m perl_jax.main`.
check_training() {
  local argument config=0 workdir=0
  for argument in "$@"; do
    case "${argument}" in
      --config=*) config=1 ;;
      --workdir=*) workdir=1 ;;
      --config | --workdir) die "write ${argument}=VALUE, with an equals sign" ;;
    esac
  done
  [[ ${config} -eq 1 && ${workdir} -eq 1 ]] ||
    die "the arguments of perl_jax.main need --config=FILE and --workdir=DIR;" \
      "--help shows where they go"
}

# Ends the script if the config is wrong, before it makes anything: read here,
# where the packages for that are installed, in the working tree as it will be.
check_config() {
  local python=python3 said status=0
  [[ ${DRY_RUN} -eq 0 ]] || return 0
  [[ ! -x $(root)/.venv/bin/python ]] || python="$(root)/.venv/bin/python"
  said="$(cd "$(root)" &&
    "${python}" -m launch.check "${ARGUMENTS[@]}" 2>/dev/null)" || status=$?
  [[ ${status} -ne 2 ]] || die "${said}"
}

# Sets VARIABLES to the names of --env, which have to be set here.
#
#   variables_of HF_TOKEN,WANDB_API_KEY
variables_of() {
  local one='[A-Za-z_][A-Za-z0-9_]*' name
  [[ -n $1 ]] || return 0
  # What was given may be a value, and is not repeated.
  [[ $1 =~ ^${one}(,${one})*$ ]] ||
    die "--env takes names of variables with commas between them; their values" \
      "are those that they have here"
  IFS=, read -ra VARIABLES <<<"$1"
  for name in "${VARIABLES[@]}"; do
    printenv "${name}" >/dev/null || die "--env: ${name} is not set here"
  done
}

# Writes the variables into a file that the user alone may read. No command line
# has their values, which every user of a machine can see.
#
#   write_variables FILE shell    for bash to source
#   write_variables FILE xpk      for `xpk --env-file`
write_variables() {
  local name value
  (
    umask 077
    for name in "${VARIABLES[@]}"; do
      value="${!name}"
      if [[ $2 == shell ]]; then
        printf 'export %s=%q\n' "${name}" "${value}"
        continue
      fi
      # xpk puts it between double quotes of YAML; Kubernetes reads $$ as $.
      value="${value//\\/\\\\}"
      value="${value//\"/\\\"}"
      value="${value//$'\n'/\\n}"
      printf '%s=%s\n' "${name}" "${value//\$/\$\$}"
    done >"$1"
  )
}

# Directory of the working tree.
root() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd
}

# Sets PACKAGES to what is installed beside requirements.txt: JAX for a kind of
# device, what --packages names, and what the buckets of ARGUMENTS need.
#
#   packages_for tpu 'wandb,trackio'
packages_for() {
  local one='[A-Za-z0-9][^, ]*' names="$2"
  [[ -z ${names} || ${names} =~ ^${one}(,${one})*$ ]] ||
    die "--packages=${names}: give names with commas between them"
  [[ ${ARGUMENTS[*]} != *gs://* ]] || names+="${names:+,}gcsfs"
  [[ ${ARGUMENTS[*]} != *s3://* ]] || names+="${names:+,}s3fs"
  # shellcheck disable=SC2034  # the scripts read it
  IFS=, read -ra PACKAGES <<<"jax[$1]==$(jax_version)${names:+,${names}}"
}

# The version of JAX that requirements.txt pins.
jax_version() {
  sed -n 's/^jax==//p' "$(root)/requirements.txt"
}
