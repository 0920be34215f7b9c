"""Masks: what is personal goes, what looks like it stays, twice is once, and no text is slow."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_jax.data.filters import mask_pii, pii

MARKS = {
  "email": "|||EMAIL_ADDRESS|||", "ip": "|||IP_ADDRESS|||", "phone": "|||PHONE_NUMBER|||",
  "card": "|||CARD_NUMBER|||", "account": "|||BANK_ACCOUNT|||",
}  # fmt: skip
HIDDEN = {
  "email": ["a@b.org", "First.Last+tag@mail.example.co.uk", "o'neil@x-y.info", "x_1@a.b.museum"],
  "ip": ["8.8.8.8", "151.101.1.69", "2001:4860:4860::8888", "2a00:1450:4001:830::200e"],
  "phone": [
    "+49 30 1234567", "+1 (212) 555-0123", "+442079460958", "(212) 555-0123", "212-555-0123",
    "212.555.0123", "1-800-555-0199", "+33 1.23.45.67.89",
  ],
  "card": [
    "4111 1111 1111 1111", "5555555555554444", "3782 822463 10005", "378282246310005",
    "6011-1111-1111-1117", "30569309025904", "2223003122003222",
  ],
  "account": [
    "DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO93 8601 1117 947",
    "MT84MALT011000012345MTLCAST001S", "AT61 1904 3002 3457 3201",
  ],
}  # fmt: skip
SHOWN = [
  "10.0.0.1", "192.168.1.1", "127.0.0.1", "224.0.0.1", "2001:db8::1", "fe80::1", "256.1.1.1",
  "v1.2.3.4", "version 1.2.3.4", "Release: 1.2.3.4", "Chrome/60.1.2.3", "pkg-1.2.3.4", "==1.2.3.4",
  "section 3.1.2.4", "1.2.3.4.5", "1.2.3", "12:30:45", "std::vector", "add::bed",
  "00:1B:44:11:3A:B7", "2020-01-15", "phone 2020-01-15", "978-0-306-40615-7", "200 300 4000",
  "1,234,567.89", "$1234567890",
  "012-345-6789", "112-345-6789", "4111 1111 1111 1112", "0.4111111111111111", "1700000000000000",
  "DE88 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130 001", "AB12 CDEF GHIJ",
  "@app.route", "a@b", "x @ y.org", "f(a)@b.T", "+1", "2 + 12345678 apples", "call 12345678 people",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in HIDDEN.items() for t in texts])
def test_what_is_personal_is_masked(kind, text):
  for pattern in (
    "{}",
    "Write to {}.",
    "({})",
    "'{}',",
    "a {} b",
    "{}\nNext line",
    "\u00e9 {}; {}",
  ):
    assert mask_pii(pattern.format(text, text)) == pattern.format(MARKS[kind], MARKS[kind])
  off = {kind: ""} | ({"phone": ""} if kind != "phone" else {})
  assert mask_pii(f"a {text} b", **off) == f"a {text} b"


@pytest.mark.parametrize("text", SHOWN)
def test_what_only_looks_like_it_stays(text):
  for pattern in ("{}", "It is {}, he said.", "({})"):
    assert mask_pii(pattern.format(text)) == pattern.format(text)


def test_a_number_that_is_called_one():
  for name in ("Tel.: {}", "phone {}", "Fax no. {}", "MOBILE: ({})", "telephone number {}"):
    assert mask_pii(name.format("030 1234567")) == name.format(MARKS["phone"])
    assert mask_pii(name.format("12345")) == name.format("12345")
  assert mask_pii("hotel 1234567, cellphone 1234567") == "hotel 1234567, cellphone 1234567"


def test_neighbours_stay():
  text = (
    "http://8.8.8.8:80/x root@8.8.8.8 8.8.8.8/24 <a@b.org> mailto:a@b.org?x 4111111111111111 12/25"
  )
  assert mask_pii(text) == (
    "http://|||IP_ADDRESS|||:80/x root@|||IP_ADDRESS||| |||IP_ADDRESS|||/24 <|||EMAIL_ADDRESS|||>"
    " mailto:|||EMAIL_ADDRESS|||?x |||CARD_NUMBER||| 12/25"
  )
  assert mask_pii("AT61 1904 3002 3457 3201 BANK AUSTRIA") == "|||BANK_ACCOUNT||| BANK AUSTRIA"
  assert mask_pii("AA11 DE89 3704 0044 0532 0130 00") == "AA11 |||BANK_ACCOUNT|||"


def test_marks_are_keywords():
  marks = {
    "email": "email@example.com",
    "ip": "22.214.171.124",
    "phone": "",
    "card": "",
    "account": "",
  }
  text = "a@b.org at 8.8.8.8, (212) 555-0123"
  masked = "email@example.com at 22.214.171.124, (212) 555-0123"
  assert mask_pii(text, **marks) == masked == mask_pii(masked, **marks)


EVERYTHING = [text for texts in HIDDEN.values() for text in texts] + SHOWN


@settings(deadline=None, max_examples=300)
@given(
  st.lists(st.sampled_from([*EVERYTHING, *"\n.,-+()/:@", "\u00e9"]), max_size=12).map(" ".join)
)
@example("+33 1.23.45.67.89 (212) 555-0123")
def test_masking_twice_is_masking_once(text):
  once = mask_pii(text)
  assert mask_pii(once) == once


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("0123456789"), min_size=2, max_size=18), st.integers(0, 9))
def test_one_wrong_digit_breaks_luhns_sum(digits, wrong):
  valid = next(digits + str(d) for d in range(10) if pii.luhn(digits + str(d)))
  assert pii.luhn(valid[:-1] + str(wrong)) == (valid[-1] == str(wrong))
  if valid[0] != valid[1] and {valid[0], valid[1]} != {"0", "9"}:
    assert not pii.luhn(valid[1] + valid[0] + valid[2:])


def test_account_numbers_have_97_as_their_check():
  assert pii.iban("DE89370400440532013000")
  assert sum(pii.iban(f"DE{i:02}370400440532013000") for i in range(2, 99)) == 1


@pytest.mark.parametrize(
  "piece",
  ["+1", "1.", "1-", "a@", "@a.", "4111 ", "AA11 ", "AA11AAAA", "(", "2001:", "+99999999999999999 ",
   "212-555-", "9 ", "9", "tel 1 ", "a.", "x@" + "a-" * 40, "DE89 3704 0044 ", "1.1.1.1 "],
)  # fmt: skip
def test_no_text_is_slow(piece):
  begin = time.process_time()
  mask_pii(piece * (50_000 // len(piece)))
  assert time.process_time() - begin < 1.5
