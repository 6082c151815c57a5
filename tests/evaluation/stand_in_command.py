"""The command with the stand-in in place of a checkpoint, as a program: its flags, then a file for what was asked."""

import json
import pathlib
import sys

from policylong import evaluate
from policylong.errors import run_command
from policylong.evaluation import policy as policy_lib
from policylong.model import stored
from tests.evaluation.command import opened
from tests.evaluation.stand_in import StandIn

if __name__ == "__main__":
  *flags, asked = sys.argv[1:]
  policy = StandIn(window=20_000)
  stored.open_model = opened
  policy_lib.load_policy = lambda *arguments, **settings: policy
  sys.argv[1:] = flags
  run_command(evaluate.main)
  pathlib.Path(asked).write_text(json.dumps([policy.tokenizer.decode(context[-60:]) + policy.tokenizer.decode(tokens)
                                             for context, tokens in policy.asked]))
