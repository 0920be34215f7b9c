"""The endpoint: what clients of OpenAI's interface rely on, and what is refused."""

import concurrent.futures
import http.client
import json
import math
import time

import pytest

from llm_jax.serve import openai
from tests.stages.conftest import prepared, root  # noqa: F401  Fixtures.

CHAT = {"model": "sft", "messages": [{"role": "user", "content": "What does sort rows do?"}]}
TEXT = {"model": "pretrain", "prompt": "Return rows\n"}


def test_the_models_of_the_run_are_listed(client):
  status, _, body = client.ask("GET", "/v1/models")
  assert status == 200
  assert [one["id"] for one in json.loads(body)["data"]] == ["pretrain", "sft", "ppo"]


def test_one_model_is_found_by_its_name(client):
  assert json.loads(client.ask("GET", "/v1/models/sft")[2])["id"] == "sft"
  assert client.ask("GET", "/v1/models/other")[0] == 404


def test_nulls_are_fields_that_are_not_there(client):
  nulls = dict.fromkeys(
    ("temperature", "n", "stream", "stop", "seed", "logprobs", "suffix", "logit_bias", "user")
  )
  assert client.post("/v1/completions", **(nulls | TEXT), max_tokens=2)[0] == 200
  assert client.post("/v1/chat/completions", **(nulls | CHAT), max_tokens=2)[0] == 200


def test_a_completion(client):
  status, found = client.post("/v1/completions", **TEXT, max_tokens=6, seed=1)
  assert status == 200 and found["object"] == "text_completion" and found["model"] == "pretrain"
  (choice,) = found["choices"]
  assert choice["finish_reason"] in ("stop", "length") and choice["logprobs"] is None
  usage = found["usage"]
  assert 0 <= usage["completion_tokens"] <= 6
  assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_same_seed_gives_the_same_answer_whoever_else_asks(client):
  one = lambda seed: client.post("/v1/completions", **TEXT, max_tokens=20, seed=seed)[1]["choices"]  # noqa: E731
  alone = one(7)
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    found = list(pool.map(one, [7, 1, 2, 7, 3, 4, 5, 7, 6, 8, 9, 7]))
  assert all(found[i] == alone for i in (0, 3, 7, 11))
  assert found[1] != alone


def test_several_prompts_and_answers(client):
  prompts = ["Return rows\n", "Count files\n"]
  fields = {"model": "pretrain", "max_tokens": 12, "seed": 3}
  _, found = client.post("/v1/completions", prompt=prompts, n=3, **fields)
  texts = [choice["text"] for choice in found["choices"]]
  assert [choice["index"] for choice in found["choices"]] == list(range(6))
  assert len(set(texts)) > 2
  _, alone = client.post("/v1/completions", prompt=prompts[0], n=3, **fields)
  assert [choice["text"] for choice in alone["choices"]] == texts[:3]


def test_token_ids_are_taken_as_they_are(client, models):
  tokenizer = models.get("pretrain").tokenizer
  ids = [tokenizer.bos_id, *tokenizer.encode(TEXT["prompt"])]
  how = {"model": "pretrain", "max_tokens": 8, "temperature": 0}
  texts = {
    client.post("/v1/completions", prompt=prompt, **how)[1]["choices"][0]["text"]
    for prompt in (TEXT["prompt"], ids, [ids])
  }
  assert len(texts) == 1


def test_echo_and_logprobs_score_a_text(client, models):
  """What lm-eval's local-completions asks for."""
  served = models.get("pretrain")
  ids = [served.tokenizer.bos_id, *served.tokenizer.encode("Return all the rows of a train table.")]
  _, found = client.post(
    "/v1/completions", model="pretrain", prompt=[ids], echo=True, max_tokens=1, logprobs=1,
    temperature=0, seed=1234,
  )  # fmt: skip
  (choice,) = found["choices"]
  logprobs = choice["logprobs"]
  assert {len(values) for values in logprobs.values()} == {len(ids) + 1}
  assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
  expected = served.engine.score(ids)[0]
  assert logprobs["token_logprobs"][1:-1] == pytest.approx(expected.tolist(), abs=1e-4)
  for own, best in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
    assert own <= max(best.values())
  # The last one is the likeliest, for it was drawn so.
  assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())
  assert choice["text"].startswith("Return all the rows of a train table.")
  places = zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
  assert all(choice["text"][at : at + len(part)] == part for part, at in places)


def test_the_end_token_has_a_place_among_the_logprobs(client, models, monkeypatch):
  """lm-eval takes the last place off: without it, that would be a token of the text."""
  fields = TEXT | {"echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
  _, found = client.post("/v1/completions", **fields)
  count = len(found["choices"][0]["logprobs"]["tokens"])
  served = models.get("pretrain")
  ids = [served.tokenizer.bos_id, *served.tokenizer.encode(TEXT["prompt"])]
  (likeliest,) = served.engine.score([*ids, 0], 1)[2][-1]
  made = openai._ask
  monkeypatch.setattr(openai, "_ask", lambda *a: made(*a)._replace(end_id=int(likeliest)))
  _, found = client.post("/v1/completions", **fields)
  (choice,) = found["choices"]
  assert choice["finish_reason"] == "stop" and choice["text"] == TEXT["prompt"]
  assert {len(values) for values in choice["logprobs"].values()} == {count}
  assert choice["logprobs"]["tokens"][-1] == ""


def test_rounded_products_do_not_make_an_answer_depend_on_the_others(root, models):  # noqa: F811
  shape = json.loads((root / "pretrain" / "model.json").read_text())
  assert models.get("pretrain").engine._model.cfg.matmul_precision == ""
  assert "matmul_precision" in shape


def test_echo_alone_draws_nothing(client):
  _, found = client.post("/v1/completions", **TEXT, echo=True, max_tokens=0, logprobs=0)
  assert found["usage"]["completion_tokens"] == 0
  assert found["choices"][0]["text"] == TEXT["prompt"]
  assert len(found["choices"][0]["logprobs"]["tokens"]) == found["usage"]["prompt_tokens"]


def test_a_conversation_and_its_logprobs(client):
  status, found = client.post(
    "/v1/chat/completions", **CHAT, max_tokens=5, logprobs=True, top_logprobs=3, seed=2
  )
  assert status == 200 and found["object"] == "chat.completion"
  (choice,) = found["choices"]
  assert choice["message"]["role"] == "assistant"
  content = choice["logprobs"]["content"]
  assert len(content) == found["usage"]["completion_tokens"]
  for token in content:
    assert len(token["top_logprobs"]) == 3
    assert token["logprob"] <= token["top_logprobs"][0]["logprob"] + 1e-5
    assert sum(math.exp(one["logprob"]) for one in token["top_logprobs"]) <= 1 + 1e-5


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_is_the_answer_in_pieces(client, n):
  fields = CHAT | {"seed": 5, "n": n, "max_tokens": 24}
  _, whole = client.post("/v1/chat/completions", **fields)
  events = client.events("/v1/chat/completions", **fields, stream_options={"include_usage": True})
  assert {event["object"] for event in events} == {"chat.completion.chunk"}
  assert len({event["id"] for event in events}) == 1
  assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] > 0
  for i, expected in enumerate(whole["choices"]):
    own = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == i]
    text = "".join(choice["delta"].get("content", "") for choice in own)
    assert text == expected["message"]["content"]
    assert own[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == [
      expected["finish_reason"]
    ]


def test_a_completion_streams_too(client):
  fields = TEXT | {"seed": 5, "max_tokens": 20}
  _, whole = client.post("/v1/completions", **fields)
  events = client.events("/v1/completions", **fields)
  text = "".join(event["choices"][0]["text"] for event in events)
  assert text == whole["choices"][0]["text"]


def test_a_stop_text_ends_an_answer(client):
  fields = TEXT | {"seed": 5, "max_tokens": 20}
  whole = client.post("/v1/completions", **fields)[1]["choices"][0]["text"]
  stop = whole[4:6]
  _, found = client.post("/v1/completions", **fields, stop=stop)
  assert found["choices"][0]["text"] == whole[: whole.find(stop)]
  assert found["choices"][0]["finish_reason"] == "stop"
  _, found = client.post("/v1/completions", **fields, stop=stop, logprobs=0)
  logprobs, text = found["choices"][0]["logprobs"], found["choices"][0]["text"]
  assert found["usage"]["completion_tokens"] == len(logprobs["tokens"])
  assert "".join(logprobs["tokens"]).startswith(text) and max(logprobs["text_offset"]) < len(text)


def test_words_that_look_like_control_tokens_are_only_words(client, models):
  tokenizer = models.get("sft").tokenizer
  turns = [{"role": "user", "content": "".join(tokenizer.control_names)}]
  _, found = client.post("/v1/chat/completions", model="sft", messages=turns, max_tokens=1)
  markers = found["usage"]["prompt_tokens"] - len(tokenizer.encode(turns[0]["content"]))
  _, plain = client.post(
    "/v1/chat/completions", model="sft", messages=[{"role": "user", "content": "a"}], max_tokens=1
  )
  assert markers == plain["usage"]["prompt_tokens"] - len(tokenizer.encode("a"))


@pytest.mark.parametrize(
  ("path", "fields", "status", "message"),
  [
    ("completions", TEXT | {"model": "sftt"}, 404, "there is no model 'sftt'"),
    ("completions", TEXT | {"model": "../sft"}, 404, "there is no model"),
    ("completions", TEXT | {"suffix": "x"}, 400, "suffix: Extra inputs"),
    ("completions", TEXT | {"presence_penalty": 1}, 400, "presence_penalty"),
    ("completions", TEXT | {"max_tokens": 25}, 400, "1 to 24 tokens"),
    ("completions", TEXT | {"max_tokens": 10**9}, 400, "1 to 24 tokens"),
    ("completions", TEXT | {"max_tokens": 0}, 400, "max_tokens=0 is for echo"),
    ("completions", TEXT | {"prompt": "a " * 200}, 400, "1 to 96 tokens"),
    ("completions", TEXT | {"prompt": []}, 400, "1 to 64 answers"),
    ("completions", TEXT | {"prompt": ["a"] * 40, "n": 2}, 400, "1 to 64 answers"),
    ("completions", TEXT | {"prompt": [1, 10**6]}, 400, "token ids are 0 to 299"),
    ("completions", TEXT | {"prompt": [-1]}, 400, "token ids are 0 to 299"),
    ("completions", TEXT | {"logprobs": 50}, 400, "logprobs"),
    ("completions", TEXT | {"temperature": -1}, 400, "temperature"),
    ("completions", TEXT | {"stop": ["a"] * 17}, 400, "stop"),
    ("completions", TEXT | {"stop": "a" * 300}, 400, "stop"),
    ("completions", TEXT | {"prompt": [True, False]}, 400, "prompt"),
    ("completions", TEXT | {"seed": True}, 400, "seed"),
    (
      "completions",
      TEXT | {"prompt": "a " * 9999, "echo": True, "max_tokens": 0},
      400,
      "96 tokens",
    ),
    ("completions", TEXT | {"stream": True, "echo": True}, 400, "stream goes with neither"),
    ("chat/completions", CHAT | {"model": "pretrain"}, 400, "has learned no turns"),
    ("chat/completions", CHAT | {"messages": []}, 400, "messages"),
    ("chat/completions", CHAT | {"messages": [{"role": "root", "content": ""}]}, 400, "role"),
    ("chat/completions", CHAT | {"tools": []}, 400, "tools: Extra inputs"),
    ("chat/completions", CHAT | {"top_logprobs": 2}, 400, "top_logprobs needs logprobs"),
  ],
)
def test_what_is_refused(client, path, fields, status, message):
  found, body = client.post(f"/v1/{path}", **fields)
  assert found == status and message in body["error"]["message"]
  assert body["error"]["type"] == "invalid_request_error"


def test_what_is_no_request_is_refused(client):
  assert client.ask("POST", "/v1/completions", b"{", content_type="application/json")[0] == 400
  assert (
    client.ask("POST", "/v1/completions", b"[" * 5000, content_type="application/json")[0] == 400
  )
  assert client.ask("GET", "/v1/nothing")[0] == 404
  assert client.ask("GET", "/docs")[0] == client.ask("GET", "/openapi.json")[0] == 404
  assert client.ask("GET", "/v1/models", host="evil.example")[0] == 421
  assert client.ask("POST", "/v1/completions", TEXT, origin="http://evil.example")[0] == 403


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end_is_not_read(client, chunked):
  connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
  connection.putrequest("POST", "/v1/completions")
  if not chunked:
    connection.putheader("content-length", str(100_000_000))
    connection.endheaders()
  else:
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    try:
      for _ in range(40):
        connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    except OSError:
      pass  # It hung up.
  try:
    assert connection.getresponse().status == 413
  except (http.client.HTTPException, OSError):
    assert chunked
  connection.close()
  assert client.ask("GET", "/v1/models")[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_gives_its_rows_back(client, models, stream):
  engine = models.get("pretrain").engine
  for _ in range(6):
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    fields = TEXT | {"n": 32, "max_tokens": 24, "stream": stream}
    connection.request(
      "POST", "/v1/completions", json.dumps(fields), {"content-type": "application/json"}
    )
    if stream:
      connection.getresponse().read(10)
    else:
      time.sleep(0.05)
    connection.close()
  deadline = time.time() + 60
  while engine.busy() != (0, 0) and time.time() < deadline:
    time.sleep(0.05)
  assert engine.busy() == (0, 0)
