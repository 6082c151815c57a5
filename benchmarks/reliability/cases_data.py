"""Hostile corpora, conversations and models."""

import gzip
import io
import json
import pathlib
import random
import struct
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reliability.cases_config import COMMANDS, THINGS, command
from benchmarks.reliability.world import Case, World


def _parquet(**columns) -> bytes:
  buffer = io.BytesIO()
  pq.write_table(pa.table(columns), buffer)
  return buffer.getvalue()


_GOOD = json.dumps({"id": "a", "text": "The survey counted 412 houses."}).encode()
# Files without a single document.
CORPORA = {
  "blank lines": b"\n\n\n",
  "not JSON": b"hello\nworld\n",
  "numbers": b"1\n2\n",
  "lists": b"[]\n[1, 2]\n",
  "no text": b'{"id": 1}\n',
  "text that is a number": b'{"id": 1, "text": 5}\n',
  "null": b'{"id": 1, "text": null}\n',
  "empty text": b'{"id": 1, "text": ""}\n',
  "spaces": b'{"id": 1, "text": " \\n\\t "}\n',
  "half a surrogate": b'{"id": 1, "text": "\\ud800"}\n',
  "invalid UTF-8": b'{"id": 1, "text": "\xff\xfe"}\n',
  "deep": b'{"id": 1, "text": ' + 100_000 * b"[" + b"\n",
  "deep objects": 50_000 * b'{"a":' + b"\n",
  "a huge number": b'{"id": 1, "text": ' + 10_000 * b"9" + b"}\n",
  "NaN": b"NaN\n",
  "half a line": _GOOD[:-5],
  "half a gzip": gzip.compress(_GOOD * 1000)[:40],
  "a gzip's head": b"\x1f\x8b\x08",
  "half a bzip2": b"BZh91AY&SY\0\0",
  "half an xz": b"\xfd7zXZ\0\0\x04",
  "half a Zstandard": b"\x28\xb5\x2f\xfd\0\0",
  "a gzip of noise": gzip.compress(b"\xff" * 99),
  "Parquet's head": b"PAR1",
  "Parquet of zeros": b"PAR1" + bytes(100) + b"PAR1",
  "half a Parquet": _parquet(id=["a"], text=["b"])[:-20],
  "Parquet without text": _parquet(id=["a"], words=["b"]),
  "Parquet of numbers": _parquet(id=["a"], text=[5]),
  "Parquet of nothing": _parquet(id=pa.array([], pa.string()), text=pa.array([], pa.string())),
  "Parquet of nulls": _parquet(id=["a"], text=pa.array([None], pa.string())),
  "half an array": b"[{}, ",
  "an array of numbers": b"[1, 2, 3]",
  "a PDF": b"%PDF-1.7\n" + bytes(200),
  "HTML": b"<html></html>\n",
  "a zip": b"PK\x03\x04" + bytes(100),
  "UTF-16": '{"id": 1, "text": "abc"}\n'.encode("utf-16"),
}
CONVERSATIONS = {
  **{name: data for name, data in CORPORA.items() if "Parquet" not in name},
  "messages that are words": b'{"messages": "hello"}\n',
  "no messages": b'{"messages": []}\n',
  "messages of words": b'{"messages": ["a", "b"]}\n',
  "no role": b'{"messages": [{"content": "a"}]}\n',
  "an unknown role": b'{"messages": [{"role": "king", "content": "a"}]}\n',
  "no content": b'{"messages": [{"role": "user"}, {"role": "assistant"}]}\n',
  "no answer": b'{"messages": [{"role": "user", "content": "a"}]}\n',
  "empty answers": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n',
  "content of numbers": b'{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": 2}]}\n',
  "a conversation of conversations": b'{"messages": [[{"role": "user", "content": "a"}]]}\n',
  "answers too long": json.dumps(
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "word " * 9000}]}
  ).encode()
  + b"\n",
}


def corpora(world: World) -> Iterator[Case]:
  """Files of documents in which there is none, and things that are no files."""
  text = (
    "from tests.small_run import small_config\nimport pathlib\ndef get_config():\n"
    f"  config = small_config(pathlib.Path({str(world.folder)!r}))\n"
    "  source = dict(config.corpus.sources[0])\n  source.update({change})\n"
    "  config.corpus.sources = (source,)\n  config.corpus.cache_dir = {cache!r}\n  return config\n"
  )

  def config_in(folder: pathlib.Path, **change) -> None:
    (folder / "mine.py").write_text(
      text.replace("{change}", repr(change)).replace("{cache!r}", repr(str(folder / "cache")))
    )

  for what, data in CORPORA.items():
    for module, name in (
      ("policylong.score", "input"),
      ("policylong.index", "input"),
      ("policylong.evaluate", "documents"),
    ):
      values = next(values for other, values, _ in COMMANDS if other == module)
      yield Case(
        f"corpus: {what}",
        module,
        command(module, values, **{name: "{folder}/data"}),
        lambda folder, data=data: (folder / "data").write_bytes(data),
      )
    kind = "parquet" if "Parquet" in what else "jsonl"
    if len(data) < 1000:

      def make(folder, data=data, kind=kind):
        (folder / "data").write_bytes(data)
        config_in(folder, kind=kind, path=str(folder / "data"))

      yield Case(f"corpus: {what}", "policylong.main", ("--config={folder}/mine.py", "--workdir={folder}/run"), make)
  for kind in ("jsonl", "parquet", "text", "mds", "tfds"):
    for what, thing in THINGS.items():

      def make(folder, kind=kind, thing=thing):
        thing(folder / "thing")
        config_in(folder, kind=kind, path=str(folder / "thing"))

      yield Case(
        f"corpus of kind {kind}: {what}",
        "policylong.main",
        ("--config={folder}/mine.py", "--workdir={folder}/run"),
        make,
      )
  for what, index in {
    "empty": b"",
    "a list": b"[]",
    "no shards": b'{"version": 2, "shards": []}',
    "noise": b"\xff\0",
    "shards of numbers": b'{"version": 2, "shards": [1]}',
    "another version": b'{"version": 9}',
    "half": b'{"version": 2, "shar',
    "no shard": b'{"version": 2, "shards": [{"raw_data": {"basename": "x", "bytes": 3}, "samples": 1}]}',
  }.items():

    def make(folder, index=index):
      (folder / "mds").mkdir()
      (folder / "mds" / "index.json").write_bytes(index)
      config_in(folder, kind="mds", path=str(folder / "mds"))

    yield Case(f"MDS: {what}", "policylong.main", ("--config={folder}/mine.py", "--workdir={folder}/run"), make)


def conversations(world: World) -> Iterator[Case]:
  """Files of conversations of which nothing can be learnt."""
  del world
  arguments = ("--config={world}/tuning.py", "--workdir={folder}/run", "--config.data.path={folder}/data")
  for what, data in CONVERSATIONS.items():
    yield Case(
      f"conversations: {what}",
      "policylong.sft",
      arguments,
      lambda folder, data=data: (folder / "data").write_bytes(data),
    )
  for what, thing in THINGS.items():
    yield Case(
      f"conversations: {what}", "policylong.sft", arguments, lambda folder, thing=thing: thing(folder / "data")
    )


def models(world: World) -> Iterator[Case]:
  """Folders and files of models with one thing wrong."""
  rng = random.Random(2)
  run = ("policylong.score", command("policylong.score", COMMANDS[2][1], model="{folder}/model"))

  def case(what: str, **files: bytes | None) -> Case:
    return Case(f"model: {what}", *run, lambda folder: world.model_in(folder, **files) and None)

  for name in ("config.json", "tokenizer.json", "model.safetensors"):
    key, data = name.replace(".", "__"), world.bytes_of(name)
    yield case(f"no {name}", **{key: None})
    for what, changed in {
      "empty": b"",
      "half": data[: len(data) // 2],
      "noise": rng.randbytes(1000),
      "zeros": bytes(1000),
      "a list": b"[]",
      "a number": b"7",
      "null": b"null",
      "an empty object": b"{}",
      "deep": 9**5 * b"[",
      "words": b"hello",
      "invalid UTF-8": b'{"a": "\xff"}',
    }.items():
      yield case(f"{name} is {what}", **{key: changed})
    for what, thing in THINGS.items():
      if what not in ("an empty file", "noise", "zeros", "nothing"):

        def make(folder, key=key, name=name, thing=thing):
          thing(world.model_in(folder, **{key: None}) / name)

        yield Case(f"model: {name} is {what}", *run, make)
  described = world.json_of("config.json")
  for field in (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "model_type",
  ):
    for value in (0, -1, 3, 2**40, "many", [], 1.5):
      if (field, value) not in (
        ("max_position_embeddings", 2**40),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", 3),
        ("rms_norm_eps", 2**40),
        ("rms_norm_eps", 1.5),
        ("vocab_size", 3),
      ):
        yield case(f"{field} = {value}", config__json=json.dumps({**described, field: value}).encode())
  for field, value in (
    ("rope_scaling", "yarn"),
    ("rope_scaling", {"rope_type": "none"}),
    ("hidden_act", "gelu"),
    ("rope_parameters", 3),
    ("attention_bias", "perhaps"),
    ("mlp_bias", True),
    ("tie_word_embeddings", "perhaps"),
    ("layer_types", ["mamba"]),
    ("quantization_config", {"bits": 4}),
  ):
    yield case(f"{field} = {value}", config__json=json.dumps({**described, field: value}).encode())
  words = world.json_of("tokenizer.json")
  for field in ("model", "pre_tokenizer", "decoder", "added_tokens", "normalizer"):
    for value in (7, "word", [7], {"type": "none"}):
      yield case(f"tokenizer's {field} = {value}", tokenizer__json=json.dumps({**words, field: value}).encode())
  weights = world.bytes_of("model.safetensors")
  size = struct.unpack("<Q", weights[:8])[0]
  header = json.loads(weights[8 : 8 + size])
  for length in (0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1):
    yield case(f"a header of {length} bytes", model__safetensors=struct.pack("<Q", length) + weights[8:])
  name = next(key for key in header if key != "__metadata__")
  for what, entry in {
    "no dtype": {"shape": [1], "data_offsets": [0, 4]},
    "a dtype": {**header[name], "dtype": "I128"},
    "a shape of words": {**header[name], "shape": ["a"]},
    "a negative shape": {**header[name], "shape": [-1, 3]},
    "another shape": {**header[name], "shape": [3, 3]},
    "offsets beyond": {**header[name], "data_offsets": [0, 2**40]},
    "offsets backwards": {**header[name], "data_offsets": [9, 3]},
    "a number": 7,
    "a huge shape": {**header[name], "shape": [2**40, 2**40]},
  }.items():
    text = json.dumps({**header, name: entry}).encode()
    yield case(f"a tensor with {what}", model__safetensors=struct.pack("<Q", len(text)) + text + weights[8 + size :])
  text = json.dumps({key: value for key, value in header.items() if key != name}).encode()
  yield case("a tensor is missing", model__safetensors=struct.pack("<Q", len(text)) + text + weights[8 + size :])
  text = json.dumps({**header, "one_more": header[name]}).encode()
  yield case("a tensor too many", model__safetensors=struct.pack("<Q", len(text)) + text + weights[8 + size :])
  yield case("an index of words", model__safetensors=None, **{"model__safetensors__index__json": b'{"weight_map": 7}'})
  yield case(
    "an index of nothing", model__safetensors=None, **{"model__safetensors__index__json": b'{"weight_map": {}}'}
  )
  yield case(
    "an index of files elsewhere",
    model__safetensors=None,
    **{"model__safetensors__index__json": json.dumps({"weight_map": {name: "../x"}}).encode()},
  )
  yield from _gguf(run)


def _gguf(run) -> Iterator[Case]:
  """Files that begin like GGUF."""
  head = b"GGUF" + struct.pack("<I", 3)
  text = struct.pack("<Q", 20) + b"general.architecture"
  for what, data in {
    "its first bytes": b"GGUF",
    "another version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "nothing in it": head + struct.pack("<QQ", 0, 0),
    "many tensors": head + struct.pack("<QQ", 2**60, 0),
    "many fields": head + struct.pack("<QQ", 0, 2**60),
    "a long name": head + struct.pack("<QQQ", 0, 1, 2**60),
    "an unknown kind": head + struct.pack("<QQ", 0, 1) + text + struct.pack("<I", 99),
    "half a value": head + struct.pack("<QQ", 0, 1) + text + struct.pack("<I", 8),
    "a long text": head + struct.pack("<QQ", 0, 1) + text + struct.pack("<IQ", 8, 2**50),
    "a long list": head + struct.pack("<QQ", 0, 1) + text + struct.pack("<IIQ", 9, 4, 2**50),
    "another architecture": head + struct.pack("<QQ", 0, 1) + text + struct.pack("<IQ", 8, 5) + b"mamba",
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "a name of noise": head + struct.pack("<QQQ", 0, 1, 4) + b"\xff" * 9,
  }.items():
    yield Case(
      f"GGUF: {what}",
      run[0],
      tuple(word.replace("/model", "/m.gguf") for word in run[1]),
      lambda folder, data=data: (folder / "m.gguf").write_bytes(data),
    )
