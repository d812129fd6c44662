"""The demo's promises, kept by the real demo. How long it takes is a benchmark's business, not a test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path):
    code = "import sys; from hooke.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "demo", "--no-serve", "--json", "--run", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loss_recovered"] >= 0.90
    assert found["dead_share"] <= 0.25
    assert found["fvu"] <= found["random.fvu"] / 2
    assert found["fvu"] < found["pca.fvu"]
    assert found["l0"] == pytest.approx(32, rel=0.1)
    assert found["peak_memory_gb"] < 3
    assert len(found["latents"]) == 5
    assert (tmp_path / "demo" / "index" / "manifest.json").is_file()
