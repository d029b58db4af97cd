"""The shell scripts of launch/: what they would run, and what they refuse."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ("tpu_vm.sh", "gke.sh", "gpu.sh", "slurm.sbatch")
ALL = [
  *sorted(LAUNCH.glob("*.sh")),
  LAUNCH / "slurm.sbatch",
  *sorted((ROOT / "benchmarks").glob("*.sh")),
]
TRAINING = ("--config=configs/rl.py", "--workdir=runs/a b")
NEEDED = {
  "tpu_vm.sh": ("--name=pod", "--zone=us-west4-a", "--type=v5litepod-16"),
  "gke.sh": ("--cluster=c", "--workload=w", "--tpu-type=v6e-16"),
  "gpu.sh": (),
}


def call(script, *arguments, **environment):
  # Nothing that a dry run starts may be found.
  environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere"} | environment
  return subprocess.run(
    ["bash", str(LAUNCH / script), *arguments],
    capture_output=True,
    text=True,
    env=environment,
    cwd=ROOT,
    timeout=60,
  )


def dry(script, *options, training=TRAINING, **environment):
  """Commands of a dry run, each as a list of words."""
  separator = () if script == "slurm.sbatch" else ("--",)
  options = (*NEEDED.get(script, ()), *options)
  done = call(
    script, "--dry-run", *options, *separator, *training, **environment
  )
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line[0] != "#"]
  return [shlex.split(line) for line in lines]


def installed(command):
  """Words of the line that installs, as the shell of its host reads it."""
  text = next((w for w in command if w.startswith("--command=")), None)
  words = shlex.split(text.removeprefix("--command=")) if text else command
  words = words[words.index("-r") :]
  return words[: words.index("&&")] if "&&" in words else words


def jax_for(kind):
  pins = (ROOT / "requirements.txt").read_text()
  return f"jax[{kind}]=={pins.split(chr(10) + 'jax==')[1].split()[0]}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_shell_is_clean(path):
  done = subprocess.run(["bash", "-n", str(path)], capture_output=True)
  assert done.returncode == 0, done.stderr
  shellcheck = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=str(pathlib.Path(sys.executable).parent)
  )
  if shellcheck is None:
    pytest.skip("shellcheck is not installed")
  command = [shellcheck, "-x", "-P", str(ROOT), str(path)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
  done = call(script, "--help")
  assert done.returncode == 0
  assert f"launch/{script}" in done.stdout and "--workdir=" in done.stdout
  assert "dry-run" in done.stdout and "set -euo" not in done.stdout


def test_tpu_vm_runs_one_command_on_all_hosts_and_brings_logs_back():
  commands = dry("tpu_vm.sh", "--spot", "--setup=sudo mount x", "--delete")
  assert all(
    c[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] for c in commands[:5]
  )
  verbs = [c[4] for c in commands if c[0] == "gcloud"]
  assert verbs == ["create", "scp", "ssh", "ssh", "ssh", "scp", "delete"]
  create, copy, install, setup, train, _, logs, delete = commands
  assert create[5:] == [
    "pod",
    "--accelerator-type=v5litepod-16",
    "--version=v2-alpha-tpuv5-lite",
    "--spot",
    "--zone=us-west4-a",
  ]
  for command in (copy, install, setup, train):
    assert "--worker=all" in command
  assert installed(install)[-1] == jax_for("tpu")
  assert "--command=sudo mount x" in setup
  (run,) = [w for w in train if w.startswith("--command=")]
  # Word for word what the hosts' shells will read.
  words = shlex.split(run.removeprefix("--command="))
  start = words.index("perl_jax.main")
  assert words[start + 1 :][:3] == ["--distributed", *TRAINING]
  assert "pipefail" in words  # the status is that of the run, not of tee
  assert logs[5:7] == ["pod:perl_jax.log", "logs/pod/host0.log"]
  assert "--quiet" in delete


def test_tpu_vm_fails_as_its_training_does(tmp_path):
  """With a gcloud that says READY and whose training fails."""
  log = tmp_path / "calls"
  fake = tmp_path / "gcloud"
  fake.write_text(
    "#!/usr/bin/env bash\n"
    f'printf "%s\\n" "$*" >> {log}\n'
    'case "$*" in\n'
    '  *"value(state)"*) echo READY ;;\n'
    "  *networkEndpoints*) echo 2 ;;\n"
    "  *perl_jax.main*) exit 7 ;;\n"
    "esac\n"
  )
  fake.chmod(0o755)
  done = call(
    "tpu_vm.sh",
    *NEEDED["tpu_vm.sh"],
    f"--logs={tmp_path / 'logs'}",
    "--",
    *TRAINING,
    PATH=f"{tmp_path}:{os.environ['PATH']}",
  )
  assert done.returncode == 7
  assert "the same command goes on" in done.stderr
  calls = log.read_text().splitlines()
  assert not any(" create " in c or " delete " in c for c in calls)
  fetched = [c for c in calls if "pod:perl_jax.log" in c]
  assert ["--worker=0" in fetched[0], "--worker=1" in fetched[1]] == [True] * 2


def test_gke():
  (command,) = dry("gke.sh", "--storage=runs", "--count=2", "--zone=z")
  assert command[:3] == ["xpk", "workload", "create"]
  for word in (
    "--workload=w", "--cluster=c", "--tpu-type=v6e-16", "--num-slices=2",
    "--storage=runs", "--zone=z", "--max-restarts=10",
    "--restart-on-exit-codes=1,75",
    f"--script-dir={ROOT}",
  ):  # fmt: skip
    assert word in command
  (run,) = [w for w in command if w.startswith("--command=")]
  words = shlex.split(run.removeprefix("--command="))
  start = words.index("perl_jax.main")
  assert words[start + 1 :] == ["--distributed", *TRAINING]
  assert installed(command)[-1] == jax_for("tpu")


def test_gke_on_gpus():
  done = call(
    *("gke.sh", "--dry-run", "--cluster=c", "--workload=w", "--count=3"),
    *("--device-type=h200-141gb-8", "--", *TRAINING),
  )
  (command,) = [shlex.split(line) for line in done.stdout.splitlines()]
  assert "--num-nodes=3" in command
  assert installed(command)[-1] == jax_for("cuda12")
  assert "without --storage" in done.stderr


def test_gpu():
  *_, install, run = dry("gpu.sh", "--cuda=13", "--gpus=0,1")
  assert install[-1].startswith("jax[cuda13]==")
  assert run == [
    *("env", f"PYTHONPATH={ROOT}", "CUDA_VISIBLE_DEVICES=0,1"),
    *(f"{ROOT}/.venv/bin/python", "-m", "perl_jax.main", *TRAINING),
  ]


def test_gpu_without_a_driver(tmp_path):
  for program in ("bash", "dirname", "sed"):
    (tmp_path / program).symlink_to(shutil.which(program))
  done = call("gpu.sh", "--", *TRAINING, PATH=str(tmp_path))
  assert done.returncode == 2 and "nvidia-smi is not installed" in done.stderr


def test_slurm():
  (command,) = dry("slurm.sbatch", PYTHON="python9")
  assert command[0] == "srun" and "--kill-on-bad-exit=1" in command
  start = command.index("python9")
  assert command[start:] == [
    *("python9", "-m", "perl_jax.main", "--distributed", *TRAINING)
  ]


def test_slurm_outside_a_job():
  done = call("slurm.sbatch", *TRAINING)
  assert done.returncode == 2 and "sbatch --ntasks=N" in done.stderr


# Stands in for a program: the training notes that it was told to stop and ends
# as the real one does.
TRAINING_PROGRAM = """#!/usr/bin/env bash
echo "$PERL_JAX_JOB $*" > {here}/started
trap 'echo told >> {here}/started; exit 75' TERM
for i in $(seq 200); do sleep 0.1; done
"""


def program(directory, name, text):
  path = directory / name
  path.write_text(text.format(here=directory))
  path.chmod(0o755)
  return path


@pytest.mark.parametrize(
  "status, state",
  [(0, "RUNNING"), (1, "RUNNING"), (75, "RUNNING"), (75, "COMPLETING")],
)
def test_slurm_requeues_a_job_that_was_told_to_stop(tmp_path, status, state):
  program(tmp_path, "squeue", f"#!/usr/bin/env bash\necho {state}\n")
  program(tmp_path, "srun", f"#!/usr/bin/env bash\nexit {status}\n")
  program(
    tmp_path, "scontrol", '#!/usr/bin/env bash\necho "$*" > {here}/asked\n'
  )
  done = call(
    "slurm.sbatch",
    *TRAINING,
    PATH=f"{tmp_path}:{os.environ['PATH']}",
    SLURM_JOB_ID="123",
  )
  assert done.returncode == status, done.stderr
  asked = tmp_path / "asked"
  wanted = (status, state) == (75, "RUNNING")
  assert asked.exists() == wanted
  if wanted:
    assert asked.read_text() == "requeue 123\n"
  assert "#SBATCH --signal=TERM@90" in (LAUNCH / "slurm.sbatch").read_text()


def until(path, text):
  end = time.monotonic() + 30
  while not (path.exists() and text in path.read_text()):
    assert time.monotonic() < end, path
    time.sleep(0.02)


def test_what_stops_a_pod_reaches_the_training(tmp_path):
  """xpk's container runs it in a subshell, and passes SIGTERM on to that."""
  (command,) = dry("gke.sh")
  (run,) = [w for w in command if w.startswith("--command=")]
  program(tmp_path, "pip", "#!/usr/bin/env bash\n")
  program(tmp_path, "python", TRAINING_PROGRAM)
  wrapper = (
    "forward() { kill -TERM $!; }; trap forward TERM;"
    f" ({run.removeprefix('--command=')}) & child=$!;"
    " while kill -0 $child 2>/dev/null; do sleep 0.1; done; wait $child"
  )
  pod = subprocess.Popen(
    ["bash", "-c", wrapper],
    env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    stderr=subprocess.DEVNULL,
  )
  until(tmp_path / "started", "perl_jax.main")
  pod.terminate()
  assert pod.wait(60) == 75
  name, *words = (tmp_path / "started").read_text().split()
  assert name == "w" and words[-1] == "told"


def test_what_stops_the_gpu_script_reaches_the_training(tmp_path):
  program(tmp_path, "nvidia-smi", "#!/usr/bin/env bash\n")
  (tmp_path / "venv" / "bin").mkdir(parents=True)
  program(tmp_path / "venv" / "bin", "python", TRAINING_PROGRAM)
  command = [
    *("bash", str(LAUNCH / "gpu.sh"), "--cuda=12", "--no-install"),
    *(f"--venv={tmp_path / 'venv'}", "--", *TRAINING),
  ]
  script = subprocess.Popen(
    command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, cwd=ROOT
  )
  started = tmp_path / "venv" / "bin" / "started"
  until(started, "perl_jax.main")
  script.terminate()
  assert script.wait(60) == 75
  assert started.read_text().split()[-1] == "told"


@pytest.mark.parametrize(
  "script, arguments, said",
  [
    ("tpu_vm.sh", ("--", *TRAINING), "give --name, --zone and --type"),
    ("tpu_vm.sh", ("--nmae=x",), "unknown option --nmae=x"),
    ("tpu_vm.sh", ("--name=a", "--zone=z", "--type=v9-8", "--", *TRAINING),
     "no software version is known for --type=v9-8"),
    ("gke.sh", ("--cluster=c", "--workload=w", "--", *TRAINING),
     "one of --tpu-type and --device-type"),
    ("gke.sh", ("--cluster=c", "--workload=W_1", "--tpu-type=x", "--",
     *TRAINING), "--workload=W_1"),
    ("gke.sh", ("--cluster=c", "--workload=w", "--tpu-type=x", "--count=two",
     "--", *TRAINING), "--count=two"),
    ("gpu.sh", ("--", "--config=configs/rl.py"), "--workdir=DIR"),
    ("gpu.sh", ("--", "--config", "configs/rl.py"), "with an equals sign"),
    ("gpu.sh", ("--gpus=all", "--", *TRAINING), "--gpus=all"),
    ("tpu_vm.sh", (*NEEDED["tpu_vm.sh"], "--packages=a b", "--", *TRAINING),
     "--packages=a b: give names with commas between them"),
    ("gke.sh", (*NEEDED["gke.sh"], "--packages=--pre", "--", *TRAINING),
     "--packages=--pre: give names"),
    ("gpu.sh", ("--packages=a,,b", "--", *TRAINING), "--packages=a,,b: give"),
    ("gpu.sh", ("--cuda=11", "--", *TRAINING), "CUDA '11'"),
    ("slurm.sbatch", ("--config=configs/rl.py",), "need --config=FILE"),
  ],
)  # fmt: skip
def test_what_is_refused(script, arguments, said):
  done = call(script, "--dry-run", *arguments)
  assert done.returncode == 2 and said in done.stderr, done.stderr
  assert done.stdout == ""
