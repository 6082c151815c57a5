import bz2
import gzip
import json
import lzma

import numpy as np
import pytest

from policylong.errors import UserError
from policylong.prepare.benchmarks import load, names_of
from policylong.prepare.words import hash_words
from tests.prepare import brute_force
from tests.prepare.conftest import make_texts


def held(benchmarks, texts):
  """Of each text the places of the benchmarks that it holds something of."""
  bits = load(list(map(str, benchmarks))).contaminated(hash_words(texts))
  return [[i for i in range(len(benchmarks)) if int(bit) >> i & 1] for bit in bits]


def test_thirteen_words_of_any_text_of_a_benchmark_and_no_fewer(tmp_path):
  rng = np.random.default_rng(0)
  asked = [" ".join(f"v{word}" for word in rng.integers(0, 30, 40)) for _ in range(30)]
  with open(tmp_path / "asked.jsonl", "w") as file:
    file.writelines(json.dumps({"id": i, "context": text}) + "\n" for i, text in enumerate(asked))
  texts = make_texts(300, seed=1, length=20)
  for i in range(0, 300, 3):  # parts of 9 to 17 words, in the middle of a text
    words, part = texts[i].split(), brute_force.words(asked[i % 30])
    start = rng.integers(0, 20)
    texts[i] = " ".join([*words[:5], *part[start:start + 9 + i % 9], *words[5:]])
  expected = [brute_force.contaminated(text, asked) for text in texts]
  assert [bool(found) for found in held([tmp_path / "asked.jsonl"], texts)] == expected
  assert 30 < sum(expected) < 70


def test_a_short_question_counts_where_all_of_it_stands_and_a_shorter_one_never(tmp_path):
  path = tmp_path / "asked.json"
  path.write_text(json.dumps({"data": [{"question": "Who was the first person that ever walked there?",
                                        "answer": "one two three four five six seven eight nine ten"},
                                       {"question": "Who was it then?"}]}, indent=1))
  texts = ["it is asked: who was the FIRST person, that ever walked there", "the first person that ever walked there",
           "one two three four five six seven eight nine ten", "who was it then"]
  assert held([path], texts) == [[0], [], [], []]


HINDI = "भारत की राजधानी क्या है"
# Nine words, and the same with another vowel sign in the fourth.
NINE = "भारत के पहले प्रधान मंत्री का नाम क्या था", "भारत के पहले प्रधान मंत्रा का नाम क्या था"
OFFICE, BANGKOK = "中华人民共和国国务院办公厅", "กรุงเทพมหานคร"
CHINESE = "昨天下午三点钟他在北京大学图书馆门前遇见了多年未见的老朋友"  # 29 letters
# 24 letters with their marks, of 32 code points: a question of eight words.
THAI = "ใครเป็นผู้ประพันธ์เพลงชาติไทยนี้"


@pytest.mark.parametrize(("asked", "text", "held_"), [
    ({"question": HINDI + "?"}, "कल पूछा: भारत का राजधानी क्यों है, और कुछ", False),  # five words, and others
    ({"question": HINDI + "?"}, HINDI, False),
    ({"question": NINE[0] + "?"}, f"कल पूछा: {NINE[0]}, और कुछ", True),
    ({"question": NINE[0] + "?"}, f"कल पूछा: {NINE[1]}, और कुछ", False),
    ({"question": "İstanbul ne zaman fethedildi ve kim tarafından yönetildi"},
     "istanbul ne zaman fethedildi ve kim tarafından yönetildi", True),
    ({"context": f"{OFFICE}发布通知"}, f"记者从{OFFICE}获悉", False),  # one name of 13 letters
    ({"context": CHINESE}, f"他说：{CHINESE[:13]}，{CHINESE[13:26]}。", True),  # 26 letters
    ({"context": CHINESE}, f"他说：{CHINESE[:25]}。", False),
    ({"question": CHINESE[:16] + "？"}, f"问：{CHINESE[:16]}", True),  # eight words, all of it
    ({"question": CHINESE[:16] + "？"}, f"问：{CHINESE[:15]}", False),
    ({"question": CHINESE[:15] + "？"}, f"问：{CHINESE[:15]}", False),
    ({"question": CHINESE[:16] + "NBA"}, f"问：{CHINESE[:16]}nba 2", True),  # nine
    ({"question": CHINESE[:17]}, "as plain words say and no other than these do", False),  # 8.5, and none so long
    ({"context": BANGKOK}, f"ใน{BANGKOK}", False),
    ({"context": BANGKOK + THAI + "พ"}, f"ถาม{BANGKOK} {THAI}พ", False),  # 12 + 24 + 1 letters
    ({"context": BANGKOK + THAI + "พศก"}, f"ถาม{BANGKOK} {THAI}พศก", True),
    ({"question": THAI}, f"ถาม {THAI}", True), ({"question": THAI[2:]}, f"ถาม {THAI}", False)])
def test_thirteen_words_are_so_many_in_every_script(tmp_path, asked, text, held_):
  (tmp_path / "asked.jsonl").write_text(json.dumps(asked))
  with open(tmp_path / "asked.jsonl", "a") as file:  # which alone would be refused if its question is too short
    file.write("\n" + json.dumps({"context": " ".join(f"v{i}" for i in range(13))}))
  assert held([tmp_path / "asked.jsonl"], [text, "of another script", OFFICE]) == [[0] if held_ else [], [], []]


def test_runs_of_mixed_scripts_are_found_as_by_comparing_all(tmp_path):
  rng = np.random.default_rng(7)
  alphabet = ["a ", "b ", "中", "文", "ก", "กุ"]
  asked = ["".join(rng.choice(alphabet, 60)) for _ in range(12)]
  with open(tmp_path / "asked.jsonl", "w") as file:
    file.writelines(json.dumps({"context": text}) + "\n" for text in asked)
  texts = []
  for i in range(120):
    letters = brute_force.words(asked[i % 12])
    start, length = rng.integers(0, 30), rng.integers(14, 32)
    texts.append("zz " + " ".join(letters[start:start + length]) + "".join(rng.choice(alphabet, 10)))
  expected = [brute_force.contaminated(text, asked) for text in texts]
  assert [bool(found) for found in held([tmp_path / "asked.jsonl"], texts)] == expected
  assert 20 < sum(expected) < 100


def test_every_form_of_a_file_and_each_benchmark_by_its_bit(tmp_path):
  texts = [" ".join(f"{letter}{i}" for i in range(15)) for letter in "abcdef"]
  (tmp_path / "a.txt").write_text(f"{texts[0]}\n\nother")
  with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
    file.write(json.dumps({"turns": [{"content": texts[1]}]}))
  words = texts[2].split()
  (tmp_path / "c.json").write_text(json.dumps([{"context": [["title", [" ".join(words[:7]), " ".join(words[7:])]]]}]))
  (tmp_path / "data.json").write_text(json.dumps([{"context": texts[3], "question": "?"}, {"context": texts[0]}]))
  folder = tmp_path / "ruler" / "long_context_eval" / "data" / "synthetic" / "json"
  folder.mkdir(parents=True)
  (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": texts[4]}]}]}))
  (folder / "hotpotqa.json").write_text(json.dumps([{"context": [["title", [texts[5]]]]}]))
  given = [tmp_path / "a.txt", tmp_path / "b.jsonl.gz", tmp_path / "c.json", f"longbench2={tmp_path}",
           f"ruler={tmp_path / 'ruler'}"]
  assert held(given, texts) == [[0, 3], [1], [2], [3], [4], [4]]
  assert names_of(list(map(str, given))) == ["a.txt", "b.jsonl.gz", "c.json", "longbench2", "ruler"]


def test_files_of_one_name_are_told_by_their_folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert names_of(["gsm8k/test.jsonl", "math/test.jsonl", "a.txt", "ruler"]) == [
      "gsm8k/test.jsonl", "math/test.jsonl", "a.txt", "ruler"]
  assert names_of(["/x/b/1/t", "/y/b/1/t", "/b/2/t", "/t"]) == ["x/b/1/t", "y/b/1/t", "2/t", "/t"]
  assert names_of(["ruler", "/x/ruler", "longbench2=/x/ruler"]) == ["ruler", "x/ruler", "longbench2"]
  for twice, said in ((["a/t", "b", "a/../a/t"], f"is {tmp_path}/a/t more"), (["ruler", "ruler=/x"], "is ruler more")):
    with pytest.raises(UserError, match=said):
      names_of(twice)
  asked = {name: " ".join(f"{name}{i}" for i in range(13)) for name in ("gsm8k", "math")}
  for name, text in asked.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / "test.jsonl").write_text(json.dumps({"question": text}))
  assert held([f"{name}/test.jsonl" for name in asked], list(asked.values())) == [[0], [1]]


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("written", [
    lambda rows: json.dumps(rows, indent=2), lambda rows: json.dumps(rows), lambda rows: json.dumps({"data": rows}),
    lambda rows: json.dumps({"data": rows}, indent=2), lambda rows: "\n".join(map(json.dumps, rows)),
    lambda rows: json.dumps([*rows, "and a text"]), lambda rows: json.dumps(["a text", *rows], indent=1)])
def test_json_is_read_however_it_is_written(tmp_path, written, mark, packed):
  texts = [" ".join(f"{letter}{i}" for i in range(13)) for letter in "ab"]
  (tmp_path / "asked").write_bytes(packed((mark + written([{"question": text} for text in texts])).encode()))
  assert held([tmp_path / "asked"], texts) == [[0], [0]]


def test_rulers_own_questions_are_found(material):
  squad = json.loads((material / "ruler/long_context_eval/data/synthetic/json/squad.json").read_text())
  paragraph = squad["data"][3]["paragraphs"][2]
  texts = [f"A page. {paragraph['context']}", *make_texts(3, seed=5),
           f"They ask: {max((qa['question'] for qa in paragraph['qas']), key=len)}"]
  assert held([f"ruler={material / 'ruler'}"], texts) == [[0], [], [], [], [0]]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("absent.jsonl", None, "absent.jsonl does not exist; wanted is ruler, longbench2, or a file"),
    ("broken.json", "{", "not JSON"), ("broken.jsonl", '{"question": "a"}\n{"question":\n', "record 2 is not JSON"),
    ("empty.jsonl", '{"question": "too short"}', "holds no text of 13 words"),
    ("longbench2", None, "none.json does not exist"), ("longbench2", "{", "none.json is not JSON"),
    ("deep.json", "[" * 100_000, "not JSON"), ("other.json", "7", "record 1 is not a JSON object")])
def test_what_cannot_be_read_is_a_sentence(tmp_path, name, content, said):
  if content is not None:
    (tmp_path / ("none.json" if name == "longbench2" else name)).write_text(content)
  given = f"longbench2={tmp_path / 'none.json'}" if name == "longbench2" else str(tmp_path / name)
  with pytest.raises(UserError, match=said):
    load([given])


def test_a_missing_file_is_no_link_and_a_link_to_one_is(tmp_path):
  (tmp_path / "link.jsonl").symlink_to(tmp_path / "absent.jsonl")
  with pytest.raises(UserError, match=r"link\.jsonl is a link to a file that does not exist"):
    load([str(tmp_path / "link.jsonl")])


def test_without_a_benchmark_nothing_is_contaminated():
  assert held([], make_texts(3, seed=0)) == [[], [], []]
