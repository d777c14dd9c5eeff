"""`localq pull` and `localq generate` of forms that a repository has, against a hub on 127.0.0.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localq.cli import main as cli
from tests.foreign_forms import write_gguf, write_mlx
from tests.hub_client import FILES, SHARDS
from tests.hub_client import cache_folder as cache_folder
from tests.hub_client import server as server
from tests.hub_server import Fault, HubServer
from tests.tiny_checkpoints import CONFIGS

REPO = "org/Name-GGUF"


@pytest.fixture
def gguf_repository(server: HubServer, cache_folder: Path, tmp_path: Path) -> HubServer:
    folder = tmp_path / "repository"
    folder.mkdir()
    write_gguf(folder / "Name-IQ2_XXS.gguf", "qwen2")
    write_gguf(folder / "Name-Q8_0.gguf", "llama")
    write_gguf(folder / "Name-Q4_K_M.gguf", "qwen2", tensors_per_part=10)
    server.add(REPO, folder)
    return server


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["localq", *arguments])
        patch.setattr("sys.stdin", None)
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
    written = capsys.readouterr()
    return code, written.out, written.err


def test_pull_downloads_one_gguf_file_and_prints_its_path(
    gguf_repository: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "pull", f"{REPO}:GGUF-Q4_K_M")
    path = Path(out.strip())
    assert code == 0 and path.name == "Name-Q4_K_M-00001-of-00003.gguf" and cache_folder in path.parents
    assert gguf_repository.fetched() == [f"Name-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert "pulling" in err


@pytest.mark.parametrize("form", ["gguf-q4_k_m", "gguf-iq2_xxs"])
def test_generate_pulls_a_gguf_file_runs_it_and_finds_it_again(
    gguf_repository: HubServer, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    command = ["generate", f"{REPO}:{form}", "the dog", "-n", "4"]
    first = run(capsys, *command)
    assert first[0] == 0 and first[1] and "pulling" in first[2]
    gguf_repository.requests.clear()
    again = run(capsys, *command)
    assert again == (0, first[1], "")
    assert gguf_repository.requests == []


def test_generate_names_the_model_by_its_repository(
    gguf_repository: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "generate", f"{REPO}:gguf-iq2_xxs", "the dog", "-n", "2", "--json")
    assert code == 0
    assert f'"model": "{REPO}"' in out and '"recipe": "gguf-iq2_xxs"' in out


@pytest.mark.parametrize("verb", ["pull", "generate", "convert", "bench"])
def test_of_a_repository_of_gguf_files_one_must_be_named(
    gguf_repository: HubServer, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    code, out, err = run(capsys, verb, REPO, *(["the dog"] if verb == "generate" else []))
    assert (code, out) == (1, "")
    assert "gguf-iq2_xxs (" in err and "gguf-q4_k_m (" in err and f"{REPO}:gguf-" in err
    assert gguf_repository.fetched() == []


def test_convert_refuses_a_format_that_is_not_a_recipe(
    gguf_repository: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "convert", f"{REPO}:gguf-iq2_bn")[0] == 1
    code, _, err = run(capsys, "convert", "toy-llama", "--to", "gguf-iq2_bn")
    assert code == 1 and "unknown format 'gguf-iq2_bn'" in err


def test_a_file_of_a_type_that_needs_calibration_runs_also_beside_a_checkpoint(
    server: HubServer, cache_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "Name-IQ2_XXS.gguf", "qwen2")
    server.add("org/both", {**FILES, "Name-IQ2_XXS.gguf": (tmp_path / "Name-IQ2_XXS.gguf").read_bytes()})
    assert run(capsys, "pull", "org/both")[0] == 0
    server.requests.clear()
    code, out, _ = run(capsys, "generate", "org/both:gguf-iq2_xxs", "the dog", "-n", "2", "--json")
    assert code == 0 and '"recipe": "gguf-iq2_xxs"' in out
    assert server.fetched() == ["Name-IQ2_XXS.gguf"]


def test_a_misspelt_recipe_of_a_checkpoint_is_refused_with_the_nearest(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("org/tiny", FILES)
    for verb in ("pull", "generate", "bench"):
        code, _, err = run(capsys, verb, "org/tiny:gguf-q4km", *(["the dog"] if verb == "generate" else []))
        assert code == 1 and "unknown format" in err and "gguf-q4_k_m" in err
    assert server.fetched() == []


def test_pull_of_a_format_that_is_made_from_a_checkpoint_says_how(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("org/tiny", FILES)
    for form in ("gguf-q4_k_m", "mlx-4bit"):
        code, _, err = run(capsys, "pull", f"org/tiny:{form}")
        assert code == 1 and f"localq convert org/tiny --to {form}" in err


@pytest.mark.parametrize(("bits", "tags"), [(4, []), (None, ["mlx"])])
def test_an_mlx_repository_runs_as_it_is(
    server: HubServer,
    cache_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bits: int | None,
    tags: list[str],
) -> None:
    pytest.importorskip("mlx_lm")
    server.add("mlx-community/Name", write_mlx(tmp_path / "repository", "qwen2", bits)).tags = tags
    command = ["generate", "mlx-community/Name", "the dog", "-n", "4", "--json"]
    code, out, err = run(capsys, *command)
    assert code == 0 and '"model": "mlx-community/Name"' in out and '"recipe": "mlx"' in out
    assert "pulling" in err
    server.requests.clear()
    assert run(capsys, *command)[0] == 0
    assert server.requests == []


def test_convert_refuses_an_mlx_repository_before_its_weights_are_downloaded(
    server: HubServer, cache_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlx_lm")
    server.add("mlx-community/Name-4bit", write_mlx(tmp_path / "repository", "qwen2", 4))
    code, _, err = run(capsys, "convert", "mlx-community/Name-4bit")
    assert code == 1 and "is an MLX artifact" in err and "localq generate mlx-community/Name-4bit" in err
    assert not any(name.endswith(".safetensors") for name in server.fetched())


def test_a_checkpoint_that_can_not_be_converted_is_refused_before_its_weights_are_downloaded(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = b'{"model_type": "gemma3", "architectures": ["Gemma3ForCausalLM"]}'
    server.add("org/gemma", FILES | {"config.json": config})
    code, _, err = run(capsys, "generate", "org/gemma", "the dog")
    assert code == 1 and "Gemma3ForCausalLM" in err
    assert not set(server.fetched()) & set(SHARDS)


def test_a_pull_with_nothing_to_do_says_so(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("org/tiny", FILES)
    code, out, err = run(capsys, "pull", "org/tiny")
    assert code == 0 and "pulling" in err and "nothing" not in err
    for again in (["pull", "org/tiny"], ["pull", "org/tiny", "--verify"]):
        assert run(capsys, *again) == (0, out, "nothing to download: 219.44 kB are here, with the right hashes\n")


def test_a_damaged_download_ends_in_an_error_that_names_the_file(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("org/tiny", FILES)
    server.fault = lambda method, path: Fault(body=lambda body: body[:-1] + b"?") if SHARDS[1] in path else None
    code, out, err = run(capsys, "pull", "org/tiny")
    assert (code, out) == (1, "")
    assert f"error: {SHARDS[1]} of org/tiny arrived damaged" in err and "localq pull org/tiny" in err


def test_verify_says_what_was_damaged(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("org/tiny", FILES)
    folder = Path(run(capsys, "pull", "org/tiny")[1].strip())
    (folder / SHARDS[0]).resolve().write_bytes(bytes(len(FILES[SHARDS[0]])))
    code, _, err = run(capsys, "pull", "org/tiny", "--verify")
    assert code == 0 and f"{SHARDS[0]} in the cache is damaged: fetching it again" in err
    assert (folder / SHARDS[0]).read_bytes() == FILES[SHARDS[0]]


def test_a_busy_hub_is_told(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.add("org/tiny", FILES)
    faults = [Fault(status=429, headers={"Retry-After": "3"})]
    server.fault = lambda method, path: faults.pop() if faults else None
    code, _, err = run(capsys, "pull", "org/tiny")
    assert code == 0 and "can't list org/tiny now" in err and "(HTTP 429): trying again in 3 s" in err


def test_a_base_model_is_refused_before_its_weights_are_downloaded(
    server: HubServer, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.dumps(CONFIGS["llama-3"]).encode()
    files = {name: data for name, data in FILES.items() if name != "chat_template.jinja"} | {"config.json": config}
    server.add("org/base", files)
    code, _, err = run(capsys, "generate", "org/base", "the dog")
    assert code == 1 and "org/base has no chat template" in err
    assert "tokenizer_config.json" in server.fetched() and not set(server.fetched()) & set(SHARDS)
