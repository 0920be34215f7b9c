"""Tables: JSON lines, parquet, TFDS without TensorFlow, Hugging Face; names of their columns."""

import json
import pathlib
import struct
import sys
import types

import pytest
from tensorflow_datasets import proto

from llm_jax.data import corpus, crawl
from llm_jax.data.documents import Document
from llm_jax.data.readers import tables
from llm_jax.errors import UserError

C4 = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "c4_minimal_tfds"


def read(source, **options):
  lost = []
  return list(crawl.read(source, lost=lost.append, options=crawl.Options(**options))), lost


def json_lines(tmp_path, *lines):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b"\n".join(lines))
  return path


def test_each_bad_line_is_lost_and_the_others_are_read(tmp_path):
  bad = {
    2: (b"{", "want a JSON object"),
    3: (b"[1]", "got list"),
    4: (b'{"txt": "x"}', 'no column "text" (config.reader.text); did you mean "txt"?'),
    5: (b'{"text": 1}', "got int"),
    6: (b'{"text": null}', "got NoneType"),
    7: (b'{"text": "\xff"}', "not UTF-8"),
    8: (b'{"text": "' + b"x" * 200 + b'"}', "over the cap of 150 bytes"),
    9: (b'{"text": ' + b"[" * 100 + b"}", "want a JSON object"),
    10: (b'{"text": ' + b"9" * 120, "want a JSON object"),
  }
  good = b'\xef\xbb\xbf{"text": "one", "id": 0, "url": null}'
  lines = [good, *(line for line, _ in bad.values()), b"", b'{"text": "last"}']
  raws, lost = read(json_lines(tmp_path, *lines), max_bytes=150)
  assert [(r.id, r.url, r.body) for r in raws] == [("0", "", "one"), (raws[1].id, "", "last")]
  assert [x.where for x in lost] == [f"line {n}" for n in bad]
  for x, (_, reason) in zip(lost, bad.values(), strict=True):
    assert reason in x.reason
  with pytest.raises(UserError, match=r"a\.jsonl:2: want a JSON object .*; mend it"):
    list(crawl.read(tmp_path / "a.jsonl", options=crawl.Options(max_bytes=150)))


def test_a_deep_line_is_lost(tmp_path):
  deep = b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
  raws, lost = read(json_lines(tmp_path, deep, b'{"text": "x"}'))
  assert len(raws) == 1 and lost[0].where == "line 1"


def test_columns_of_other_names(tmp_path):
  path = json_lines(tmp_path, b'{"content": "t", "doc": 7, "link": "u", "text": 1}')
  raws, _ = read(path, text="content", id="doc", url="link")
  assert [(r.body, r.id, r.url) for r in raws] == [("t", "7", "u")]
  raws, lost = read(path, text="contents")
  missing = 'no column "contents" (config.reader.text); did you mean "content"?'
  assert not raws and lost[0].reason == missing
  with pytest.raises(UserError) as error:
    list(crawl.read(path, options=crawl.Options(text="contents")))
  assert str(error.value) == f"{path}:1: {missing}; name the one that holds the text"


def test_rows_without_ids_have_their_own(tmp_path):
  (tmp_path / "b.jsonl").write_text('{"text": "same"}\n{"text": "same"}\n')
  (tmp_path / "c.jsonl").write_text('{"text": "same"}\n')
  ids = [r.id for r in crawl.read(tmp_path)]
  assert len(set(ids)) == 3 and ids == [r.id for r in crawl.read(tmp_path)]


@pytest.fixture
def parquet():
  return pytest.importorskip("pyarrow.parquet")


def test_parquet(tmp_path, parquet):
  arrow = pytest.importorskip("pyarrow")
  texts = [f"text {i}" for i in range(100)]
  texts[50] = None
  columns = {"text": arrow.array(texts), "id": arrow.array(range(100))}
  parquet.write_table(arrow.table(columns), tmp_path / "a.parquet", row_group_size=30)
  raws, lost = read(tmp_path)
  assert [r.body for r in raws] == [t for t in texts if t]
  assert raws[-1].id == "99" and lost == [
    crawl.Lost("a.parquet", "row 51", '"text" must be a string, got NoneType')
  ]
  missing = r'no column "body" \(config.reader.text\); there are: id, text; name the one'
  with pytest.raises(UserError, match=missing):
    list(crawl.read(tmp_path, options=crawl.Options(text="body")))


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "string_view", "dictionary"])
def test_strings_of_every_kind(tmp_path, parquet, kind):
  arrow = pytest.importorskip("pyarrow")
  texts = ["a", "ü", "a"]
  if kind == "dictionary":
    array = arrow.array(texts).dictionary_encode()
  elif kind == "binary":
    array = arrow.array([t.encode() for t in texts])
  else:
    array = arrow.array(texts, getattr(arrow, kind)())
  parquet.write_table(arrow.table({"text": array}), tmp_path / "a.parquet")
  assert [r.body for r in crawl.read(tmp_path)] == texts


def test_parquet_that_is_broken_or_a_bomb(tmp_path, parquet):
  arrow = pytest.importorskip("pyarrow")
  path = tmp_path / "a.parquet"
  bad = arrow.array([b"good", b"\xff", b"x" * 99])
  parquet.write_table(arrow.table({"text": bad}), path)
  raws, lost = read(path, max_bytes=50)
  assert [r.body for r in raws] == ["good"]
  assert [x.where for x in lost] == ["row 2", "row 3"]
  path.write_bytes(path.read_bytes()[:-20])
  raws, lost = read(path)
  assert not raws and lost[0].reason.endswith("the rest of the file is lost")
  huge = arrow.array(["x" * 9_000_000 + str(i) for i in range(9)])
  options = {"compression": "gzip", "use_dictionary": False, "row_group_size": 8}
  parquet.write_table(arrow.table({"text": huge}), path, **options)
  raws, lost = read(path)
  assert len(raws) == 1 and lost[0].where == "rows 1 to 8" and "200 times" in lost[0].reason
  assert len(read(path, max_ratio=2000)[0]) == 9


def test_a_damaged_page_costs_its_row_group(tmp_path, parquet):
  arrow = pytest.importorskip("pyarrow")
  path = tmp_path / "a.parquet"
  table = arrow.table({"text": [f"{i} " * 500 for i in range(40)]})
  options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
  parquet.write_table(table, path, row_group_size=10, **options)
  data = bytearray(path.read_bytes())
  data[data.index(b"15 15")] ^= 1
  path.write_bytes(data)
  raws, lost = read(path)
  assert len(raws) == 30 and [x.where for x in lost] == ["rows 11 to 20"]


def test_a_prepared_data_set_is_read_without_tensorflow(tmp_path):
  documents = [Document(f"d{i}", f"täxt {i}", f"u{i}") for i in range(50)]
  corpus.write(tmp_path, {"train": documents[:40], "validation": documents[40:]})
  place = f"tfds_dir:{tmp_path}/corpus/1.0.0"
  raws = list(crawl.read(place))
  assert [(r.id, r.body, r.url) for r in raws] == [(d.id, d.text, d.url) for d in documents[:40]]
  assert not raws[0].html and "train" in raws[0].source
  assert [r.id for r in crawl.read(f"{place}#validation")] == [d.id for d in documents[40:]]
  assert "tensorflow" not in sys.modules
  with pytest.raises(UserError, match='no split "test"; there are: train, validation'):
    crawl.files(f"{place}#test")
  (name,) = crawl.files(place)
  name.unlink()
  with pytest.raises(UserError, match=r"array_record.* is missing; prepare"):
    crawl.files(place)


def test_data_sets_are_found_by_name(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  corpus.write(tmp_path, {"train": [Document("a", "old")]})
  (tmp_path / "corpus" / "1.0.0").rename(tmp_path / "corpus" / "0.9.0")
  (tmp_path / "more").mkdir()
  corpus.write(tmp_path / "more", {"train": [Document("a", "new")]})
  (tmp_path / "more" / "corpus" / "1.0.0").rename(tmp_path / "corpus" / "0.10.0")
  assert [r.body for r in crawl.read("tfds:corpus")] == ["new"]
  assert [r.body for r in crawl.read("tfds:corpus:0.9.0")] == ["old"]
  with pytest.raises(UserError, match="tfds:c4/en: not in .*; run `tfds build c4/en"):
    crawl.files("tfds:c4/en")
  (tmp_path / "corpus").rename(tmp_path / "more" / "en")
  with pytest.raises(UserError, match="tfds:more: say which: tfds:more/en"):
    crawl.files("tfds:more")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"splits": [{"name": 1}]}'])
def test_a_folder_that_is_no_data_set_says_so(tmp_path, text):
  with pytest.raises(UserError, match="no description of a prepared TFDS data set"):
    crawl.files(f"tfds_dir:{tmp_path}")
  (tmp_path / "dataset_info.json").write_text(text)
  with pytest.raises(UserError):
    crawl.files(f"tfds_dir:{tmp_path}")


def test_files_outside_the_folder_are_not_named(tmp_path):
  split = {"name": "train", "shardLengths": ["1"], "filepathTemplate": "../x.tfrecord-0-of-1"}
  (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "x", "splits": [split]}))
  with pytest.raises(UserError, match="want files of array_record, tfrecord or parquet"):
    crawl.files(f"tfds_dir:{tmp_path}")


def tfrecord(*records):
  out = b""
  for data in records:
    head = struct.pack("<Q", len(data))
    out += head + struct.pack("<I", tables._checksum(head))
    out += data + struct.pack("<I", tables._checksum(data))
  return out


def example(**columns):
  made = proto.tf_example_pb2.Example()
  for key, value in columns.items():
    feature = made.features.feature[key]
    values = feature.int64_list if isinstance(value, int) else feature.bytes_list
    values.value.append(value)
  return made.SerializeToString()


def test_the_checksum_is_the_one_of_its_definition():
  # RFC 3720, B.4: CRC-32C of 32 zeros is 8A9136AA; TFRecord rotates by 15 bits and adds.
  crc = 0x8A9136AA
  assert tables._checksum(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_tfrecord_and_what_can_break_in_it(tmp_path):
  path = tmp_path / "x-train.tfrecord-00000-of-00001"
  records = [example(text=b"t%d" % i, id=i) for i in range(5)]
  whole = tfrecord(*records)
  path.write_bytes(whole)
  assert [(r.body, r.id) for r in crawl.read(path)] == [(f"t{i}", str(i)) for i in range(5)]
  size = len(tfrecord(records[0]))
  flipped = bytearray(whole)
  flipped[2 * size + 15] ^= 1
  path.write_bytes(flipped)
  raws, lost = read(path)
  assert [r.id for r in raws] == list("0134")
  assert [(x.where, x.reason) for x in lost] == [("row 3", "its checksum does not match")]
  flipped[2 * size] ^= 1  # Now its length.
  for data in (bytes(flipped), whole[: 2 * size + 20], whole[: 2 * size + 5]):
    path.write_bytes(data)
    raws, lost = read(path)
    assert [r.id for r in raws] == list("01")
    assert len(lost) == 1 and lost[0].reason.endswith("the rest of the file is lost")
  path.write_bytes(tfrecord(b"\xff\xff", example(other=b"x"), example(text=b"x" * 99), *records))
  raws, lost = read(path, max_bytes=60)
  assert len(raws) == 5 and [x.where for x in lost] == ["row 1", "row 2", "row 3"]


def test_an_array_record_that_is_none(tmp_path):
  path = tmp_path / "x-train.array_record-00000-of-00001"
  path.write_bytes(b"nothing of the kind" * 100)
  raws, lost = read(path)
  assert not raws and "no ArrayRecord" in lost[0].reason


def test_c4_as_tfds_and_as_parquet():
  if not C4.exists():
    pytest.skip("needs the folder c4_minimal_tfds beside the repository (../shared/data)")
  place = C4 / "c4" / "en" / "3.1.0"
  validation = [r.body for r in crawl.read(f"tfds_dir:{place}#validation")]
  assert len(validation) == 200 == len(set(validation))
  assert sum(1 for _ in crawl.read(f"tfds_dir:{place}")) == 1000
  assert len(crawl.files(f"tfds_dir:{place}")) == 8
  shards = [place / f"c4-validation.array_record-0000{i}-of-00002" for i in range(2)]
  raws = [r for shard in shards for r in crawl.read_file(shard, shard.name)]
  assert {r.body for r in raws} == set(validation)
  assert all(r.url.startswith("http") for r in raws)
  assert sum(1 for _ in crawl.read(C4 / "hf" / "c4")) == 240


def hub(monkeypatch, rows, version="4.1.0", error=None):
  """Puts a stand-in for `datasets` in place; returns the calls that it gets."""
  calls = []

  def load_dataset(*args, **keywords):
    calls.append((args, keywords))
    if error:
      raise error
    return rows()

  module = types.SimpleNamespace(load_dataset=load_dataset, __version__=version)
  monkeypatch.setitem(sys.modules, "datasets", module)
  return calls


def test_hugging_face_is_streamed_and_never_trusted(monkeypatch):
  def rows():
    yield {"text": "a", "id": 1}
    yield {"text": None}
    raise OSError("no network")

  calls = hub(monkeypatch, rows)
  raws, lost = read("hf:org/name/en#test")
  assert [(r.id, r.body, r.source) for r in raws] == [("1", "a", "hf:org/name/en#test")]
  assert [x.where for x in lost] == ["row 2", "row 3"] and "no network" in lost[1].reason
  assert calls == [(("org/name", "en"), {"split": "test", "streaming": True})]
  assert crawl.files("hf:org/name") == []
  calls = hub(monkeypatch, rows, version="2.19.0")
  list(crawl.read("hf:./place", lost=lost.append))
  refuse = {"split": "train", "streaming": True, "trust_remote_code": False}
  assert calls == [(("./place", None), refuse)]


def test_hugging_face_says_what_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(UserError, match='hf:org/name: needs the package "datasets"; pip install'):
    list(crawl.read("hf:org/name"))
  hub(monkeypatch, list, error=FileNotFoundError("no such data set\nmore"))
  with pytest.raises(UserError, match="hf:org/name: FileNotFoundError: no such data set$"):
    list(crawl.read("hf:org/name"))
