"""Judges: bias of place goes out exactly, letters by log-probs, endpoints that fail or speak."""

import contextlib
import http.server
import json
import threading

import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import principles
from llm_jax.data.preferences import Answer
from llm_jax.errors import UserError
from llm_jax.stages import endpoint, judge, rewards, runs
from llm_jax.train import parallel

PLACE = parallel.make(config.Mesh())
CONSTITUTION = principles.read("configs/data/principles.json")
PROMPT = [{"role": "user", "content": "Why?"}]
KEY = "k-123456789"


def shorter(questions):
  """Prefers the shorter answer, with a taste for the letter A."""
  found = []
  for text in questions:
    a, b = text.split("(A) ", 1)[1].split("\n\n(B) ", 1)
    b = b.rsplit("\n\n", 1)[0]
    found.append([0.3 + 0.1 * (len(b) - len(a)), 0.0])
  return np.array(found)


def failing_once(calls):
  """`shorter`, that notes in `calls` how much it is asked, and fails at the second call."""

  def asks(questions):
    calls.append(len(questions))
    if len(calls) == 2:
      raise UserError("the endpoint is gone")
    return shorter(questions)

  return asks


def compared(asks, pairs, drawn=2):
  by = [principles.draw(CONSTITUTION, drawn, i) for i in range(len(pairs))]
  return judge.compare(asks, [PROMPT] * len(pairs), pairs, by)


@pytest.mark.parametrize("bias", [-3.0, 0.1, 2.0, np.inf])
def test_a_judge_that_looks_at_the_place_alone_says_one_half(bias):
  verdicts = compared(lambda questions: np.array([[bias, 0.0]] * len(questions)), [("x", "yy")] * 3)
  np.testing.assert_array_equal(verdicts.first, 0.5)
  np.testing.assert_array_equal(verdicts.changed, 1.0)
  np.testing.assert_allclose(verdicts.letter, 1 / (1 + np.exp(-bias)))


def test_what_an_answer_is_worth_does_not_depend_on_where_it_stands():
  pairs = [("short", "a longer one"), ("a longer one", "short"), ("a", "b")]
  verdicts = compared(shorter, pairs)
  assert verdicts.first[0] > 0.5
  assert verdicts.first[0] + verdicts.first[1] == pytest.approx(1.0)
  assert verdicts.first[2] == pytest.approx(0.5)
  np.testing.assert_array_equal(verdicts.changed, [0, 0, 1])


def test_the_label_is_the_mean_of_normalised_probabilities():
  logps = np.log([[[0.3, 0.1], [0.2, 0.2]], [[0.05, 0.2], [0.6, 0.2]]])  # [principle, order, AB]
  verdicts = compared(lambda questions: logps.reshape(-1, 2), [("x", "y")])
  assert verdicts.first == pytest.approx(np.mean([0.75, 0.5, 0.2, 0.25]))
  assert verdicts.changed == pytest.approx(0.0)
  assert compared(shorter, []).first.shape == (0,)


def test_win_rates_are_those_against_the_other_answers_to_the_prompt():
  texts = ["aaaa", "a", "aa", "bbb", "same", "same"]
  other = [{"role": "user", "content": "How?"}]
  asked = [PROMPT] * 3 + [other] + [[*PROMPT, *other]] * 2
  answered = rewards.Answered(asked, [Answer(text) for text in texts], texts, {}, {})
  rates = judge.win_rates(shorter, answered, CONSTITUTION, 2)
  assert rates[1] > rates[2] > rates[0]
  assert rates[:3].mean() == pytest.approx(0.5)
  np.testing.assert_array_equal(rates[3:], 0.5)


def test_principles_are_drawn_once_each_until_all_are_used():
  names = [p.name for p in principles.draw(CONSTITUTION, 2 * len(CONSTITUTION), 3)]
  assert len(set(names[: len(CONSTITUTION)])) == len(CONSTITUTION) == 12
  assert names[:4] == [p.name for p in principles.draw(CONSTITUTION, 4, 3)]


@pytest.mark.parametrize(
  "text", ["{", '{"principles": []}', '{"principles": [{"name": "x"}]}', "[]", "missing"]
)
def test_a_file_that_holds_no_principles_is_refused(tmp_path, text):
  path = tmp_path / "own.json"
  if text != "missing":
    path.write_text(text)
  with pytest.raises(UserError, match="config.principles"):
    principles.read(path)


@pytest.mark.parametrize("chat", [True, False])
def test_a_local_judge_counts_the_letters_alone(prepared, start, chat):
  cfg = config.Judge(run=start, chat=chat, length=128)
  asks, tokenizer = judge.load(cfg, str(prepared), PLACE), runs.tokenizer(str(prepared))
  for text in ("Which?", "Which one? " * 80):  # The second one is cut.
    for letter, (ids, mask) in zip(judge.LETTERS, asks._rows(text), strict=True):
      said = [t for t, m in zip(ids, mask, strict=True) if m]
      assert tokenizer.decode(said).strip() == letter and len(ids) <= 129


def test_a_local_judge_compares_log_probs(prepared, start, monkeypatch):
  asks = judge.load(config.Judge(run=start, length=128, rows=4), str(prepared), PLACE)
  questions = ["Which one? " * n for n in (1, 3, 2)]
  found = asks(questions)
  gaps = found[:, 0] - found[:, 1]
  assert (np.abs(gaps) > 1e-4).all()
  # A question is judged as it is, whatever is asked beside it.
  np.testing.assert_allclose(asks(questions[2:]), found[2:], atol=1e-4)
  # Read twice, with either letter, it says the same; other words are always read so.
  every = [judge.batches.lm_batch([asks._rows(q)[k] for q in questions], 128) for k in range(2)]
  logps = [np.asarray(asks._logps(batch)) for batch in every]
  np.testing.assert_allclose(gaps, logps[0] - logps[1], atol=1e-4)
  monkeypatch.setattr(judge, "LETTERS", ("A", "the second one"))
  assert (asks(questions)[:, 1] < -10).all()  # Several tokens of a model that knows nothing.


def test_a_judge_may_be_a_score(prepared, start):
  text = f"judge(run={start!r}, length=128, drawn=1) + 0.0*ended"
  scores = rewards.Scores.load(text, PLACE, 0, str(prepared))
  total, means = scores([PROMPT] * 2, [Answer("x"), Answer("y y")], ["", ""], {})
  assert total.sum() == pytest.approx(1.0) and means["scores/judge"] == pytest.approx(0.5)
  with pytest.raises(UserError, match="run=... or endpoint="):
    rewards.Scores.load("judge", PLACE, 0, str(prepared))
  with pytest.raises(UserError, match="config.score: key_variable must be the name"):
    rewards.Scores.load("judge(run='x', key_variable='a-b')", PLACE, 0, str(prepared))
  with pytest.raises(UserError, match="no keyword"):
    rewards.Scores.load("judge(rnu='x')", PLACE, 0, str(prepared))


@contextlib.contextmanager
def server(replies):
  """An endpoint that gives `replies`, (status, JSON), in turn; yields its address and the asked."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      asked.append((self.path, dict(self.headers), body))
      status, reply = replies[min(len(asked), len(replies)) - 1]
      found = json.dumps(reply).encode()
      self.send_response(status)
      if status == 302:
        self.send_header("Location", "/elsewhere")
      self.send_header("Content-Length", str(len(found)))
      self.end_headers()
      self.wfile.write(found)

    def log_message(self, *args):
      pass

  own = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=own.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield f"http://127.0.0.1:{own.server_port}/v1", asked
  finally:
    own.shutdown()
    own.server_close()
    thread.join()


def reply(text, tokens=None):
  choice = {"message": {"role": "assistant", "content": text}}
  if tokens:
    top = [{"token": t, "logprob": p} for t, p in tokens.items()]
    choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
  return {"choices": [choice]}


@pytest.fixture
def asks(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  monkeypatch.setenv("OWN_KEY", KEY)

  def make(url, **fields):
    cfg = config.Judge(endpoint=url, model="m", key_variable="OWN_KEY", parallel=1, **fields)
    cfg.validate()
    return endpoint.Endpoint(cfg, judge.LETTERS, wait=0.001)

  return make


def test_an_endpoint_gives_log_probs_of_the_letters(asks):
  tokens = {" A": np.log(0.5), "A": np.log(0.1), "(B": np.log(0.3), "C": -3.0}
  with server([(200, reply(" A", tokens))]) as (url, asked):
    found = asks(url)(["Which?"])
  np.testing.assert_allclose(found, np.log([[0.6, 0.3]]), atol=1e-6)
  path, headers, body = asked[0]
  assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
  assert body["model"] == "m" and body["logprobs"] and body["messages"][0]["content"] == "Which?"


def test_a_letter_that_is_not_listed_is_not_more_likely_than_what_is(asks):
  with server([(200, reply("B", {"B": -0.1, "C": -4.0}))]) as (url, _):
    np.testing.assert_allclose(asks(url)(["Which?"]), [[-4.0, -0.1]])


@pytest.mark.parametrize(
  ("text", "want"),
  [("A", 1.0), ("The answer is (B).", 0.0), ("A better answer is B", 0.0), ("neither", 0.5)],
)
def test_without_log_probs_the_letter_counts(asks, text, want):
  with server([(200, reply(text))]) as (url, _):
    found = asks(url)(["Which?"])
  assert judge._sigmoid(found[:, 0] - found[:, 1]) == pytest.approx(want)


def test_an_endpoint_that_has_no_log_probs_is_asked_without(asks):
  replies = [(400, {"error": "logprobs are not supported"}), (200, reply("B"))]
  with server(replies) as (url, asked):
    own = asks(url)
    assert (own(["1"])[0, 1], own(["2"])[0, 1]) == (0.0, 0.0)
  assert ["logprobs" in body for *_, body in asked] == [True, False, False]


def test_what_may_pass_is_tried_again(asks):
  with server([(503, {}), (429, {}), (200, reply("A"))]) as (url, asked):
    assert asks(url)(["Which?"])[0, 0] == 0.0
  assert len(asked) == 3


@pytest.mark.parametrize(
  ("replies", "message", "count"),
  [
    ([(500, {"error": f"bad {KEY}"})], r"failed 3 times, at last: HTTP 500 .*\[key\]", 3),
    ([(401, {"error": f"key {KEY}"})], r"refuses: HTTP 401 .*\[key\]", 1),
    ([(302, {})], "refuses: HTTP 302", 1),
    ([(200, {"choices": []})], "not that of an OpenAI-style endpoint", 1),
    ([(200, [1])], "no JSON object", 3),
  ],
)
def test_a_failure_is_one_clear_line_without_the_key(asks, replies, message, count):
  with server(replies) as (url, asked), pytest.raises(UserError, match=message) as error:
    asks(url, retries=2)(["Which?"])
  assert KEY not in str(error.value) and "judge, endpoint=http" in str(error.value)
  assert len(asked) == count


def test_nobody_there_and_a_judge_that_names_no_letter(asks):
  with pytest.raises(UserError, match="failed 2 times"):
    asks("http://127.0.0.1:9/v1", retries=1)(["Which?"])
  with server([(200, reply("I would rather not say"))]) as (url, _):
    with pytest.raises(UserError, match="9 replies of 9 name neither A nor B"):
      asks(url)(["Which?"] * 9)


def test_an_empty_variable_of_the_key_is_refused(monkeypatch):
  monkeypatch.delenv("OWN_KEY", raising=False)
  cfg = config.Judge(endpoint="http://host/v1", model="m", key_variable="OWN_KEY")
  with pytest.raises(UserError, match="OWN_KEY: this environment variable is not set"):
    endpoint.Endpoint(cfg, judge.LETTERS)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"run": "x", "endpoint": "http://host/v1"}, "two judges"),
    ({"endpoint": "host:80/v1", "model": "m"}, "config.endpoint must be"),
    ({"endpoint": "http://u:secret@host/v1", "model": "m"}, "config.endpoint must be"),
    ({"endpoint": "http://host/v1"}, "config.model"),
    ({"run": "x", "key_variable": "sk-abcdef"}, "config.key_variable must be the name"),
    ({"run": "x", "timeout": 0.0}, "config.timeout"),
    ({"run": "x", "rows": 0}, "config.rows"),
  ],
)
def test_judges_that_cannot_be(fields, message):
  with pytest.raises(UserError, match=message) as error:
    config.Judge(**fields).validate()
  assert "abcdef" not in str(error.value) and "secret" not in str(error.value)
