"""What the page asks for: figures with a closed form, names and no paths, text that stays text."""

import http.client
import json
import math
import os
import re
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import chat, formats
from llm_jax.models.heads import Scorer
from llm_jax.serve import app, judging, probe, progress, spelling, workdirs
from llm_jax.stages import runs
from tests.serve.conftest import DROPPED, Client, started


def get(page, path):
  status, headers, body = page.ask("GET", path)
  return status, headers, body


def read(page, path):
  status, _, body = get(page, path)
  assert status == 200, body
  return json.loads(body)


def test_the_page_and_its_files_load_nothing_from_elsewhere(page):
  status, headers, body = get(page, "/")
  assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
  text = body.decode()
  assert not re.search(r"(src|href)=[\"']?(https?:)?//", text) and "<script>" not in text
  names = re.findall(r"/static/([\w./-]+)", text)
  assert {"main.js", "playground.css", "base.css", "uplot/uPlot.iife.min.js"} <= set(names)
  for name in names:
    status, headers, body = get(page, f"/static/{name}")
    assert status == 200 and headers["content-type"].endswith("charset=utf-8")
    names += [n for n in re.findall(r"from \"\./([\w./]+)\"", body.decode()) if n not in names]


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "missing.js", ""])
def test_files_of_the_page_are_a_list(page, name):
  assert get(page, f"/static/{name}")[0] == 404


def test_stages_have_states_and_figures(page, workdir):
  found = read(page, "/api/run")
  assert found["run"] == "tiny" and found["runs"] == ["tiny", "other"]
  stages = {stage["name"]: stage for stage in found["stages"]}
  assert list(stages) == ["prepare", "pretrain", "sft", "preferences", "reward", "ppo"]
  assert all(stage["state"] == "done" and stage["done"] == 1 for stage in stages.values())
  labels = [figure["label"] for figure in stages["ppo"]["figures"]]
  assert labels == ["score", "KL to the reference"]
  assert found["judges"] == ["reward"] and {"name": "ppo", "chat": True} in found["models"]
  assert "ppo/metrics.jsonl" in found["files"] and not any(
    "checkpoints" in f for f in found["files"]
  )


def test_a_run_in_progress_is_running_and_one_that_is_silent_has_stopped(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"pretrain": {}, "sft": {}}))
  stage = tmp_path / "pretrain"
  stage.mkdir()
  (stage / "config.json").write_text(json.dumps({"steps": 10}))
  (stage / "metrics.jsonl").write_text('{"step": 4, "loss": 2.5}\n{"step": 5, "lo')
  first, second = progress.pipeline(tmp_path)
  assert (first["state"], first["done"]) == ("running", 0.4)
  assert first["figures"] == [{"label": "loss", "value": 2.5, "unit": "nats"}]
  assert (second["state"], second["done"]) == ("waiting", 0.0)
  old = stage.stat().st_mtime - 1000
  for path in stage.iterdir():
    os.utime(path, (old, old))
  assert progress.pipeline(tmp_path)[0]["state"] == "stopped"


@pytest.mark.parametrize("name", ["..", "../tiny", "/etc", "tiny/sft", "%2e%2e", "nobody"])
@pytest.mark.parametrize("path", ["run", "curves", "policies", "events", "file?name=config.json"])
def test_a_run_is_a_name_and_no_path(page, path, name):
  mark = "&" if "?" in path else "?"
  assert get(page, f"/api/{path}{mark}run={name}")[0] == 404


@pytest.mark.parametrize(
  "name", ["../tiny/report.html", "/etc/passwd", "sft/../report.html", "sft/checkpoints", "votes"]
)
def test_files_of_a_run_are_those_of_its_list(page, name):
  assert get(page, f"/api/file?name={name}")[0] == 404


def test_a_report_is_shown_as_nobodys_page(page):
  status, headers, body = get(page, "/api/file?name=report.html")
  assert status == 200 and b"report" in body and headers["content-type"].startswith("text/html")
  assert headers["content-security-policy"].startswith("sandbox ")
  assert "allow-same-origin" not in headers["content-security-policy"]
  assert "default-src 'none'" in headers["content-security-policy"]  # It can tell no one of it.
  status, headers, _ = get(page, "/api/file?name=sft/metrics.jsonl")
  assert status == 200 and headers["content-type"].startswith("text/plain")
  assert headers["x-content-type-options"] == "nosniff"


def test_links_lead_to_no_file_outside(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "secret.json").write_text("{}")
  (tmp_path / "run" / "a.json").symlink_to(tmp_path / "secret.json")
  (tmp_path / "run" / "sft").symlink_to(tmp_path)
  assert workdirs.Workdirs([tmp_path / "run"]).files() == []


def test_runs_of_one_name_can_be_told_apart(tmp_path):
  for name in ("a", "b"):
    (tmp_path / name / "run").mkdir(parents=True)
  assert workdirs.Workdirs([tmp_path / n / "run" for n in "ab"]).names == ["run", "run (2)"]


def test_events_say_what_changes_and_end_with_the_client(page):
  for _ in range(40):  # More than may watch at a time: each gives its place back.
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    connection.request("GET", "/api/events")
    reply = connection.getresponse()
    if reply.status == 429:
      time.sleep(0.5)
      connection.close()
      continue
    line = reply.readline()
    assert reply.status == 200 and json.loads(line.removeprefix(b"data: "))["run"] == "tiny"
    connection.close()


def test_curves_have_a_common_clock_and_are_explained(page):
  found = read(page, "/api/curves")
  assert list(found["stages"])[:2] == ["pretrain", "sft"] and "begin" in found["stages"]["ppo"]
  stage = found["stages"]["ppo"]
  assert len(stage["x"]) == len(stage["t"]) == len(stage["y"]["objective/kl"])
  assert "nats" in found["explain"]["objective/kl"]
  assert list(read(page, "/api/curves?run=other")["stages"]) == ["sft"]


def _logits(play, name, tokens):
  served = play.models.get(name)
  return np.asarray(served.model.apply(served.params, np.array([tokens]), method="logits"))[0]


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 0.6), (2.0, 0.9)])
def test_the_next_tokens_distribution_is_the_models(page, play, temperature, top_p):
  given = {"model": "sft", "text": "What does count files do?", "chat": True}
  status, found = page.post(
    "/api/next", **given, temperature=temperature, top_p=top_p, top=100, draw=0.999
  )
  assert status == 200
  coder = play.models.get("sft").tokenizer
  prompt = chat.prompt(coder, [{"role": "user", "content": given["text"]}])
  logits = _logits(play, "sft", prompt)[-1].astype(np.float64)
  raw = np.exp(logits - np.logaddexp.reduce(logits))
  shaped = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
  order = np.argsort(-shaped)
  count = (
    int(np.searchsorted(np.cumsum(shaped[order]), top_p - 1e-9)) + 1 if top_p < 1 else len(raw)
  )
  kept = np.isin(np.arange(len(raw)), order[:count])
  shaped = np.where(kept, shaped, 0) / shaped[kept].sum()
  assert found["tokens"] == len(prompt) and found["kept"] == count
  for one in found["likeliest"]:
    assert one["raw"] == pytest.approx(raw[one["id"]], rel=1e-3, abs=1e-7)
    assert one["shaped"] == pytest.approx(shaped[one["id"]], rel=1e-3, abs=1e-7)
  assert found["entropy"] == pytest.approx(-(raw * np.log(raw)).sum(), rel=1e-4)
  assert kept[found["drawn"]["id"]]


def test_tokens_that_are_appended_follow_the_text(page, play):
  coder = play.models.get("pretrain").tokenizer
  text = "Return all the rows of"
  ids = coder.encode(text)
  one = page.post("/api/next", model="pretrain", text=text)[1]
  other = page.post("/api/next", model="pretrain", text="", appended=ids)[1]
  assert one["likeliest"] == other["likeliest"] and one["tokens"] == other["tokens"]
  assert "".join(piece["text"] for piece in other["appended"]) == text


@pytest.mark.parametrize(
  ("fields", "status", "message"),
  [
    ({"model": "nobody"}, 404, "nobody"),
    ({"model": "../sft"}, 404, "no"),
    ({"model": "reward"}, 404, "reward"),
    ({"chat": True, "model": "pretrain"}, 400, "learned no turns"),
    ({"appended": [100_000]}, 400, "token ids are"),
    ({"appended": [5] * 200}, 400, "tokens here"),
    ({"temperature": 0}, 400, "temperature"),
    ({"text": "a" * 20_001}, 400, "text"),
    ({"surprise": 1}, 400, "surprise"),
  ],
)
def test_what_cannot_be_answered_is_refused(page, fields, status, message):
  found = page.post("/api/next", **({"model": "sft", "text": "a"} | fields))
  assert found[0] == status and message in found[1]["error"]["message"]


def _events(page, **fields):
  status, headers, body = page.ask("POST", "/api/compare", fields)
  assert status == 200 and headers["content-type"].startswith("text/event-stream"), body
  return [json.loads(frame.removeprefix("data: ")) for frame in body.decode().split("\n\n")[:-1]]


def test_answers_are_those_of_the_endpoint_and_measured_exactly(page, play):
  asked = {"prompt": "What does sort words do?", "temperature": 0.8, "max_tokens": 10, "seed": 3}
  events = _events(page, **asked, models=["pretrain", "sft", "ppo"], reference="sft")
  assert events[-1] == {"done": True}
  turns = [{"role": "user", "content": asked["prompt"]}]
  _, reply = page.post(
    "/v1/chat/completions", model="ppo", messages=turns, temperature=0.8, max_tokens=10, seed=3
  )
  own = [event for event in events if event.get("model") == "ppo"]
  text = "".join(token["text"] for event in own for token in event.get("tokens", []))
  assert text == reply["choices"][0]["message"]["content"]
  measured = {event["model"]: event for event in events if "kl" in event}
  assert list(measured) and np.allclose(measured["sft"]["kl"], 0, atol=1e-4)
  assert np.allclose(measured["sft"]["logps"], measured["sft"]["ref_logps"], atol=1e-3)
  assert min(measured["ppo"]["kl"]) > -1e-4


def test_divergences_are_those_of_the_whole_distributions(play):
  own, other = play.models.get("ppo"), play.models.get("pretrain")
  tokens = [own.tokenizer.bos_id, *own.tokenizer.encode("Count all the links of a train table.")]
  found = probe.beside(own, other, tokens)
  p, q = (
    np.asarray(jax.nn.log_softmax(_logits(play, n, tokens)))[:-1] for n in ("ppo", "pretrain")
  )
  assert np.allclose(found.kl, (np.exp(p) * (p - q)).sum(-1), atol=1e-4)
  picked = p[np.arange(len(tokens) - 1), tokens[1:]]
  assert np.allclose(found.logps, picked, atol=1e-4)


@pytest.mark.parametrize(
  ("fields", "status"),
  [
    ({"models": ["nobody"]}, 404), ({"reference": "nobody"}, 404), ({"max_tokens": 10_000}, 400),
    ({"prompt": "a b " * 1000}, 400), ({"models": []}, 400), ({"models": ["sft"] * 9}, 400),
  ],
)  # fmt: skip
def test_comparisons_are_bounded(page, fields, status):
  body = {"prompt": "a", "models": ["sft"], "max_tokens": 4} | fields
  assert page.ask("POST", "/api/compare", body)[0] == status


def test_what_tokens_move_adds_up_to_the_reward_models_score(page, workdir):
  answers = ["Count all the files of a train table.", "Count"]
  status, found = page.post("/api/judge", model="reward", prompt="What?", answers=answers)
  assert status == 200
  coder = runs.tokenizer(str(workdir / "prepare"))
  loaded = runs.load(str(workdir / "reward"), "reward", reward=True)
  scorer = Scorer.from_config(loaded.shape)
  for answer, score, begin, tokens in zip(
    answers, found["scores"], found["begin"], found["tokens"], strict=True
  ):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
    whole = np.array([chat.render(coder, turns)[0]])
    expected = float(scorer.apply({"params": loaded.params}, whole)[0])
    assert score == pytest.approx(expected, abs=1e-4)
    assert begin + sum(token["moved"] for token in tokens) == pytest.approx(score, abs=1e-2)
    assert "".join(token["text"] for token in tokens).strip() == answer
  assert found["margin"] == pytest.approx(found["scores"][0] - found["scores"][1])
  assert found["probability"] == pytest.approx(1 / (1 + math.exp(-found["margin"])))


def test_votes_are_preferences_that_the_reward_stage_reads(page, workdir, tmp_path):
  for better in (0, 1):
    status, found = page.post("/api/vote", prompt="Which?", answers=["one", "two"], better=better)
    assert status == 200 and found["votes"] == better + 1
  table = formats.read(found["file"], "preferences")
  assert [(item.chosen, item.rejected) for item in table.items] == [("one", "two"), ("two", "one")]
  assert found["file"] == str(workdir / judging.VOTES)
  (workdir / judging.VOTES).unlink()
  assert page.post("/api/vote", prompt="Which?", answers=["one", "one"], better=0)[0] == 400
  assert not (workdir / judging.VOTES).exists()


def test_the_corpus_is_shown_with_what_it_lost(page):
  found = read(page, "/api/corpus")
  assert [row["seconds"] for row in found["funnel"]] == [1.5, None, None]
  assert found["clusters"]["largest"][0]["size"] == 2
  rows = read(page, "/api/dropped?step=length(least=20)&reason=too+short")
  assert rows == {"rows": [{k: DROPPED[0][k] for k in ("id", "url", "sample")}], "more": False}
  step = found["clusters"]["largest"][0]["step"]
  cluster = read(page, f"/api/cluster?step={step}&name=stays")
  words = [piece for group in cluster["gone"][0]["groups"] for piece in group]
  assert ["kept", "large"] in words and ["gone", "small"] in words
  for path in ("step=nowhere&name=stays", f"step={step}&name=nobody", "step=../..&name=stays"):
    assert get(page, f"/api/cluster?{path}")[0] == 404


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_the_texts_of_tokens_add_up(play, text):
  coder = play.models.get("sft").tokenizer
  ids = coder.encode(text)
  assert "".join(spelling.texts(coder, ids)) == coder.decode(ids)


def test_a_text_is_counted(page):
  status, found = page.post("/api/tokenize", text="Return all the rows.")
  assert status == 200 and found["tokens"] == len(found["pieces"]) and found["bytes"] == 20
  assert page.post("/api/tokenize", text="<|user|> hi")[1]["pieces"][0]["name"] == ""


def test_the_calculator_gives_what_was_published(page):
  given = {"device": "A100", "devices": 1024, "mfu": 0.4, "params": 174.6e9, "tokens": 300e9}
  status, found = page.post("/api/plan", **given)
  assert status == 200 and found["flops"] == pytest.approx(3.14e23, rel=0.01)
  assert found["curve"]["loss"][30] == pytest.approx(found["loss"])
  assert found["best_loss"] <= min(found["curve"]["loss"]) + 1e-9
  assert page.post("/api/plan", params=1e9)[0] == 400
  assert page.post("/api/plan", days=1, law="nobody")[0] == 404
  options = read(page, "/api/plan")
  assert {"GPT-3", "Chinchilla"} <= {known["name"] for known in options["known"]}


def test_a_browser_is_let_in_with_the_token_in_the_address(play):
  port, stop = started(app.create(play.models, token="a secret", play=play))
  client = Client(port)
  try:
    assert client.ask("GET", "/")[0] == 401
    assert client.ask("GET", "/?token=wrong")[0] == 401
    assert client.ask("GET", "/api/run?token=a%20secret")[0] == 401  # The page alone lets in.
    status, headers, _ = client.ask("GET", "/?token=a%20secret")
    assert status == 303 and headers["location"] == "/"
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].split(";")[0]
    assert client.ask("GET", "/api/run", cookie=cookie)[0] == 200
    # The address is cleared of it for who was let in before, too.
    assert client.ask("GET", "/?token=a%20secret", cookie=cookie)[0] == 303
    assert client.ask("GET", "/api/run", cookie="llm_jax_token=wrong")[0] == 401
  finally:
    stop()


def test_other_sites_may_ask_for_nothing(page):
  body = {"prompt": "Which?", "answers": ["one", "two"], "better": 0}
  for headers in ({"origin": "http://evil.invalid"}, {"sec_fetch_site": "cross-site"}):
    assert page.ask("POST", "/api/vote", body, **headers)[0] == 403
  assert page.ask("POST", "/api/vote", body, host="evil.invalid")[0] == 421
  assert page.ask("GET", "/", host="evil.invalid")[0] == 421
