"""Published pipelines: links between stages, what is refused at once, a trial of each of them."""

import dataclasses
import json
import pathlib

import pytest

from configs import sft as supervised
from configs.recipes import _common
from experiments import _fields, _launch
from llm_jax import config
from llm_jax.data import examples, formats
from llm_jax.errors import UserError
from llm_jax.stages import recipe, runs
from llm_jax.train.metrics import read
from tests.stages.conftest import asked

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs" / "recipes").glob("[!_]*.py"))


@dataclasses.dataclass
class Chain(config.Recipe):
  sft: config.Sft = dataclasses.field(default_factory=config.Sft)
  reward: config.Reward = dataclasses.field(default_factory=config.Reward)
  prefer: config.Rlaif = dataclasses.field(
    default_factory=lambda: config.Rlaif(judge=config.Judge(run="@base"))
  )
  ppo: config.Ppo = dataclasses.field(default_factory=config.Ppo)


def loaded(name, variant=""):
  cfg = _launch.load_config(f"{ROOT / 'configs' / 'recipes' / name}.py" + variant)
  _fields.validate(cfg)
  return cfg


@pytest.mark.parametrize("variant", ["", ":tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_its_links_lead_to_earlier_stages(name, variant):
  cfg = loaded(name, variant)
  stages = cfg.connected("run")
  assert "@" not in json.dumps([dataclasses.asdict(stage) for stage in stages.values()])
  assert (next(iter(stages.values())).init, {s.seed for s in stages.values()}) == (cfg.base, {0})
  assert {s.prepared for s in stages.values()} == {cfg.prepared}
  examples.check(recipe._examples(cfg))
  assert bool(variant) != any(True for s in cfg.stages().values() for _ in recipe._files(s))


@pytest.mark.parametrize("name", supervised.PUBLISHED)
def test_supervised_fine_tuning_has_the_settings_of_a_recipe_by_name(name):
  cfg = supervised.get_config(name)
  cfg.validate()
  of_recipe = supervised.PUBLISHED[name].get_config().sft
  changed = {"init": cfg.init, "data": ()}
  assert cfg == dataclasses.replace(of_recipe, **changed) and "@" not in cfg.init


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_keeps_the_chain_and_its_losses(name):
  published, tiny = loaded(name).stages(), loaded(name, ":tiny").stages()
  assert list(published) == list(tiny)
  for stage in published:
    kept = ("init", "loss", "packed", "margin", "center", "kl_init", "ptx_coef", "critic_head")
    for field in (*kept, "part", "reward", "score", "earlier", "whiten_scores", "template"):
      values = [getattr(s[stage], field, None) for s in (published, tiny)]
      assert values[0] == values[1], f"{stage}.{field}"


@pytest.mark.parametrize(
  ("field", "value", "path"),
  [
    ("init", "@sft", "run/sft"),
    ("reward", "@reward/x/y", "run/reward/x/y"),
    ("data", ("@base/a.jsonl=0.5", "b@c.jsonl"), ("base/a.jsonl=0.5", "b@c.jsonl")),
    ("data", ("@examples/flan.jsonl",), ("run/examples/flan.jsonl",)),
    ("score", "0.1*ended + reward_model(run='@sft')", "0.1*ended + reward_model(run='run/sft')"),
    ("score", "ensemble(runs=('@sft', \"@reward\"))", "ensemble(runs=('run/sft', \"run/reward\"))"),
  ],
)  # fmt: skip
def test_a_link_is_a_path_of_the_run(field, value, path):
  cfg = Chain(base="base", seed=3)
  setattr(cfg.ppo, field, value)
  stages = cfg.connected("run", "elsewhere")
  assert getattr(stages["ppo"], field) == path
  assert (stages["ppo"].seed, stages["ppo"].prepared) == (3, "elsewhere")
  assert stages["prefer"].judge.run == "base"
  assert getattr(cfg.ppo, field) == value  # What the user wrote is as it was.


def test_files_separated_by_commas_are_links_each():
  cfg = Chain()
  cfg.reward.preferences = "@sft/a.jsonl, @sft/b.jsonl=2"
  assert cfg.connected("r")["reward"].preferences == "r/sft/a.jsonl, r/sft/b.jsonl=2"


@pytest.mark.parametrize(
  ("stage", "field", "value", "message"),
  [
    ("ppo", "init", "@stf", r'config\.ppo\.init=@stf: no earlier stage "stf"; did you mean "sft"'),
    ("sft", "init", "@reward", r'config\.sft\.init=@reward: no earlier stage "reward"; there are'),
    ("sft", "data", ("@/x",), r'config\.sft\.data=@/x: no earlier stage ""'),
    ("ppo", "seed", 4, r"config\.ppo\.seed is filled in: set config\.seed"),
    ("sft", "prepared", "x", r"config\.sft\.prepared is filled in: set config\.prepared"),
    ("sft", "loss", "cross_entrop()", r"config\.sft\.loss: .*cross_entropy"),
    ("ppo", "value_loss", "clip()", r"config\.ppo\.value_loss"),
    ("reward", "batch", 0, r"config\.reward\.batch must be at least 1"),
    ("sft", "data", ("no.jsonl",), r"config\.sft\.data: no\.jsonl is missing; where published"),
    ("sft", "data", ("@examples/fln.jsonl",), r'no "@examples/fln.jsonl"; did you mean "flan'),
    ("", "template", "chatml", r'the chat template "chatml" needs a control token'),
    ("", "base", "nowhere", "nowhere is neither a run that trained a model nor"),
    ("", "prepared", "nowhere", "nowhere holds no prepared corpus"),
  ],
)
def test_what_a_late_stage_would_refuse_is_refused_at_once(
  stage, field, value, message, prepared, start, tmp_path
):
  cfg = Chain(prepared=str(prepared), base=start)
  cfg.reward.preferences = "@examples/ultrafeedback.jsonl"
  recipe.check(cfg)
  setattr(getattr(cfg, stage) if stage else cfg, field, value)
  with pytest.raises(UserError, match=message):
    recipe.run(cfg, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


class Killed(BaseException):
  """Nobody handles it: what is on disk is what a kill would leave."""


@pytest.mark.parametrize("written", ["tokenizer.model", ".tokenizer.json.tmp"])
def test_a_template_that_a_kill_cut_is_adopted_by_the_next_start(
  written, prepared, start, tmp_path, monkeypatch
):
  cfg = Chain(prepared=str(prepared), base=start, template="llama-2")
  folder = tmp_path / "prepared" / "tokenizer"

  def killed_after(write):
    def done(path, *args, **options):
      write(path, *args, **options)
      if path == folder / written:
        raise Killed

    return done

  with monkeypatch.context() as patch, pytest.raises(Killed):
    for name in ("write_bytes", "write_text"):
      patch.setattr(pathlib.Path, name, killed_after(getattr(pathlib.Path, name)))
    recipe._with_template(cfg, tmp_path)
  for _ in range(2):
    assert runs.tokenizer(recipe._with_template(cfg, tmp_path)).template == "llama-2"
    assert {p.name for p in folder.iterdir()} == {"tokenizer.model", "tokenizer.json"}


def test_a_recipe_has_stages_and_only_stages():
  bad = dataclasses.make_dataclass(
    "Bad", [("model", config.Model, dataclasses.field(default_factory=config.Model))],
    bases=(config.Recipe,),
  )  # fmt: skip
  with pytest.raises(UserError, match=r"config\.model: each field of a recipe holds"):
    bad().validate()
  with pytest.raises(UserError, match="has no stages"):
    config.Recipe().validate()
  with pytest.raises(UserError, match='no variant "tinny"; did you mean "tiny"'):
    _common.check("zephyr", "tinny")


def test_the_missing_name_of_a_recipe_is_one_line_with_all_names():
  with pytest.raises(UserError, match=f"--config must name a file .*: {', '.join(NAMES)}$"):
    _launch.load_config(str(ROOT / "configs" / "recipes"))
  with pytest.raises(UserError, match='no file .*zefyr.py; did you mean "zephyr"'):
    _launch.load_config(str(ROOT / "configs" / "recipes" / "zefyr.py"))


@pytest.mark.parametrize(
  ("name", "format", "kind"),
  [
    ("alpaca.json", "alpaca", "conversations"), ("sharegpt.json", "sharegpt", "conversations"),
    ("lima.jsonl", "lima", "conversations"), ("flan.jsonl", "flan", "conversations"),
    ("messages.jsonl", "messages", "conversations"), ("hh.jsonl", "hh", "preferences"),
    ("ultrafeedback.jsonl", "pairs", "preferences"), ("rankings.jsonl", "rankings", "rankings"),
  ],
)  # fmt: skip
def test_an_example_is_read_in_its_format_and_loses_nothing(name, format, kind, tmp_path):
  questions = asked("train")
  examples.write(tmp_path, [name], questions)
  table = formats.read(tmp_path / name, kind)
  assert (table.format, sum(table.drops.values())) == (format, 0)
  assert len(table.items) == (12 if name == "sharegpt.json" else 24)
  text = (tmp_path / name).read_text()
  assert all(q.answer in text for q in questions)
  if kind == "conversations":
    learned = [m["content"] for c in table.items for m in c.messages if m["role"] == "assistant"]
    assert learned == [q.answer for q in questions]
  if name == "ultrafeedback.jsonl":
    assert {item.margin for item in table.items} == {3.0, 6.0}


# Chains of the same stages in another order or with other numbers are "slow": they compile anew.
_ALWAYS = ("alpaca", "instructgpt", "zephyr")


@pytest.mark.long
@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=() if n in _ALWAYS else pytest.mark.slow) for n in NAMES]
)
def test_a_trial_of_every_recipe_runs_through(name, prepared, start, tmp_path, capsys):
  cfg = loaded(name, ":tiny")
  cfg.prepared, cfg.base = str(prepared), start
  result = recipe.run(cfg, str(tmp_path / "run"))
  assert result == json.loads((tmp_path / "run" / "summary.json").read_text())
  assert list(result["stages"]) == list(cfg.stages())
  for stage, found in result["stages"].items():
    assert found["steps"] == (0 if found["stage"] == "rlaif" else 8), stage
    assert found["metrics"]
  out = capsys.readouterr().out
  assert [line[3:] for line in out.splitlines() if line.startswith("== ")] == [*cfg.stages()]
  last = tmp_path / "run" / list(cfg.stages())[-1]
  own = json.loads((last / "config.json").read_text())
  if cfg.template:
    assert runs.tokenizer(own["prepared"]).template == cfg.template
  assert runs.load(str(last), "init").params
  before = read(last)
  assert recipe.run(cfg, str(tmp_path / "run"))["stages"] == result["stages"]
  assert read(last) == before
  assert capsys.readouterr().out.count("finished before") == len(cfg.stages())
