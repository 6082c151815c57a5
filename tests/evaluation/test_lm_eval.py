"""The adapter: what lm-eval asks reaches the policy as the right tokens, and comes back as lm-eval wants it."""

import logging
import tempfile

import numpy as np
import pytest
from etils import epath
from lm_eval.api.instance import Instance
from tokenizers.processors import TemplateProcessing

from policylong.errors import UserError
from policylong.evaluation.lm_eval import PolicyLM
from tests.evaluation.stand_in import END, StandIn


@pytest.fixture(autouse=True)
def own_answers(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def adapter(policy):
  """Each with a folder of its own."""
  return PolicyLM(policy, epath.Path(tempfile.mkdtemp(dir=".")))


def pairs(*arguments):
  return [Instance("loglikelihood", {}, arguments=pair, idx=0, metadata=("task", i, 1))
          for i, pair in enumerate(arguments)]


def prompts(*arguments):
  return [Instance("generate_until", {}, arguments=pair, idx=0, metadata=("task", i, 1))
          for i, pair in enumerate(arguments)]


def ask(policy, *arguments):
  model = adapter(policy)
  return model.loglikelihood(pairs(*arguments)), model


def ids(policy, text):
  return policy.tokenizer(text).input_ids


def test_a_continuation_is_scored_after_its_context():
  policy = StandIn()
  answers, model = ask(policy, ("What?", " ae"), ("the letter is k;", "kk"))
  assert answers == [(-2 - 1 - 1, False), (-1.0, True)]
  assert policy.asked == [(ids(policy, "What?"), ids(policy, " ae")),
                          (ids(policy, "the letter is k;"), ids(policy, "kk"))]
  assert not model.truncated


def test_spaces_at_the_end_of_a_context_are_scored_with_the_continuation():
  policy = StandIn()
  answers, _ = ask(policy, ("What?  ", "a"))
  assert policy.asked == [(ids(policy, "What?"), ids(policy, "  a"))] and answers == [(-5.0, False)]


@pytest.mark.parametrize("context", ["", "  "])
def test_an_empty_context_is_the_begin_token_or_else_the_end_token(context):
  for begin, token in ((None, END), ("<|begin|>", "<|begin|>")):
    policy = StandIn(begin=begin)
    answers, _ = ask(policy, (context, "ae"))
    assert policy.asked == [(ids(policy, token), ids(policy, context + "ae"))]
    assert answers == [(-2 - 2 * len(context), not context)]


def test_with_an_empty_context_a_text_that_starts_with_the_prefix_stands_on_it():
  policy = StandIn()
  assert ask(policy, ("", END + "a"))[0] == [(-1.0, True)]
  assert policy.asked == [(ids(policy, END), ids(policy, "a"))]


def test_nothing_to_score_is_certain():
  assert ask(StandIn(), ("", ""), ("What?", ""))[0] == [(0.0, True), (0.0, True)]


def test_a_tokenizer_without_any_prefix_token_is_told():
  policy = StandIn()
  policy.tokenizer.eos_token = None
  with pytest.raises(UserError, match="stand-in has neither a bos_token nor an eos_token"):
    adapter(policy)


def test_a_prompt_over_the_window_is_cut_on_the_left_counted_and_told_once(caplog):
  policy = StandIn(window=10)
  with caplog.at_level(logging.WARNING, "policylong.evaluation.lm_eval"):
    _, model = ask(policy, ("0123456789", " abc"), ("0123456", "abcd"), ("01234567", "abcd"))
    model.loglikelihood(pairs(("0123456789", " abc")))
  assert policy.asked[:3] == [(ids(policy, context), ids(policy, text))
                              for context, text in (("3456789", " abc"), ("0123456", "abcd"), ("1234567", "abcd"))]
  assert model.truncated == {"task": {0, 2}}
  assert len(caplog.records) == 1 and "cut on the left" in caplog.text


def test_a_continuation_longer_than_the_window_is_scored_whole_window_by_window():
  policy = StandIn(window=4)
  answers, model = ask(policy, ("xyz", "abcdefgh"))
  # Each token once, and the last window as full as the others.
  assert [(policy.tokenizer.decode(context), policy.tokenizer.decode(tokens)) for context, tokens in policy.asked] == [
      ("z", "abcd"), ("d", "efgh")]
  assert answers == [(2 * -1.0 + 6 * -2.0, False)] and model.truncated == {"task": {0}}


def test_equal_requests_are_asked_once_and_all_are_answered():
  policy = StandIn()
  answers, _ = ask(policy, ("What?", " a"), ("Who?", " b"), ("What?", " a"))
  assert answers == [(-3.0, False), (-4.0, False), (-3.0, False)] and len(policy.asked) == 2
  model = adapter(policy)
  greedy = {"until": ["."], "max_gen_toks": 30}
  sampled = greedy | {"do_sample": True, "temperature": 0.7}
  texts = model.generate_until(prompts(("the letter is b", greedy), ("the letter is b", greedy),
                                       ("the letter is b", sampled), ("the letter is b", sampled)))
  assert texts == ["The correct answer is (b)"] * 4
  assert [each[3] for each in policy.written] == [0.0, 0.7, 0.7]


def test_the_end_token_inside_a_text_is_a_token_as_any_other():
  policy = StandIn()
  end = policy.tokenizer.eos_token_id
  ask(policy, (f"a{END}b", f"c{END}"))
  assert policy.asked == [([*ids(policy, "a"), end, *ids(policy, "b")], [*ids(policy, "c"), end])]
  adapter(policy).generate_until(prompts((f"a{END}b", {"until": [END]})))
  assert policy.written[0][0] == [*ids(policy, "a"), end, *ids(policy, "b")]


def test_a_begin_token_that_the_text_has_is_not_added_again():
  policy = StandIn(begin="<|begin|>")
  begin = policy.tokenizer.bos_token_id
  policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
      single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
  model = adapter(policy)
  assert model.tok_encode("ab")[0] == begin and len(model.tok_encode("ab")) == 3
  assert model.tok_encode("<|begin|>ab") == model.tok_encode("ab")
  assert model.loglikelihood(pairs(("ab", "e"))) == [(-1.0, True)] and policy.asked[0][0] == model.tok_encode("ab")


def test_a_begin_token_stays_where_a_prompt_is_cut():
  policy = StandIn(window=8, begin="<|begin|>")
  begin = policy.tokenizer.bos_token_id
  policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
      single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
  model = adapter(policy)
  model.loglikelihood(pairs(("0123456789", "ab"), ("012345", "ab"), ("0", "abcdefgh"), ("0", "abcdefghi")))
  assert policy.asked[0] == ([begin, *ids(policy, "456789")[1:]], ids(policy, "ab")[1:])
  assert policy.asked[1] == (ids(policy, "012345"), ids(policy, "ab")[1:])
  assert policy.asked[2] == (ids(policy, "0")[1:], ids(policy, "abcdefgh")[1:])  # no room for both
  assert sum(len(tokens) for _, tokens in policy.asked[3:]) == 9
  model.generate_until(prompts(("0123456789", {"until": ["."], "max_gen_toks": 4})))
  assert policy.written[0][0] == [begin, *ids(policy, "789")[1:]]


def test_a_text_is_rolled_over_in_windows_that_predict_each_token_once():
  policy = StandIn(window=4)
  model = adapter(policy)
  texts = [Instance("loglikelihood_rolling", {}, arguments=(text,), idx=0, metadata=("task", i, 1))
           for i, text in enumerate(("abcde", "", "ae"))]
  assert model.loglikelihood_rolling(texts) == [-1 - 2 - 2 - 2 - 1, 0.0, -2.0]
  assert [(policy.tokenizer.decode(context), policy.tokenizer.decode(tokens)) for context, tokens in policy.asked] == [
      (END, "abcd"), ("abcd", "e"), (END, "ae")]
  assert not model.truncated


@pytest.mark.parametrize("window", [1, 2, 7, 10, 11])
def test_as_many_tokens_are_read_as_lm_eval_s_own_models_read(window):
  """The window is of what is read, which the last token is not: they keep the last window + 1 tokens."""
  policy = StandIn(window=window)
  asked = [("0123456", "abcd"[:n]) for n in range(1, min(window, 4) + 1)]
  _, model = ask(policy, *asked)
  for (context, continuation), (before, after) in zip(asked, policy.asked, strict=True):
    assert before + after == ids(policy, context + continuation)[-(window + 1):]
    assert after == ids(policy, continuation)
  assert model.truncated.get("task", set()) == {i for i, pair in enumerate(asked) if len("".join(pair)) > window + 1}
  policy.asked.clear()
  text = "abcdefghijkl"
  model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, arguments=(text,), idx=0,
                                        metadata=("rolled", 0, 1))])
  tokens = [policy.tokenizer.eos_token_id, *ids(policy, text)]
  ends = [*range(window, len(text), window), len(text)]  # a window's last token; each predicts `window` until the last
  for (before, after), begin, end in zip(policy.asked, [0, *ends[:-1]], ends, strict=True):
    assert after == tokens[begin + 1:end + 1] and before + after == tokens[:end + 1][-(window + 1):]


@pytest.mark.parametrize("until, stop", [([], ()), (["\n", ""], ("\n",)), ("\n\n", ("\n\n",)), (None, ())])
def test_stop_strings_reach_the_policy(until, stop):
  policy = StandIn(says=lambda prompt: "one\ntwo\n\nthree")
  (text,) = adapter(policy).generate_until(prompts(("What?", {"until": until, "max_gen_toks": 50})))
  assert policy.written == [(ids(policy, "What?"), 50, stop, 0.0)]
  assert text == {(): "one\ntwo\n\nthree", ("\n",): "one", ("\n\n",): "one\ntwo"}[stop]


def test_without_a_word_on_it_256_tokens_are_written_greedily():
  policy = StandIn()
  adapter(policy).generate_until(prompts(("What?", {"until": []})))
  assert policy.written[0][1:] == (256, (), 0.0)


@pytest.mark.parametrize("prompt, asked, kept, new", [
    (30, 20, 30, 20),    # fits
    (90, 20, 80, 20),    # the prompt makes room for the answer, as in lm-eval's own models
    (300, 20, 80, 20),
    (30, 90, 30, 70),    # more tokens asked than room: what is free
    (30, 1000, 30, 70),
    (300, 1000, 50, 50),  # neither fits: half each
])
def test_prompt_and_answer_share_the_window(prompt, asked, kept, new):
  policy = StandIn(window=100)
  model = adapter(policy)
  model.generate_until(prompts(("0123456789" * 30, {"max_gen_toks": asked})) if prompt == 300 else
                       prompts(("x" * prompt, {"max_gen_toks": asked})))
  tokens, most, _, _ = policy.written[0]
  assert (len(tokens), most) == (kept, new)
  assert bool(model.truncated) == (kept < prompt)
  if prompt == 300:
    assert policy.tokenizer.decode(tokens) == ("0123456789" * 30)[-kept:]


def test_an_empty_prompt_is_the_prefix_token():
  policy = StandIn()
  adapter(policy).generate_until(prompts(("", {})))
  assert policy.written[0][0] == ids(policy, END)


def test_sampling_takes_the_task_s_temperature_and_says_what_it_leaves_out(caplog):
  policy = StandIn()
  arguments = {"do_sample": True, "temperature": 0.3, "top_p": 0.9, "top_k": 0}
  with caplog.at_level(logging.WARNING, "policylong.evaluation.lm_eval"):
    adapter(policy).generate_until(prompts(("What?", arguments), ("Who?", {"do_sample": True}), ("Who?", arguments)))
  assert sorted(each[3] for each in policy.written) == [0.3, 0.3, 1.0]
  assert [record.getMessage() for record in caplog.records if record.name.startswith("policylong")] == [
      "a task samples with top_p = 0.9, which is left out: only the temperature is used"]


def test_a_request_s_draws_are_its_own_whatever_it_is_asked_after(tmp_path, monkeypatch):
  sampled, greedy = {"do_sample": True, "temperature": 0.7, "until": []}, {"until": []}
  asked = [("What?", sampled), ("Who?", sampled), ("What?", sampled), ("What?", sampled | {"temperature": 0.5}),
           ("Why?", greedy), ("Why?", sampled)]

  def texts(name, requests, seed=1):
    return PolicyLM(StandIn(), tmp_path / name, seed).generate_until(prompts(*requests))
  whole = texts("whole", asked)
  assert whole[4] == "The correct answer is (None)" and len(set(whole)) == len(asked)
  assert not set(texts("other", asked, seed=2)) & set(whole) - {whole[4]}
  assert texts("turned", asked[3:] + asked[:3]) == whole[3:] + whole[:3]
  assert texts("stopped", asked[:2]) == whole[:2] and texts("stopped", asked) == whole
  monkeypatch.setattr("policylong.evaluation.shared_work._QUESTIONS", 1)
  assert texts("apart", asked) == whole


def test_chat_messages_become_the_template_s_prompt():
  model = adapter(StandIn())
  history = [{"role": "user", "content": "Who?"}]
  assert model.apply_chat_template(history) == f"[user] Who?{END}[assistant] "
  history.append({"role": "assistant", "content": "I"})
  assert model.apply_chat_template(history, add_generation_prompt=False) == f"[user] Who?{END}[assistant] I"
  refusing = adapter(StandIn(chat_template="{{ raise_exception('no system role') }}"))
  with pytest.raises(UserError, match=r"chat template of stand-in refuses .*no system role"):
    refusing.apply_chat_template(history)


def test_the_tokenizer_s_name_follows_what_it_does():
  names = [adapter(StandIn(**change)).tokenizer_name for change in ({}, {}, {"chat_template": "x"}, {"begin": "<b>"})]
  assert names[0] == names[1] and len(set(names)) == 3


def test_answers_are_kept_exactly_and_not_asked_again(tmp_path):
  first = StandIn(says=lambda prompt: "ä€\x00\"'\\😀\n", window=20)
  values = [(0.1 + 0.2, True), (-np.inf, False)]
  first.loglikelihoods = lambda requests, progress: values
  silent = StandIn(window=20)
  silent.loglikelihoods = silent.generate = None
  for policy in (first, silent):
    model = PolicyLM(policy, tmp_path / "kept")
    assert model.loglikelihood(pairs(("a" * 30, "b"), ("a", "c"))) == values
    assert model.generate_until(prompts(("x", {"until": [], "max_gen_toks": 19}))) == ["ä€\x00\"'\\😀\n"]
    assert model.truncated == {"task": {0}}


def test_a_run_that_was_stopped_asks_only_what_is_left(tmp_path, monkeypatch):
  monkeypatch.setattr("policylong.evaluation.shared_work._QUESTIONS", 2)
  asked = [(f"What {i}?", " a") for i in range(5)]

  class Stopped(StandIn):

    def loglikelihoods(self, requests, progress):
      if len(self.asked) == 4:
        raise KeyboardInterrupt
      return super().loglikelihoods(requests, progress)

  with pytest.raises(KeyboardInterrupt):
    PolicyLM(Stopped(), tmp_path / "kept").loglikelihood(pairs(*asked))
  path = tmp_path / "kept" / "loglikelihood" / "answers-0.jsonl"
  path.write_bytes(path.read_bytes()[:-5])  # killed while writing the fourth
  again = StandIn()
  assert PolicyLM(again, tmp_path / "kept").loglikelihood(pairs(*asked)) == [(-3.0, False)] * 5
  assert [again.tokenizer.decode(context) for context, _ in again.asked] == ["What 3?", "What 4?"]
