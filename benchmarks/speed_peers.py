"""Other libraries that `rl_speed.py` measures, and the work that each does."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peer:
  """A command that measures another library and prints one line of JSON.

  Attributes:
    python: Name of its environment in the folder of the peers.
    script: Name of its script in that folder.
    flags: Flags of the script; MODEL and COUNT are replaced.
    path: Folder that comes first on the import path, or "".
  """

  python: str
  script: str
  flags: str
  path: str = ""


_QUIET = " --passive --max-seconds=0 --warmup=2"
_RL = "--model=MODEL --iters=COUNT --trainer="
_STEP = "--model=MODEL --steps=COUNT --impl="
PEERS = {
  "TRL RLOO": Peer("env", "trl_rl.py", _RL + "rloo" + _QUIET),
  "torch RLOO": Peer("env", "trl_rl.py", _RL + "loop" + _QUIET),
  "torch RLOO, full": Peer(
    "env", "trl_rl.py", _RL + "loop --mode=full" + _QUIET
  ),
  "TRL PPO": Peer("env", "trl_rl.py", _RL + "ppo" + _QUIET, "trl112"),
  "Tunix GRPO, no reward model": Peer(
    "tunixenv", "tunix_rl.py", "--algo=grpo --iters=COUNT --max-seconds=0"
  ),
  "Tunix PPO": Peer(
    "tunixenv",
    "tunix_rl.py",
    "--algo=ppo --reward=model --critic-from=base --iters=COUNT"
    " --max-seconds=0",
    "tunixsrc",
  ),
  "torch reward": Peer("env", "trl_rm.py", _STEP + "loop" + _QUIET),
  "torch reward, full": Peer(
    "env", "trl_rm.py", _STEP + "loop --mode=full" + _QUIET
  ),
}

# By arm of perl_jax, the peers that do the same work.
GROUPS: dict[str, tuple[str, ...]] = {
  "rloo": ("TRL RLOO", "torch RLOO", "Tunix GRPO, no reward model"),
  "rloo, full": ("torch RLOO, full",),
  "reinforce": ("TRL PPO", "Tunix PPO"),
  "reinforce 32 x 1": ("TRL PPO", "Tunix PPO"),
  "reinforce, full": (),
  "reward": ("torch reward",),
  "reward, full": ("torch reward, full",),
}


def chosen(names: str, on_checkpoint: bool) -> set[str]:
  """The peers that are measured.

  Args:
    names: Their names with ; between them; "" is all that can.
    on_checkpoint: Whether they have to run on a given model.

  Raises:
    ValueError: One is unknown, or makes a model of its own.
  """
  able = {
    name
    for name, peer in PEERS.items()
    if "MODEL" in peer.flags or not on_checkpoint
  }
  wanted = set(names.split(";")) if names else able
  if not wanted <= able:
    raise ValueError(
      f"--beside={sorted(wanted - able)}: choose from {sorted(able)}."
    )
  return wanted
