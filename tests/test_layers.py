"""The rules of the house: who imports whom, what is never called, how long a thing may be."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CODE = ("llm_jax", "experiments", "configs", "tools")
SKIPPED = {"runs", "build", "dist", "node_modules", "__pycache__"}
FLOORS = {
  "data": 1, "models": 1, "losses": 1, "scaling": 1,
  "train": 2, "generate": 2, "stages": 3, "report": 4, "serve": 4,
}  # fmt: skip
ARRAYS = {"jax", "flax", "optax", "orbax", "numpy"}
THIRD_PARTY = {
  "models": ARRAYS, "losses": ARRAYS, "generate": ARRAYS,
  "train": ARRAYS | {"absl", "tqdm", "tensorboardX"}, "scaling": {"numpy", "scipy"},
}  # fmt: skip
GROUND = {
  "types": {"jax", "flax", "numpy"},
  "sharding": {"jax", "flax"},
  "products": {"jax"},
}  # The other files of floor 0: standard library only.
NO_JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Templates of others are programs: ours are data, and Jinja is written for others, never rendered.
TEMPLATES = {"jinja2", "mako"}
DANGEROUS = (
  "eval", "exec", "__import__", "os.system", "os.popen", "subprocess.getoutput", "yaml.load",
  "yaml.full_load", "yaml.unsafe_load", "torch.load", "shutil.unpack_archive", "runpy.run_path",
)  # fmt: skip
DATA_PACKAGES = (
  "grain", "tensorflow_datasets", "sentencepiece", "trafilatura", "warcio", "ftfy", "xxhash",
  "ml_collections",
)  # fmt: skip


def files(*folders):
  return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def tree(path):
  return ast.parse(path.read_text(encoding="utf-8"), str(path))


def relative(path):
  return path.relative_to(ROOT).as_posix()


def imports(node):
  """Dotted names that the code below `node` imports."""
  for inner in ast.walk(node):
    if isinstance(inner, ast.Import):
      yield from (alias.name for alias in inner.names)
    elif isinstance(inner, ast.ImportFrom):
      assert inner.level == 0, f"relative import in line {inner.lineno}"
      yield from (f"{inner.module}.{alias.name}" for alias in inner.names)


def room(name):
  """The room of a dotted name of the package; "" for the files of floor 0."""
  part = name.split(".")[1] if name.count(".") else ""
  return part if part in FLOORS else ""


def third_party(names):
  tops = {name.split(".")[0] for name in names}
  return tops - set(sys.stdlib_module_names) - {"llm_jax", "experiments", "configs", "tools"}


def upward(own, names):
  """The imports that a file of the room `own` may not make."""
  wrong = []
  for name in names:
    top = name.split(".")[0]
    if top in ("experiments", "tools", "configs", "tests"):
      wrong.append(name)
    if top == "llm_jax" and room(name) != own:
      if FLOORS.get(room(name), 0) >= FLOORS.get(own, 0):
        wrong.append(name)
  return wrong


@pytest.mark.parametrize("path", files("llm_jax"), ids=relative)
def test_imports_go_down_and_stay_in_the_rooms_allowance(path):
  names = list(imports(tree(path)))
  own = room(".".join(path.relative_to(ROOT).parts))
  ground = path.parent.name in ("llm_jax", "config")
  assert own or ground, f"{path.parent.name} has no floor"
  assert not upward(own, names)
  allowed = GROUND.get(path.stem, set()) if not own else THIRD_PARTY.get(own)
  if allowed is not None:
    assert third_party(names) <= allowed
  if own == "data":
    assert not third_party(names) & NO_JAX
    assert not {"llm_jax.types"} & {".".join(name.split(".")[:2]) for name in names}


def test_the_rule_finds_what_it_forbids():
  code = ast.parse("from llm_jax.losses import token\nfrom llm_jax import errors\nimport tools.a")
  assert upward("models", imports(code)) == ["llm_jax.losses.token", "tools.a"]
  assert upward("stages", imports(code)) == ["tools.a"]


def test_configs_import_configs_only():
  for path in files("configs"):
    allowed = {"configs", "llm_jax.config", "llm_jax.errors", "llm_jax.models", "dataclasses"}
    for name in imports(tree(path)):
      assert name in allowed or name.startswith(tuple(f"{a}." for a in allowed)), relative(path)


def violations(node):
  """Calls and imports that no file of the project makes."""
  for name in imports(node):
    if name.split(".")[0] in PICKLES | TEMPLATES | {"tensorflow"}:
      yield f"import {name}"
  for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
    called = ast.unparse(call.func)
    if called in DANGEROUS:
      yield called
    if called.endswith((".extractall", ".read_pickle", ".apply_chat_template")):
      yield called
    for keyword in call.keywords:
      if keyword.arg in ("shell", "allow_pickle", "trust_remote_code"):
        if ast.unparse(keyword.value) != "False":
          yield f"{called}({keyword.arg}=...)"


def test_nothing_dangerous_is_called():
  found = [f"{relative(path)}: {v}" for path in files(*CODE) for v in violations(tree(path))]
  assert not found


@pytest.mark.parametrize(
  "code",
  [
    "import pickle", "from tensorflow import io", "eval('1')", "exec(x)", "yaml.load(f)",
    "tar.extractall()", "from jinja2 import Template", "os.popen(x)", "pd.read_pickle(f)",
    "tokenizer.apply_chat_template(talk)",
    "subprocess.run(x, shell=True)", "np.load(p, allow_pickle=True)",
  ],
)  # fmt: skip
def test_the_search_for_danger_finds_it(code):
  assert list(violations(ast.parse(code)))


def test_files_and_functions_are_short():
  long = []
  for path in files(*CODE, "tests"):
    lines = path.read_text(encoding="utf-8").count("\n")
    long += [f"{relative(path)}: {lines} lines"] if lines > 400 else []
    for node in ast.walk(tree(path)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        size = node.end_lineno - node.lineno + 1
        long += [f"{relative(path)}: {node.name} has {size} lines"] if size > 60 else []
  assert not long


def test_every_module_and_public_name_says_what_it_is():
  silent = []
  for path in files(*CODE):
    module = tree(path)
    silent += [relative(path)] if not ast.get_docstring(module) else []
    for node in module.body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
        silent += [f"{relative(path)}: {node.name}"] if not ast.get_docstring(node) else []
  silent += [relative(p) for p in files("tests") if not ast.get_docstring(tree(p))]
  assert not silent


def test_committed_text_names_no_home_directory():
  home = re.compile(r"/(?:root|home|Users)/\w")
  kinds = {".py", ".md", ".toml", ".txt", ".html", ".js", ".css", ".json", ""}
  found = []
  for path in sorted(ROOT.rglob("*")):
    parts = path.relative_to(ROOT).parts
    hidden = any(p.startswith(".") and p != ".ci" or p in SKIPPED for p in parts)
    if not hidden and not parts[0].endswith(".egg-info") and path.suffix in kinds:
      if path.is_file() and home.search(path.read_text(encoding="utf-8", errors="replace")):
        found.append(relative(path))
  assert not found


def test_constraints_are_names_and_versions_only():
  pin = re.compile(r'[\w.-]+==[\w.+!]+(; python_version (<|>=) "3\.\d+")?')
  lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
  assert not [line for line in lines if not line.startswith("#") and not pin.fullmatch(line)]


IMPORT_ALL = """
import importlib, importlib.abc, importlib.machinery, pathlib, sys
blocked, folders = {blocked!r}, {folders!r}
class Gate(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in blocked:
      raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Gate())
for folder in folders:
  for file in sorted(pathlib.Path(folder).rglob("*.py")):
    name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name)
print(*sorted(set(sys.modules) & {{"jax", "tensorflow"}}))
"""


def import_all(folders, blocked=(), path=""):
  code = IMPORT_ALL.format(blocked=tuple(blocked), folders=tuple(folders))
  environment = os.environ | {"PYTHONPATH": str(path)}
  return subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
  )


def test_the_training_half_imports_without_the_data_half():
  rooms = ("models", "losses", "train", "generate")
  done = import_all([f"llm_jax/{name}" for name in rooms], DATA_PACKAGES)
  assert done.returncode == 0, done.stderr


def test_the_data_half_imports_without_jax():
  done = import_all(["llm_jax/data", "llm_jax/scaling"], ("jax", "flax", "optax", "orbax"))
  assert done.returncode == 0, done.stderr


def test_launchers_and_configs_load_no_jax():
  done = import_all(["experiments", "configs"])
  assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_nothing_loads_tensorflow_even_where_it_is_installed(tmp_path):
  (tmp_path / "tensorflow").mkdir()
  (tmp_path / "tensorflow" / "__init__.py").write_text('"""Bait."""')
  done = import_all(["llm_jax", "experiments", "configs"], path=tmp_path)
  assert (done.returncode, done.stdout.strip()) == (0, "jax"), done.stderr


@pytest.mark.long
def test_the_tests_are_collected_without_the_extras_that_make_test_does_not_install():
  """One that imports from a test module that is skipped as a whole would stop all of them."""
  text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
  extras = tomllib.loads(text)["project"]["optional-dependencies"]
  usual = re.search(r"^EXTRAS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
  needs = [need for extra in extras.keys() - set(usual.split(",")) for need in extras[extra]]
  packages = {re.split(r"[^\w-]", need)[0].replace("-", "_") for need in needs} - {"jax"}
  assert "playwright" in packages
  program = f"import sys; sys.modules.update(dict.fromkeys({packages}));"
  program += "import pytest; sys.exit(pytest.main(['--collect-only', '-q', 'tests']))"
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-3000:]
