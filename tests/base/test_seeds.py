from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from hooke.base.errors import ConfigError
from hooke.base.seeds import numpy_generator, torch_generator


def test_streams_are_frozen_across_versions_and_processes():
    # these numbers are part of every result ever published with hooke: they must not change
    assert numpy_generator(0, "batches").integers(1000, size=4).tolist() == [515, 838, 277, 569]
    assert torch.randint(1000, (4,), generator=torch_generator(0, "batches")).tolist() == [501, 443, 742, 631]


@pytest.mark.slow
def test_another_process_gets_the_same_numbers():
    code = "from hooke.base.seeds import numpy_generator as g; print(g(7, 'a', 1).integers(2**40))"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(printed) == numpy_generator(7, "a", 1).integers(2**40)


@pytest.mark.parametrize("other", [(1, "a"), (0, "b"), (0, "a", 0), (0, "a", "0"), (0,), (0, "a", "a")])
def test_other_seeds_and_names_give_other_numbers(other):
    assert (numpy_generator(0, "a").random(8) != numpy_generator(*other).random(8)).all()
    assert (torch.rand(8, generator=torch_generator(0, "a")) != torch.rand(8, generator=torch_generator(*other))).all()


def test_text_and_number_and_joined_names_are_different_streams():
    draws = [numpy_generator(0, *stream).integers(2**60) for stream in [(1,), ("1",), ("a", "b"), ("ab",)]]
    assert len(set(draws)) == 4


def test_streams_are_uncorrelated():
    draws = np.stack([numpy_generator(0, "stream", i).standard_normal(4000) for i in range(20)])
    off_diagonal = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize("seed", [True, 1.5, None])
def test_other_kinds_of_seed_are_refused(seed):
    from beartype.roar import BeartypeCallHintParamViolation
    from jaxtyping import TypeCheckError

    with pytest.raises((ConfigError, TypeCheckError, BeartypeCallHintParamViolation)):
        numpy_generator(seed)
