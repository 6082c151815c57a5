"""The command with the stand-in in place of a checkpoint, as a program: its flags, then a file for what was asked."""

import json
import pathlib
import sys
import types

from policylong import evaluate
from policylong.errors import run_command
from tests.evaluation.stand_in import StandIn

if __name__ == "__main__":
  *flags, asked = sys.argv[1:]
  policy = StandIn(window=20_000)
  put_in = types.ModuleType("policylong.evaluation.policy")
  put_in.load_policy = lambda *arguments, **settings: policy
  sys.modules[put_in.__name__] = put_in
  sys.argv[1:] = flags
  run_command(evaluate.main)
  pathlib.Path(asked).write_text(json.dumps([policy.tokenizer.decode(context[-60:]) + policy.tokenizer.decode(tokens)
                                             for context, tokens in policy.asked]))
