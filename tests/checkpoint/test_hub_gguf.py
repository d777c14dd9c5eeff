"""Which `.gguf` file of a repository a format names, and how it is pulled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from localq.checkpoint import hub
from localq.checkpoint.hub_files import choose_form, exact_form, gguf_forms
from localq.errors import DownloadError, LocalqError
from tests.hub_client import FILES, stop_network
from tests.hub_client import cache_folder as cache_folder
from tests.hub_client import server as server
from tests.hub_server import HubServer

REPO = "org/Name-GGUF"
BIG = {"BF16/Name-BF16-00001-of-00002.gguf": b"one" * 4000, "BF16/Name-BF16-00002-of-00002.gguf": b"two" * 3000}
FORMS = {
    "README.md": b"# quantized",
    "Name-Q4_K_M.gguf": b"medium" * 3000,
    "Name-Q4_0.gguf": b"old" * 4000,
    "Name-IQ2_XXS.gguf": b"tiny" * 1000,
    "Name-UD-Q4_K_XL.gguf": b"own mix" * 2000,
    "mmproj-Name-F16.gguf": b"sees",
    "Name-imatrix.gguf": b"importance",
    **BIG,
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Name-Q4_K_M.gguf", "q4_k_m"),
        ("name.q4_k_m.gguf", "q4_k_m"),
        ("tiny_llama_Q8_0.GGUF", "q8_0"),
        ("Q4_K_M/Name-Q4_K_M-00001-of-00001.gguf", "q4_k_m"),
        ("Q4_K_M/Name-00001-of-00001.gguf", "q4_k_m"),
        ("Qwen2.5-0.5B-instruct-q5_k_m.gguf", "q5_k_m"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "f16"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "q4"),
        ("Name-UD-IQ1_S.gguf", "ud-iq1_s"),
        ("gpt-oss-20b-MXFP4.gguf", "mxfp4"),
        ("Name-Q4_0_4_8.gguf", "q4_0_4_8"),
        ("Name-F16-Q8_0.gguf", "q8_0"),
        ("model.gguf", "model"),
    ],
)
def test_the_file_type_is_a_word_of_the_name(name: str, form: str) -> None:
    (found,) = gguf_forms({name: 7})
    assert (found.name, found.names, found.size_bytes) == (f"gguf-{form}", (name,), 7)


@pytest.mark.parametrize("name", ["mmproj-model-f16.gguf", "Name.mmproj-Q8_0.gguf", "imatrix_x.gguf", "a.bin", "gguf"])
def test_a_file_that_is_not_a_model_has_no_format(name: str) -> None:
    assert gguf_forms({name: 7}) == []


def test_a_split_model_is_one_with_the_bytes_of_all_parts() -> None:
    sizes = {f"Q8_0/a-Q8_0-0000{number}-of-00003.gguf": 10**number for number in (3, 1, 2)}
    (found,) = gguf_forms(sizes)
    assert found.names == tuple(sorted(sizes)) and found.size_bytes == 1110
    del sizes["Q8_0/a-Q8_0-00002-of-00003.gguf"]
    assert gguf_forms(sizes) == []


def test_a_files_own_mix_of_types_is_found_by_its_type_where_no_other_file_has_it() -> None:
    sizes = {"a-UD-Q4_K_XL.gguf": 1, "a-UD-Q4_K_M.gguf": 2, "a-Q4_K_M.gguf": 3}
    assert choose_form(REPO, sizes, "gguf-q4_k_xl").names == ("a-UD-Q4_K_XL.gguf",)
    assert choose_form(REPO, sizes, "gguf-q4_k_m").names == ("a-Q4_K_M.gguf",)
    assert choose_form(REPO, sizes, "gguf-ud-q4_k_m").names == ("a-UD-Q4_K_M.gguf",)
    # In the cache it is not known whether the repository has a plain file too.
    assert exact_form({"a-UD-Q4_K_M.gguf": 2}, "gguf-q4_k_m") is None


def test_each_of_several_files_of_a_type_can_be_named() -> None:
    sizes = {"chat/a-Q4_0.gguf": 1, "chat/b-Q4_0.gguf": 2}
    with pytest.raises(DownloadError, match=r"chat/a-Q4_0\.gguf, chat/b-Q4_0\.gguf") as caught:
        choose_form(REPO, sizes, "gguf-q4_0")
    assert f"{REPO}:gguf-a-q4_0" in caught.value.hint
    assert choose_form(REPO, sizes, "gguf-b-q4_0").names == ("chat/b-Q4_0.gguf",)


@pytest.mark.parametrize("form", ["gguf-q4_k_m", "gguf-iq2_xxs", "gguf-q4_k_xl"])
def test_only_the_file_of_the_format_is_fetched(server: HubServer, cache_folder: Path, form: str) -> None:
    repository = server.add(REPO, FORMS)
    name = next(name for name in FORMS if form[5:] in name.lower())
    reports: list[tuple[int, int]] = []
    path = hub.pull_form(REPO, form, progress=lambda done, total: reports.append((done, total)))
    commit = repository.references["main"]
    assert path == cache_folder / "models--org--Name-GGUF" / "snapshots" / commit / name
    assert path.read_bytes() == FORMS[name]
    assert server.fetched() == [name]
    assert reports[-1] == (len(FORMS[name]), len(FORMS[name]))


def test_all_parts_of_a_split_file_are_fetched_and_the_first_is_given(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FORMS)
    path = hub.pull_form(REPO, "gguf-bf16")
    assert path is not None and path.name == "Name-BF16-00001-of-00002.gguf"
    assert server.fetched() == sorted(BIG)
    assert path.with_name("Name-BF16-00002-of-00002.gguf").is_file()


def test_a_gguf_file_in_the_cache_is_found_without_any_request(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FORMS)
    assert hub.find_form(REPO, "gguf-bf16") is None
    first = hub.pull_form(REPO, "gguf-bf16")
    other = hub.pull_form(REPO, "gguf-q4_k_m")
    server.requests.clear()
    assert hub.find_form(REPO, "gguf-bf16") == first
    assert hub.find_form(REPO, "gguf-q4_k_m") == other
    assert hub.find_form(REPO, "gguf-q4_0") is None
    assert server.requests == []
    assert first is not None
    first.with_name("Name-BF16-00002-of-00002.gguf").resolve().unlink()
    assert hub.find_form(REPO, "gguf-bf16") is None


def test_a_suffix_in_capitals_is_found_in_the_cache(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, {"Name-Q8_0.GGUF": b"GGUF" * 5})
    path = hub.pull_form(REPO, "gguf-q8_0")
    assert path is not None
    assert hub.find_form(REPO, "gguf-q8_0") == path


def test_a_gguf_file_that_is_there_is_not_fetched_again(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FORMS)
    hub.pull_form(REPO, "gguf-q4_0")
    server.requests.clear()
    hub.pull_form(REPO, "gguf-q4_0")
    assert server.fetched() == []


def test_without_a_network_the_cache_is_enough(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FORMS)
    path = hub.pull_form(REPO, "gguf-q4_0")
    stop_network(monkeypatch)
    assert hub.pull_form(REPO, "gguf-q4_0") == path
    with pytest.raises(DownloadError, match="no connection"):
        hub.pull_form(REPO, "gguf-q4_k_m")


def test_a_broken_download_leaves_no_gguf_file(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.add(REPO, FORMS)
    server.cut_after_bytes, server.stays_down_after_cut = 5_000, True
    with pytest.raises(DownloadError):
        hub.pull_form(REPO, "gguf-bf16")
    assert hub.find_form(REPO, "gguf-bf16") is None
    server.repair()
    assert hub.pull_form(REPO, "gguf-bf16") == hub.find_form(REPO, "gguf-bf16") is not None


def test_a_gguf_file_that_does_not_fit_on_the_disk_is_refused_before_it_is_downloaded(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FORMS)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match="GB more"):
        hub.pull_form(REPO, "gguf-q4_0")
    assert server.fetched() == []


def test_a_format_that_is_not_there_is_refused_with_those_that_are(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FORMS)
    with pytest.raises(DownloadError, match="has no gguf-q8_0") as caught:
        hub.pull_form(REPO, "gguf-q8_0")
    assert "gguf-iq2_xxs (4.00 kB), gguf-q4_0 (12.00 kB)" in caught.value.hint
    assert "mmproj" not in caught.value.hint and "imatrix" not in caught.value.hint


def test_a_pull_of_a_whole_repository_is_refused_with_its_formats_and_how_to_name_one(
    server: HubServer, cache_folder: Path
) -> None:
    server.add(REPO, FORMS)
    with pytest.raises(DownloadError, match=r"gguf-bf16 \(21\.00 kB\)") as caught:
        hub.pull(REPO)
    assert f"{REPO}:gguf-iq2_xxs" in caught.value.hint


def test_beside_a_checkpoint_files_count_only_for_what_can_not_be_made(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES | FORMS)
    assert hub.pull_form(REPO, "gguf-q4_k_m") is None
    path = hub.pull_form(REPO, "gguf-iq2_xxs", beside_checkpoint=True)
    assert path is not None and path.name == "Name-IQ2_XXS.gguf"
    assert hub.pull_form(REPO, "gguf-nonsense", beside_checkpoint=True) is None


def test_a_repository_without_any_model_is_refused(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, {"README.md": b"", "mmproj.gguf": b""})
    with pytest.raises(LocalqError, match="has no") as caught:
        hub.pull_form(REPO, "gguf-q4_0")
    assert caught.value.hint
