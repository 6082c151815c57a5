"""Two processes score a task together: each asks its share, and the table is that of one."""

import json
import os
import pathlib
import subprocess
import sys

from tests.devices.test_hosts import free_address
from tests.evaluation.command import evaluated
from tests.evaluation.stand_in import StandIn
from tests.evaluation.test_lm_eval_tasks import ARC, arc_like, write_task
from tests.evaluation.test_longbench2 import QUESTIONS, write


def test_two_processes_share_the_requests_and_make_the_table_of_one(tmp_path, monkeypatch):
  drawing = write_task(arc_like(tmp_path / "tasks"), "drawn_local", [{"text": f"Text {i}"} for i in range(5)],
                       output_type="generate_until", doc_to_text="{{text}}", doc_to_target="x",
                       generation_kwargs={"do_sample": True, "temperature": 0.7, "until": []},
                       metric_list=[{"metric": "exact_match"}])
  flags = [f"--include_path={drawing}", f"--data_dir={write(tmp_path / 'data.json')}",
           "--tasks=arc_local,longbench2,drawn_local"]
  one = evaluated(monkeypatch, StandIn(window=20_000), tmp_path / "one", *flags)
  (tmp_path / "two").mkdir()
  (tmp_path / "two" / "stand-in.gguf").touch()
  address = free_address()
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  environment |= {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
  running = [subprocess.Popen(
      [sys.executable, "-m", "tests.evaluation.stand_in_command", *flags, f"--model={tmp_path}/two/stand-in.gguf",
       f"--output={tmp_path}/two", f"--coordinator_address={address}", "--num_processes=2", f"--process_id={process}",
       str(tmp_path / f"asked{process}.json")],
      cwd=pathlib.Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
      for process in range(2)]
  ended = [process.communicate(timeout=600) for process in running]
  assert [process.returncode for process in running] == [0, 0], ended
  assert json.loads((tmp_path / "two" / "results.json").read_text()) == one
  drawn = [sorted((sample["doc_id"], sample["filtered_resps"]) for sample in json.loads(
      (tmp_path / name / "lm_eval" / "drawn_local.json").read_text())["samples"]["drawn_local"])
      for name in ("one", "two")]
  assert drawn[0] == drawn[1] and len({text for _, (text,) in drawn[0]}) == 5 and "Drawn by 42" in drawn[0][0][1][0]
  asked = [set(json.loads((tmp_path / f"asked{process}.json").read_text())) for process in range(2)]
  # A question's choices are different requests, and each is asked in one of the two processes.
  requests = sum(len(choices) for _, choices, _ in ARC) + 4 * len(QUESTIONS)
  assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == requests
  assert abs(len(asked[0]) - len(asked[1])) <= 2
  # The table is printed once.
  assert ["arc_local" in out for out, _ in ended] == [True, False]
