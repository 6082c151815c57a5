"""The other side of benchmarks/aot_vs_maxtext.py; runs in an environment with MaxText and without this package.

  python aot_maxtext.py OUT.json KEY=VALUE ...

MaxText's own `train_compile` compiles its train step with the settings given, over those of its base.yml; what the
compiler says of the memory goes to OUT.json.
"""

import json
import pathlib
import sys
import time

import maxtext
from maxtext.trainers.pre_train import train_compile


def main():
  out, *settings = sys.argv[1:]
  compile_step, found = train_compile.jit_and_compile, {}

  def measured(*args, **kwargs):
    start = time.perf_counter()
    compiled = compile_step(*args, **kwargs)
    memory = compiled.memory_analysis()
    found.update(argument_bytes=memory.argument_size_in_bytes, temp_bytes=memory.temp_size_in_bytes,
                 peak_bytes=memory.peak_memory_in_bytes, compile_seconds=time.perf_counter() - start)
    return compiled

  train_compile.jit_and_compile = measured
  train_compile.main(["", str(pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"), *settings])
  pathlib.Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
  main()
