"""A store in a dictionary, for tests of what is done with one.

It has what `perl_jax.buckets` asks of `fsspec`, as `gcsfs` answers.
"""

import datetime
import itertools
import pathlib
import threading


class Files:
  """Objects by key; each write has a number, its generation."""

  def __init__(self, bucket):
    self.bucket, self.objects, self.times = bucket, {}, {}
    self._count, self._lock = itertools.count(1), threading.Lock()

  def exists(self, key):
    return key == self.bucket or key in self.objects

  def find(self, key, detail):
    assert detail
    if not key.startswith(f"{self.bucket}/"):
      raise FileNotFoundError(key)
    return {
      found: {"size": len(content), "generation": str(number)}
      for found, (content, number) in sorted(self.objects.items())
      if found == key or found.startswith(f"{key}/")
    }

  def cat_file(self, key):
    if key not in self.objects:
      raise FileNotFoundError(key)
    return self.objects[key][0]

  def pipe_file(self, key, content, mode="overwrite", chunksize=0):
    del chunksize
    if not key.startswith(f"{self.bucket}/"):
      raise FileNotFoundError(key)
    with self._lock:
      if mode == "create" and key in self.objects:
        raise FileExistsError(key)
      self.objects[key] = content, next(self._count)
      self.times[key] = datetime.datetime.now(datetime.UTC)

  def put_file(self, path, key):
    self.pipe_file(key, pathlib.Path(path).read_bytes())

  def get_file(self, key, path):
    pathlib.Path(path).write_bytes(self.cat_file(key))

  def rm_file(self, key):
    with self._lock:
      if key not in self.objects:
        raise FileNotFoundError(key)
      del self.objects[key]

  def modified(self, key):
    self.cat_file(key)
    return self.times[key]
