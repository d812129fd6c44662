from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess

import torch

from hooke.runs import describe
from hooke.runs.environment import git_state, memory_bytes


def test_it_says_what_a_result_depends_on():
    found = describe()
    assert found["versions"]["torch"] == torch.__version__ and found["python"] == platform.python_version()
    assert found["machine"]["cores"] >= 1 and found["machine"]["torch_threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_it_says_nothing_about_the_person():
    text = json.dumps(describe())
    assert str(os.getcwd()) not in text and platform.node() not in text.split('"')
    assert getpass.getuser() not in text.split('"')


def test_git_state_follows_the_repository(tmp_path):
    assert git_state(tmp_path) is None

    def git(*arguments):
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q", "-b", "trunk")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["branch"] == "trunk" and state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["dirty"] is True
    git("checkout", "-q", "--detach")
    assert git_state(tmp_path)["branch"] is None


def test_memory_is_plausible():
    assert memory_bytes() is None or 2**27 < memory_bytes() < 2**50
