"""The command line as a user meets it: help, wrong use, errors in one line, and the JSON line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hooke.base.errors import DataError
from hooke.cli.generate import Generate
from hooke.cli.main import COMMANDS, command_class, main, parse
from hooke.cli.sources import open_corpus
from hooke.cli.usage import flags_of
from hooke.runs.folder import RunFolder


def test_no_arguments_shows_every_command(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in COMMANDS)


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "hooke 0.1.0\n"


def test_a_group_alone_lists_its_commands_and_is_wrong_use(capsys: pytest.CaptureFixture) -> None:
    assert main(["runs"]) == 2
    shown = capsys.readouterr().out
    assert "runs verify" in shown
    assert "generate" not in shown
    assert main(["runs", "--help"]) == 0


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["trian"], ["'trian' is not a command", "did you mean 'train'"]),
        (["runs", "lst"], ["'runs lst' is not a command", "did you mean 'runs list'"]),
        (["generate", "x", "--top-p", "3"], ["--top-p", "less than or equal to 1", "got 3.0"]),
        (["generate", "x", "--latent", "3"], ["steering needs both --dictionary and --latent"]),
        (["generate", "x", "--model", "hooke/stdlb"], ["'hooke/stdlb' is not built in", "did you mean 'hooke/stdlib'"]),
        (["runs", "show", "nowhere"], ["nowhere"]),
        (["runs", "list", "--root", "nowhere"], ["nowhere is not a folder", "hooke demo"]),
    ],
)
def test_wrong_use_is_one_line_on_stderr_and_exit_code_2(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("hooke: error: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    assert [part for part in parts if part not in shown.err] == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            "generate x --max-new-token 5",
            "--max-new-token is not an option of hooke generate; did you mean '--max-new-tokens'?",
        ),
        ("generate x --max_new_token=5", "--max-new-token is not an option of hooke generate; did you mean"),
        ("train -k 3", "-k is not an option of hooke train; did you mean '--k'?"),
        ("generate x --seed --bogus", "--seed: expected a whole number, got '--bogus'"),  # a value, however it looks
        ("demo --serve", "--serve is what happens anyway: leave it out; its opposite is --no-serve"),
        ("generate", "hooke generate needs PROMPT (Text to continue.)"),
        ("generate --seed 3", "hooke generate needs PROMPT"),
        ("eval a b", "'b' is more than hooke eval takes; quote a text that has spaces"),
        ("generate x --seed q", "--seed: expected a whole number, got 'q'"),
        ("train --n-tokens 1e6", "--n-tokens: expected a whole number, got '1e6'"),
        ("train --k many", "--k: expected a number, got 'many'"),
        (
            "train --activation batchtop",
            "--activation: expected batchtopk or topk, got 'batchtop'; did you mean 'batch",
        ),
        ("train --run", "--run needs a value"),
        ("train --run --seed 3", "--run needs a value"),
        ("generate x --latent none", "--latent: expected a whole number, got 'none'"),
        ("train --k=50 --n-latents=16", "--k: 50 active latents a token, of only 16; lower --k or raise --n-latents"),
        ("demo --k=100 --n-latents=64", "--k: 100 active latents a token, of only 64"),
        ("train --batch-size=100000", "--batch-size: input should be less than or equal to 65536, got 100000"),
    ],
)
def test_arguments_that_no_flag_takes_are_one_plain_line(argv: str, said: str, capsys: pytest.CaptureFixture) -> None:
    assert main(argv.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"hooke: error: {said}")
    assert shown.err.count("\n") == 1
    assert not set(shown.err) & set("│╭╰─")


def test_negative_numbers_and_both_spellings_of_a_flag_are_taken() -> None:
    command = parse("generate", ["x", "--scale", "-3", "--max_new_tokens", "5"])
    assert (command.scale, command.max_new_tokens) == (-3.0, 5)


@pytest.mark.parametrize("words", COMMANDS)
def test_the_flags_that_errors_suggest_are_those_of_the_help(words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(words, ["--help"])
    shown = set(re.findall(r"^\W+(?:-h, )?(--[a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE))
    assert shown == {flag for flag in flags_of(command_class(words)) if flag.startswith("--")}


@pytest.mark.parametrize(("words", "flag"), [("demo", "--no-serve"), ("train-builtin", "--no-compile")])
def test_a_switch_that_turns_off_claims_no_default(words: str, flag: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(words, ["--help"])
    shown = capsys.readouterr().out
    assert flag in shown
    assert "True" not in shown and "False" not in shown


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKE_DEBUG", "1")
    with pytest.raises(DataError):
        main(["runs", "list", "--root", "nowhere"])


def test_an_interrupt_is_not_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def stop(self, session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_class("models list"), "execute", stop)
    assert main(["models", "list"]) == 130
    assert capsys.readouterr().err == "hooke: stopped\n"


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "list", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["builtin"] == ["hooke/stdlib"]
    assert "families" in shown.err
    assert "next  hooke models show hooke/stdlib" in shown.err


def test_without_json_people_read_stdout(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr()
    assert "families" in shown.out
    assert shown.err == ""


def test_options_are_parsed_into_a_frozen_object(tmp_path: Path) -> None:
    command = parse("generate", ["import ", "--seed", "7", "--dictionary", str(tmp_path), "--latent", "2", "--json"])
    assert isinstance(command, Generate)
    assert (command.prompt, command.seed, command.latent, command.as_json) == ("import ", 7, 2, True)
    assert command.dictionary == tmp_path
    with pytest.raises(ValueError, match="frozen"):
        command.seed = 8


def test_runs_are_listed_shown_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with RunFolder.create(tmp_path / "first", command="train", config={"k": 32}) as run:
        with run.artefact("notes.txt", "text") as path:
            path.write_text("hello")
        run.finish({"fvu": 0.125})
    assert main(["runs", "list", "--root", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["path"], row["command"], row["status"]) for row in listed] == [("first", "train", "finished")]
    assert main(["runs", "show", str(tmp_path / "first")]) == 0
    shown = capsys.readouterr().out
    assert "0.125" in shown
    assert "notes.txt" in shown
    assert main(["runs", "verify", str(tmp_path / "first")]) == 0
    (tmp_path / "first" / "notes.txt").write_text("jello")
    capsys.readouterr()
    assert main(["runs", "verify", str(tmp_path / "first")]) == 2
    assert "notes.txt" in capsys.readouterr().err


def test_more_memory_than_there_is_and_numbers_that_are_none_are_one_line(tmp_path, capsys):
    run = f"--run={tmp_path / 'run'}"
    assert main(["train", "--n-latents", "99999999999", run]) == 2
    assert "not enough memory; lower --n-latents" in capsys.readouterr().err
    assert main(["train", "--k", "inf", run]) == 2
    assert "--k" in capsys.readouterr().err


def test_the_field_of_json_lines_is_named_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"id": "a", "n": 3, "body": "hello"}\n{"id": "b", "body": "you"}\n')
    corpus = open_corpus(f"{path}:body")
    assert [(document.id, document.text) for document in corpus] == [("a", "hello"), ("b", "you")]
    with pytest.raises(DataError, match=r"--corpus: .* no text under 'text'; it has text under 'id', 'body'; .*:FIELD"):
        open_corpus(str(path))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        open_corpus(f"{tmp_path / 'other.jsonl'}:body")
