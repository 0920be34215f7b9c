"""Block lists: a domain covers what is below it and nothing beside it; words at three strengths."""

import gzip
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.documents import Document
from llm_jax.data.filters import blocked_urls
from llm_jax.data.filters.lists import holds, read_names
from llm_jax.data.filters.urls import host_of
from llm_jax.errors import UserError

LABEL = st.sampled_from(["a", "b", "bad", "org", "com", "co", "uk"])
HOST = st.lists(LABEL, min_size=1, max_size=5).map(".".join)


def page(url):
  return Document("x", "some text", url)


@pytest.fixture
def lists(tmp_path):
  def write(**contents):
    for name, entries in contents.items():
      (tmp_path / name).write_text("\n".join(entries) + "\n")
    return {name: str(tmp_path / name) for name in contents}

  return write


@settings(deadline=None, max_examples=200)
@given(HOST, st.lists(HOST, min_size=1, max_size=4))
def test_a_domain_blocks_itself_and_all_below_it(host, listed):
  below = any(host == name or host.endswith(f".{name}") for name in listed)
  found = blocked_urls(page(f"https://{host}/p?q=bad.org"), hosts=tuple(listed))
  assert found == ("url: domain" if below else None)


@pytest.mark.parametrize(
  ("url", "blocked"),
  [
    ("http://bad.org", True),
    ("HTTPS://WWW.BAD.ORG/x", True),
    ("http://user:pw@a.bad.org:8080/x", True),
    ("bad.org/x", True),
    ("http://bad.org./", True),
    ("http://notbad.org", False),
    ("http://bad.org.com", False),
    ("http://good.com/bad.org", False),
    ("http://good.com?u=bad.org", False),
    ("http://bad.org@good.com/", False),
    ("", False),
  ],
)
def test_domains_of_a_file(lists, url, blocked):
  files = lists(domains=["# a list", "Bad.org", "", "other.net"])
  assert bool(blocked_urls(page(url), **files)) == blocked


def test_addresses_cover_what_is_below_them(lists):
  files = lists(urls=["c.org/bad", "d.net/x/y"])
  for url in (
    "http://c.org/bad",
    "http://www.c.org/bad/1",
    "https://c.org/bad?q",
    "http://d.net/x/y/",
  ):
    assert blocked_urls(page(url), **files) == "url: address"
  for url in ("http://c.org/badly", "http://c.org/", "http://d.net/x", "http://e.c.org/bad"):
    assert blocked_urls(page(url), **files) is None


def test_words_at_three_strengths(lists):
  files = lists(strict=["zzcasino"], hard=["poker"], soft=["free", "win", "cash"])
  reasons = {
    "http://a.org/my-zz-casinos.html": "url: strict word",
    "http://xzzcasinox.org/": "url: strict word",
    "http://a.org/Poker-night": "url: hard word",
    "http://pokerface.org/": None,
    "http://a.org/%70oker": "url: hard word",
    "http://free.org/win": "url: soft words",
    "http://free.org/free": None,
    "http://freewin.org/cash": None,
  }
  assert {url: blocked_urls(page(url), **files) for url in reasons} == reasons
  assert blocked_urls(page("http://free.org/free"), soft=files["soft"], soft_hits=1)


def test_what_cannot_work_says_so(lists, tmp_path):
  with pytest.raises(UserError, match="no list is given"):
    blocked_urls(page("http://a.org"))
  with pytest.raises(UserError, match="no such list"):
    blocked_urls(page("http://a.org"), domains=str(tmp_path / "none"))
  with pytest.raises(UserError, match="'two words' is no word"):
    blocked_urls(page("http://a.org"), **lists(hard=["two words"]))


def test_hosts():
  assert host_of("https://u:p@A.b.org:1/x@y") == "a.b.org"
  assert host_of("http://[2001:db8::1]:80/") == "2001:db8::1"
  assert host_of("//a.org/x") == "" and host_of("a.org") == "a.org"


def test_a_long_list_takes_eight_bytes_a_name(tmp_path):
  path = tmp_path / "domains.gz"
  names = [f"some-domain-with-a-long-name-{i}.example.org" for i in range(20_000)]
  path.write_bytes(gzip.compress("\n".join(names).encode()))
  read_names.cache_clear()
  tracemalloc.start()
  hashes = read_names(str(path))
  kept, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert hashes.nbytes == 8 * len(names) and kept < 20 * len(names)
  assert all(holds(hashes, name) for name in names[::500])
  assert not any(holds(hashes, f"x{name}") for name in names[::500])
