"""HELMET by its own checkout through the command; the checkout is a stand-in of its interface and file formats.

The stand-in's metrics are shares of what its ruler_recall is (substring_exact_match a half, exact_match a quarter,
rougeL_f1 a fifth, NDCG@10 an eighth), so a mistaken metric shows in the numbers.
"""

import json
import pathlib
import shutil
import sys

import pytest
import yaml

from policylong.evaluation import helmet
from tests.evaluation.command import evaluated, refused
from tests.evaluation.stand_in import END, StandIn

LENGTHS = (1024, 2048, 4096)  # the last one in <category>.yaml, the others in <category>_short.yaml
RIGHT = ("the letter is k", ["(k)"])
WRONG = ("the letter is k", ["(m)"])
HALF = ("the letter is k", ["(k)", "(m)"])
RULER = ("s_1", "s_2", "s_3", "mk_1", "mk_2", "mk_3", "mq", "mv")
# {category: {data set: samples}}; no samples: those come from the hub, where the stand-in's are right.
DATA = {
    "recall": {"ruler_niah_mk_2": [RIGHT, RIGHT], "ruler_niah_mk_3": [RIGHT, WRONG], "ruler_niah_mv": [HALF],
               "json_kv": [RIGHT, WRONG, WRONG, WRONG]},
    "rag": {"kilt_nq": [RIGHT], "kilt_triviaqa": [WRONG], "kilt_hotpotqa": [HALF, RIGHT], "kilt_popqa_3": [RIGHT]},
    "icl": {f"icl_{name}_400shot_balance": None
            for name in ("trec_coarse", "trec_fine", "banking77", "clinic150", "nlu")},
    "rerank": {"msmarco_rerank_psg": [RIGHT, WRONG]},
    "longqa": {"narrativeqa_7892": None, "infbench_qa_eng_7982": None, "infbench_choice_eng_7982": None},
    "ruler": {**{f"ruler_niah_{name}": [RIGHT] for name in RULER}, "ruler_cwe": [HALF], "ruler_fwe": [HALF],
              "ruler_vt": [WRONG], "ruler_qa_1": [RIGHT], "ruler_qa_2": [WRONG]},
    "summ": {"infbench_sum_eng_7892": None, "multi_lexsum_7892": None},
}
# By hand from the above, in percent.
SCORES = {
    "recall": (100 + 50 + 50 + 25 / 2) / 4, "rag": (50 + 0 + 37.5 + 50) / 4, "icl": 25, "rerank": 50 / 8,
    "longqa": (20 + 20 + 25) / 3, "ruler": (8 * 100 + 50 + 50 + 0 + 50 + 0) / 13, "summ": 20,
}
SAMPLES = {"recall": 9, "rag": 5, "icl": 5, "rerank": 2, "longqa": 3, "ruler": 13, "summ": 2}


@pytest.fixture
def checkout(tmp_path):
  folder = tmp_path / "HELMET"
  shutil.copytree(pathlib.Path(__file__).parent / "helmet_stand_in", folder, ignore=lambda *_: ["__pycache__"])
  (folder / "configs").mkdir()
  for category, datasets in DATA.items():
    for suffix, lengths in (("", LENGTHS[2:]), ("_short", LENGTHS[:2])):
      rows = [(name, length, file_of(folder, category, name, length)) for name in datasets for length in lengths]
      write_config(folder, category + suffix, rows)
  return folder


def file_of(folder, category, name, length):
  samples = DATA[category][name]
  if samples is None:
    return ""
  path = folder / "data" / category / f"{name}_{length}.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps({"context": f"{i} " + context, "question": "Which?", "answer": answer}) + "\n"
                          for i, (context, answer) in enumerate(samples)))
  return str(path.relative_to(folder))


def write_config(folder, config, rows):
  """As HELMET's: columns with commas between them, and fields that its parser does not know."""
  (folder / "configs" / f"{config}.yaml").write_text(yaml.safe_dump({
      "datasets": ",".join(name for name, _, _ in rows), "test_files": ",".join(path for _, _, path in rows),
      "demo_files": "," * (len(rows) - 1), "input_max_length": ",".join(str(length) for _, length, _ in rows),
      "generation_max_length": ",".join("50" for _ in rows), "max_test_samples": 100, "shots": 2,
      "use_chat_template": config.startswith("longqa"), "stop_new_line": True, "model_name_or_path": "other/model"}))


def files(folder):
  return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"}


def test_categories_and_the_papers_avg_are_those_known_by_hand(tmp_path, monkeypatch, checkout):
  policy, before, modules = StandIn(), files(checkout), set(sys.modules)
  arguments, path = list(sys.argv), list(sys.path)
  found = evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=helmet,helmet/summ", f"--helmet_dir={checkout}",
                    "--lengths=1024,2048")
  assert set(found) == {"helmet", *(f"helmet/{name}" for name in SCORES)}
  for length in ("1024", "2048"):
    for category, value in SCORES.items():
      row = found[f"helmet/{category}"][length]
      assert (row["value"], row["samples"], row["truncated"]) == (pytest.approx(value), SAMPLES[category], 0), category
    averaged = [value for category, value in SCORES.items() if category != "summ"]
    assert found["helmet"][length]["value"] == pytest.approx(sum(averaged) / 6)
    assert found["helmet"][length]["samples"] == sum(SAMPLES.values()) - SAMPLES["summ"]
  assert found["helmet/recall"]["1024"]["protocol"] == "HELMET"
  assert found["helmet/longqa"]["1024"]["protocol"] == "HELMET, NarrativeQA by ROUGE-L, not judged"
  # 38 data sets, at two lengths; greedy, without a chat template, and the newline stop as released: never
  assert {each[1:] for each in policy.written} == {(50, (), 0.0)} and len(policy.written) == 2 * 39
  assert not any("[user]" in policy.tokenizer.decode(each[0]) for each in policy.written)
  averaged = [name for name in DATA if name != "summ"]
  assert len(helmet.data_sets("helmet")) == sum(len(DATA[name]) for name in averaged)
  assert helmet.data_sets("helmet/summ") == [("summ", "infbench_sum"), ("summ", "multi_lexsum")]
  assert [len(helmet.data_sets("helmet/cite")), helmet.protocol("helmet/cite")] == [2, "HELMET"]
  # The checkout is as it was, and so is this process.
  assert files(checkout) == before and not {"eval", "data", "model_utils", "arguments"} & (set(sys.modules) - modules)
  assert sys.path == path and sys.argv[0] == "evaluate" and arguments


def test_a_chat_model_takes_the_template_where_the_config_says_so(tmp_path, monkeypatch, checkout):
  policy = StandIn()
  found = evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=helmet/longqa,helmet/rerank", "--lengths=1024",
                    f"--helmet_dir={checkout}", "--apply_chat_template")
  assert found["helmet/longqa"]["1024"]["value"] == pytest.approx(SCORES["longqa"])
  texts = [policy.tokenizer.decode(each[0]) for each in policy.written]
  assert [text.endswith(f"{END}[assistant] ") for text in texts] == [True] * 3 + [False] * 2


def test_what_helmet_cuts_is_counted(tmp_path, monkeypatch, checkout):
  monkeypatch.setitem(DATA["rerank"], "msmarco_rerank_psg", [("." * 2000 + "the letter is k", ["(k)"]), RIGHT])
  file_of(checkout, "rerank", "msmarco_rerank_psg", 1024)
  policy = StandIn()
  found = evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=helmet/rerank", "--lengths=1024",
                    f"--helmet_dir={checkout}")
  # Its end, and the letter with it, is cut.
  assert found["helmet/rerank"]["1024"] == {"metric": "NDCG@10, %", "value": 100 / 2 / 8, "samples": 2, "truncated": 1,
                                            "protocol": "HELMET"}
  assert len(policy.written[0][0]) == 1024 - 50


@pytest.mark.parametrize("merges", [(), ((".", "Ċ"), (".Ċ", "Ċ")), (("Ċ", "Ċ"), ("!", "?"), ("!?", "ĊĊ"))])
def test_a_prompt_that_helmet_cuts_too_little_is_cut_to_the_window(tmp_path, monkeypatch, checkout, merges):
  """HELMET takes as many tokens off the context as are too many, but a full stop and the newlines after the context may
  have been one token, and be two after the cut. A longer window has room for what is then over HELMET's length."""
  samples = [("the letter is k. " + sentence * 400 + end, ["(k)"])
             for sentence in ("The grass is green. ", "Is it green!? ") for end in ("", ".", "Yes.", "!?", ".!?", "\n")]
  monkeypatch.setitem(DATA["rerank"], "msmarco_rerank_psg", samples)
  file_of(checkout, "rerank", "msmarco_rerank_psg", 1024)
  lengths = {}
  for window in (1024, 4096):
    policy = StandIn(window=window, merges=merges)
    found = evaluated(monkeypatch, policy, tmp_path / str(window), "--tasks=helmet/rerank", "--lengths=1024",
                      f"--helmet_dir={checkout}")["helmet/rerank"]["1024"]
    assert (found["value"], found["samples"], found["truncated"]) == (100 / 8, len(samples), len(samples))
    lengths[window] = [len(prompt) + new for prompt, new, _, _ in policy.written]
    for prompt, _, _, _ in policy.written:
      text = policy.tokenizer.decode(prompt)
      assert "the letter is k." in text[:25] and text.endswith("\n\nQuestion: Which?\nAnswer:")
  assert lengths[1024] == [min(length, 1024) for length in lengths[4096]]
  assert (max(lengths[4096]) > 1024) == bool(merges)


def test_each_prompt_draws_by_a_number_of_its_own_where_helmet_samples(tmp_path, monkeypatch, checkout):
  config = checkout / "configs" / "rerank_short.yaml"
  config.write_text(config.read_text() + "do_sample: true\ntemperature: 0.7\nseed: 5\n")
  policy = StandIn()
  evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=helmet/rerank", f"--helmet_dir={checkout}",
            "--lengths=1024")
  (details,) = (tmp_path / "out").rglob("*msmarco*.json")
  texts = [sample["output"] for sample in json.loads(details.read_text())["data"]]
  assert {each[3] for each in policy.written} == {0.7} and len(set(texts)) == 2
  assert all("Drawn by 5 " in text for text in texts)


def test_without_lengths_those_that_fit_the_window_are_run_and_finished_ones_are_kept(tmp_path, monkeypatch, checkout):
  def run(policy, *flags):
    return evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=helmet/rerank", f"--helmet_dir={checkout}", *flags)

  first = StandIn(window=2100)
  assert list(run(first)["helmet/rerank"]) == ["1024", "2048"] and len(first.written) == 4
  again = StandIn(window=4096)
  found = run(again)["helmet/rerank"]
  assert list(found) == ["1024", "2048", "4096"] and len(again.written) == 2
  fewer = StandIn()
  assert run(fewer, "--samples=1", "--lengths=1024")["helmet/rerank"]["1024"]["value"] == 100 / 8
  assert len(fewer.written) == 1


def test_a_run_that_stops_halfway_leaves_no_half_result(tmp_path, monkeypatch, checkout):
  class Stopped(StandIn):

    def generate(self, prompts, *arguments, **settings):
      raise KeyboardInterrupt

  with pytest.raises(SystemExit):
    evaluated(monkeypatch, Stopped(), tmp_path / "out", "--tasks=helmet/rerank", f"--helmet_dir={checkout}",
              "--lengths=1024")
  assert not [path for path in (tmp_path / "out").rglob("*msmarco*")]
  assert "eval" not in sys.modules
  evaluated(monkeypatch, StandIn(), tmp_path / "out", "--tasks=helmet/rerank", f"--helmet_dir={checkout}",
            "--lengths=1024")


def test_mistakes_are_told_in_one_sentence(tmp_path, monkeypatch, capsys, checkout):
  def told(*flags, policy=None):
    return refused(monkeypatch, capsys, policy or StandIn(), tmp_path / "out", *flags)

  here = f"--helmet_dir={checkout}"
  assert "need --helmet_dir=DIR" in told("--tasks=helmet")
  assert "categories recall, rag" in told("--tasks=helmet/recal", here)
  assert "has no eval.py" in told("--tasks=helmet", f"--helmet_dir={tmp_path}")
  assert "no length 3000; it has 1024, 2048, 4096" in told("--tasks=helmet/rag", here, "--lengths=3000")
  assert "window of stand-in is 2000 tokens" in told("--tasks=helmet/rag", here, "--lengths=2048",
                                                     policy=StandIn(window=2000))
  assert "starts at 1024" in told("--tasks=helmet/rag", here, policy=StandIn(window=100))
  (checkout / "data" / "rerank" / "msmarco_rerank_psg_1024.jsonl").rename(checkout / "away")
  sentence = told("--tasks=helmet/rerank", here, "--lengths=1024")
  assert "data/rerank/msmarco_rerank_psg_1024.jsonl" in sentence and "download_data.sh" in sentence
  broken = checkout / "data" / "broken.jsonl"
  broken.touch()
  write_config(checkout, "rerank_short", [("msmarco_rerank_psg", 1024, "data/broken.jsonl")])
  sentence = told("--tasks=helmet/rerank", here, "--lengths=1024")
  assert "could not run msmarco_rerank_psg" in sentence and "ValueError: this data set" in sentence
  assert "datasets<4" in sentence
  write_config(checkout, "rerank_short", [("msmarco_rerank_psg", 1024, "")] * 2)
  assert "msmarco_rerank_psg 2 times at 1024 tokens" in told("--tasks=helmet/rerank", here, "--lengths=1024")
  (checkout / "configs" / "rerank_short.yaml").write_text("datasets: a,b")
  assert "has not the fields" in told("--tasks=helmet/rerank", here, "--lengths=1024")
  (checkout / "utils.py").write_text("import a_package_that_is_not_there\n")
  sentence = told("--tasks=helmet/rag", here, "--lengths=1024")
  assert "No module named 'a_package_that_is_not_there'" in sentence and "requirements.txt" in sentence


def test_a_module_of_ours_that_is_called_as_one_of_helmet_s_survives(tmp_path, monkeypatch, checkout):
  ours = type(sys)("utils")
  monkeypatch.setitem(sys.modules, "utils", ours)
  evaluated(monkeypatch, StandIn(), tmp_path / "out", "--tasks=helmet/rerank", "--lengths=1024",
            f"--helmet_dir={checkout}")
  assert sys.modules["utils"] is ours
