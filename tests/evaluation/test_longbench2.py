"""LongBench-v2 through the command, from a local file of made-up questions whose answers are known by hand."""

import json
from importlib import metadata

import pytest

from policylong.devices import hosts
from policylong.evaluation import lm_eval_tasks, longbench2
from policylong.evaluation.results import Options
from tests.evaluation.command import evaluated, refused
from tests.evaluation.stand_in import END, StandIn

SPLITS = ("easy", "hard", "short", "medium", "long")
# (difficulty, length, the letter that the context names, the right one, characters before the hint)
QUESTIONS = [
    ("easy", "short", "A", "A", 10), ("easy", "short", "B", "B", 10), ("easy", "medium", "C", "C", 700),
    ("hard", "short", "D", "C", 10), ("hard", "medium", "B", "B", 700), ("hard", "long", "D", "D", 9000),
    ("hard", "long", "C", "B", 9000), ("easy", "long", "D", "D", 9000),
]
# By hand, of what the context names: right are 0, 1, 2, 4, 5, 7.
SCORES = {"": 6 / 8, "easy": 4 / 4, "hard": 2 / 4, "short": 2 / 3, "medium": 2 / 2, "long": 2 / 3}
COUNTS = {"": 8, "easy": 4, "hard": 4, "short": 3, "medium": 2, "long": 3}


def record(index, difficulty, length, named, right, before, after=10):
  return {"_id": f"id{index}", "domain": "Single-Document QA", "sub_domain": "Academic", "difficulty": difficulty,
          "length": length, "question": f" Question {index}? ", "choice_A": "one", "choice_B": "two",
          "choice_C": "three", "choice_D": "four", "answer": right,
          "context": "." * before + f"the letter is {named}" + "." * after}


def write(path, records=None):
  path.write_text(json.dumps(records or [record(i, *each) for i, each in enumerate(QUESTIONS)]))
  return path


def scores(found):
  return {name.removeprefix("longbench2").removeprefix("/"): row[""]["value"] for name, row in found.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_likeliest_letters_give_the_six_scores_known_by_hand(tmp_path, monkeypatch):
  policy = StandIn(window=20_000)
  found = evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=longbench2",
                    f"--data_dir={write(tmp_path / 'data.json')}")
  assert scores(found) == {split: pytest.approx(100 * value) for split, value in SCORES.items()}
  for split, count in COUNTS.items():
    row = found["longbench2" + ("/" + split if split else "")][""]
    assert (row["metric"], row["samples"], row["truncated"]) == ("accuracy, %", count, 0)
    assert row["protocol"] == f"LongBench-v2 log-likelihood, lm-eval {metadata.version('lm_eval')}"
  # lm-eval's own prompt, and each of the four letters after it
  asked = [(policy.tokenizer.decode(context), policy.tokenizer.decode(tokens)) for context, tokens in policy.asked[:4]]
  text = record(0, *QUESTIONS[0])["context"]
  assert asked == [(f"Please read the following text and answer the question below.\n\n<text>\n{text}\n</text>\n\nWhat "
                    "is the correct answer to this question: Question 0?\nChoices:\n(A) one\n(B) two\n(C) three\n"
                    "(D) four\n\nAnswer:", f" {letter}") for letter in "ABCD"]
  details = json.loads((tmp_path / "out" / "longbench2" / "loglikelihood.json").read_text())
  assert [each["predicted"] for each in details["questions"]] == [named for _, _, named, _, _ in QUESTIONS]
  assert details["questions"][3]["log_likelihoods"] == [-3, -4, -4, -2.5] and details["questions"][3]["_id"] == "id3"


def test_it_is_lm_eval_s_accuracy_on_lm_eval_s_group(tmp_path):
  """lm-eval scores the same records alike: its definition of any domain on them, its own metric."""
  records = longbench2._read(write(tmp_path / "data.json"))
  options = Options((), None, "nvidia", 0, False, None, None, None)
  task = longbench2._lm_eval_task(records)
  import lm_eval.tasks
  manager = lm_eval_tasks.manager_of(lm_eval.tasks.__path__[0] + "/longbench2")
  domains = [manager.task_index[name].cfg for name in manager.all_subtasks]
  assert len(domains) == 20
  for domain in domains:  # one definition, 20 sources
    for field in ("doc_to_text", "doc_to_choice", "doc_to_target", "metric_list", "output_type"):
      assert domain[field] == getattr(task.config, field), (domain["task"], field)
  found, _ = lm_eval_tasks.evaluate(StandIn(window=20_000), [task], manager, options, tmp_path)
  assert found["results"]["longbench2"]["acc,none"] == SCORES[""]


def test_a_context_over_the_window_is_cut_on_the_left_and_counted(tmp_path, monkeypatch):
  found = evaluated(monkeypatch, StandIn(window=1500), tmp_path / "out", "--tasks=longbench2/long,longbench2",
                    f"--data_dir={write(tmp_path / 'data.json').parent}")
  # The hints stand at the end: nothing changes but the count.
  assert scores(found) == {split: pytest.approx(100 * value) for split, value in SCORES.items()}
  assert {name: row[""]["truncated"] for name, row in found.items()} == {
      "longbench2": 3, "longbench2/easy": 1, "longbench2/hard": 2, "longbench2/short": 0, "longbench2/medium": 0,
      "longbench2/long": 3}


def test_one_split_alone_and_the_first_samples(tmp_path, monkeypatch):
  found = evaluated(monkeypatch, StandIn(window=20_000), tmp_path / "out", "--tasks=longbench2/hard,longbench2/long",
                    "--samples=5", f"--data_dir={write(tmp_path / 'data.json')}")
  assert scores(found) == {"hard": 50.0, "long": None}  # of questions 3 and 4; of none


def test_a_chat_model_writes_its_answers(tmp_path, monkeypatch):
  policy = StandIn(window=20_000)
  found = evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=longbench2", "--apply_chat_template",
                    f"--data_dir={write(tmp_path / 'data.json')}")
  assert scores(found) == {split: pytest.approx(100 * value) for split, value in SCORES.items()}
  row = found["longbench2"][""]
  assert row["protocol"] == "LongBench-v2 generation, temperature 0.1, 128 tokens, middle cut to 19,872 tokens"
  prompt, new, stop, temperature = policy.written[0]
  assert (new, stop, temperature) == (128, (), 0.1)
  text = record(0, *QUESTIONS[0])["context"]
  assert policy.tokenizer.decode(prompt) == (
      f"[user] Please read the following text and answer the question below.\n\n<text>\n{text}\n</text>\n\nWhat is the "
      "correct answer to this question: Question 0?\nChoices:\n(A) one\n(B) two\n(C) three\n(D) four\n\nFormat your "
      f'response as follows: "The correct answer is (insert answer here)".{END}[assistant] ')
  details = json.loads((tmp_path / "out" / "longbench2" / "generation.json").read_text())
  assert details["questions"][3] | {"text": ""} == {
      "_id": "id3", "domain": "Single-Document QA", "sub_domain": "Academic", "difficulty": "hard", "length": "short",
      "answer": "C", "predicted": "D", "truncated": False, "text": ""}


def test_a_question_s_draws_are_its_own_whatever_it_is_asked_after(tmp_path, monkeypatch):
  """At once, some at a time, in two processes, and after a run that was stopped; another seed draws otherwise."""
  data = write(tmp_path / "data.json")

  def texts(name, *flags):
    evaluated(monkeypatch, StandIn(window=20_000), tmp_path / name, "--tasks=longbench2", "--apply_chat_template",
              f"--data_dir={data}", *flags)
    return [each["text"] for each in json.loads((tmp_path / name / "longbench2" / "generation.json").read_text())[
        "questions"]]
  whole = texts("whole")
  assert len({text.partition("Drawn by 42 ")[2] for text in whole}) == len(QUESTIONS)
  assert not set(texts("other", "--seed=43")) & set(whole)
  assert texts("stopped", "--samples=3") == whole[:3] and texts("stopped") == whole
  monkeypatch.setattr("policylong.evaluation.shared_work._QUESTIONS", 2)
  assert texts("some") == whole
  # As two processes share it, one after the other: the second one finds what the first one has asked.
  monkeypatch.setattr(hosts, "share", lambda items: range(items // 2))
  with pytest.raises(KeyError):
    texts("two")
  monkeypatch.setattr(hosts, "share", lambda items: range(items // 2, items))
  assert texts("two") == whole


def test_the_middle_is_cut_so_that_prompt_and_answer_fit(tmp_path, monkeypatch):
  policy = StandIn(window=1000)
  rows = [record(0, "hard", "long", "B", "B", 5000, after=10), record(1, "hard", "long", "B", "B", 10, after=5000),
          record(2, "hard", "long", "C", "C", 2500, after=2500), record(3, "easy", "short", "D", "D", 10)]
  found = evaluated(monkeypatch, policy, tmp_path / "out", "--tasks=longbench2", "--apply_chat_template",
                    f"--data_dir={write(tmp_path / 'data.json', rows)}")
  # What stands in the middle is lost; then the stand-in writes "(None)".
  assert scores(found) == {"": 75.0, "easy": 100.0, "hard": pytest.approx(200 / 3), "short": 100.0, "medium": None,
                           "long": pytest.approx(200 / 3)}
  assert found["longbench2"][""]["truncated"] == 3
  for prompt, _, _, _ in policy.written[:3]:
    text = policy.tokenizer.decode(prompt)
    assert len(prompt) == 1000 - 128  # a byte a token: nothing is wasted
    assert text.startswith("[user] Please read") and text.endswith(f'here)".{END}[assistant] ')


def test_at_most_120000_tokens_of_the_prompt_are_kept(monkeypatch):
  policy = StandIn(window=10**6)
  text = "a" * 70_000 + "b" * 70_000
  tokens, cut = longbench2._prompt(policy, text)
  assert cut and policy.tokenizer.decode(tokens) == f"[user] {'a' * 60_000}{'b' * 60_000}{END}[assistant] "
  assert longbench2._prompt(policy, text[:120_000])[1] is False


@pytest.mark.parametrize("text, letter", [
    ("The correct answer is (B).", "B"), ("**The correct answer is (C)**", "C"), ("The correct answer is D", "D"),
    ("The correct answer is **A**.", "A"), ("The correct answer is B, no: The correct answer is (C)", "C"),
    ("The correct answer is (A) or (B)", "A"), ("the correct answer is (A)", None), ("(A)", None), ("", None),
    ("The correct answer is (E)", None), ("The correct answer is ( A )", None), ("The correct answer is Berlin", "B"),
])
def test_the_letter_of_an_answer(text, letter):
  assert longbench2.letter_in(text) == letter


@pytest.mark.parametrize("change, words", [
    ({"answer": "E"}, ["record 1", "answer = 'E'", "A, B, C, D"]),
    ({"length": "huge"}, ["record 1", "length = 'huge'", "short, medium, long"]),
    ({"context": None}, ["record 1", "context = None", "wanted is a text"]),
])
def test_a_damaged_record_is_told(tmp_path, monkeypatch, capsys, change, words):
  rows = [record(0, *QUESTIONS[0]), record(1, *QUESTIONS[1]) | change]
  sentence = refused(monkeypatch, capsys, StandIn(), tmp_path / "out", "--tasks=longbench2",
                     f"--data_dir={write(tmp_path / 'data.json', rows)}")
  for word in [str(tmp_path / "data.json"), *words]:
    assert word in sentence


def test_other_mistakes_are_told_in_one_sentence(tmp_path, monkeypatch, capsys):
  data = write(tmp_path / "data.json")

  def told(*flags, policy=None):
    return refused(monkeypatch, capsys, policy or StandIn(), tmp_path / "out", *flags)

  assert "splits easy, hard, short, medium, long" in told("--tasks=longbench2/easier", f"--data_dir={data}")
  assert "does not exist" in told("--tasks=longbench2", f"--data_dir={tmp_path}/none.json")
  (tmp_path / "bad.json").write_text("{")
  assert "is not JSON" in told("--tasks=longbench2", f"--data_dir={tmp_path}/bad.json")
  (tmp_path / "bad.json").write_text("{}")
  assert "holds a dict; wanted is a list" in told("--tasks=longbench2", f"--data_dir={tmp_path}/bad.json")
  assert "has no chat template" in told("--tasks=longbench2", f"--data_dir={data}", "--apply_chat_template",
                                        policy=StandIn(chat_template=None))
  assert "need more than the 140 tokens" in told("--tasks=longbench2", f"--data_dir={data}", "--apply_chat_template",
                                                 policy=StandIn(window=140))

  def unreachable(*arguments, **settings):
    raise ConnectionError("no route")

  monkeypatch.setattr("datasets.load_dataset", unreachable)
  assert "--data_dir=FILE" in told("--tasks=longbench2")
