"""What Linux says of this process."""

from pathlib import Path


def status_bytes(field: str) -> int:
  """A field of /proc/self/status in bytes, such as VmRSS or VmHWM.

  Raises:
    ValueError: There is no such field.
  """
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(f"{field}:"):
      return 1024 * int(line.split()[1])
  raise ValueError(f"/proc/self/status has no {field}.")
