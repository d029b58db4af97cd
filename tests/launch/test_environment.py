"""Variables that a launched run is given: their values are seen by nobody."""

import os
import re
import stat
import subprocess

import pytest
import yaml

from tests.launch.test_scripts import NEEDED, TRAINING, call, dry, program

SECRET = "a key: \"quoted\" 'twice' \\n $HOME $(id) $$ & %s\tö\nnext line"
GIVEN = {"HF_TOKEN": SECRET, "EMPTY": "", "MLFLOW_TRACKING_URI": "https://x"}
ASKED = f"--env={','.join(GIVEN)}"
# Keeps its arguments, and each file that they name, with its permissions.
FAKE = """#!/usr/bin/env bash
echo "$*" >> '{here}/calls'
for word in "$@"; do
  file="${{word#--env-file=}}"
  if [[ $file == */perl_jax.env ]]; then
    cp -p "$file" '{here}/kept'
    dirname "$file" > '{here}/scratch'
    ls "${{TMPDIR:-/nowhere}}" > '{here}/listed'
  fi
done
case "$*" in
  *"value(state)"*) echo READY ;;
esac
"""


def start(tmp_path, script):
  """The file with the variables that a script sends, which it has removed."""
  program(tmp_path, "gcloud", FAKE)
  program(tmp_path, "xpk", FAKE)
  done = call(
    *(script, *NEEDED[script], ASKED, "--", *TRAINING),
    PATH=f"{tmp_path}:{os.environ['PATH']}",
    **GIVEN,
  )
  assert done.returncode == 0, done.stderr
  told = done.stdout + done.stderr + (tmp_path / "calls").read_text()
  assert "quoted" not in told and "https://x" not in told
  assert not os.path.exists((tmp_path / "scratch").read_text().strip())
  kept = tmp_path / "kept"
  assert stat.S_IMODE(kept.stat().st_mode) == 0o600
  return kept


def test_tpu_vm(tmp_path):
  """The hosts' shells read the file, and remove it before the run begins."""
  kept = start(tmp_path, "tpu_vm.sh")
  home = tmp_path / "home"
  (home / "perl_jax").mkdir(parents=True)
  (home / "venv" / "bin").mkdir(parents=True)
  program(
    home / "venv" / "bin",
    "python",
    '#!/usr/bin/env bash\nls -A "{here}/../.." > {here}/listed\n'
    'printf "%s" "$HF_TOKEN" > {here}/token\n'
    'echo "${{EMPTY-unset}} $MLFLOW_TRACKING_URI $PERL_JAX_JOB"\n',
  )
  kept.rename(home / "perl_jax.env")
  commands = dry("tpu_vm.sh", ASKED, **GIVEN)
  train = next(c for c in commands if "perl_jax.main" in " ".join(c))
  (run,) = [w for w in train if w.startswith("--command=")]
  done = subprocess.run(
    ["bash", "-c", run.removeprefix("--command=")],
    cwd=home,
    env={"PATH": os.environ["PATH"]},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == " https://x us-west4-a/pod\n"
  assert (home / "venv/bin/token").read_text() == SECRET
  assert "perl_jax.env" not in (home / "venv/bin/listed").read_text()


def test_tpu_vm_sends_them_after_the_installation():
  commands = dry("tpu_vm.sh", ASKED, "--setup=mount x", **GIVEN)
  texts = [" ".join(command) for command in commands]
  (sent,) = [n for n, text in enumerate(texts) if "pod:perl_jax.env" in text]
  assert "--worker=all" in commands[sent]
  assert "mount x" in texts[sent - 1] and "perl_jax.main" in texts[sent + 1]
  assert not any("perl_jax.env" in " ".join(c) for c in dry("tpu_vm.sh"))


def test_gke(tmp_path):
  """As xpk writes them into its JobSet, and Kubernetes reads them."""
  found = {}
  for line in start(tmp_path, "gke.sh").read_text().splitlines():
    name, value = re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*?)=(.*)", line).groups()
    read = yaml.safe_load(f'value: "{value}"')["value"]
    assert "$" not in read.replace("$$", "")
    found[name] = read.replace("$$", "$")
  assert found == GIVEN
  assert (tmp_path / "listed").read_text() == "perl_jax.env\n"


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_a_dry_run_names_them(script):
  done = call(
    *(script, "--dry-run", *NEEDED[script], ASKED, "--", *TRAINING), **GIVEN
  )
  assert "# HF_TOKEN, EMPTY, MLFLOW_TRACKING_URI, as perl_jax.env" in (
    done.stdout.splitlines()
  )
  assert "quoted" not in done.stdout and "https://x" not in done.stdout


@pytest.mark.parametrize(
  "asked, said",
  [
    ("--env=HF_TOKEN,NOWHERE", "NOWHERE is not set here"),
    ("--env=DRY_RUN", "DRY_RUN is not set here"),
    ("--env=HF_TOKEN=secret", "names of variables with commas between them"),
    ("--env=HF_TOKEN,,EMPTY", "names of variables with commas between them"),
  ],
)
@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_what_is_refused(script, asked, said):
  done = call(
    *(script, "--dry-run", *NEEDED[script], asked, "--", *TRAINING), **GIVEN
  )
  assert done.returncode == 2 and said in done.stderr
  assert "secret" not in done.stderr and done.stdout == ""
