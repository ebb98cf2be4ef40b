"""Helpers for messages about code that somebody brings."""

from __future__ import annotations

import pytest
import torch

from rewards.errors import UserError, blamed, file_of


class Brought(torch.nn.Module):
    """Its constructor is in a file of torch."""

    def fails(self) -> None:
        raise KeyError("size")


def test_file_of_a_class_is_its_own_and_not_that_of_an_inherited_constructor() -> None:
    assert file_of(Brought) == file_of(Brought()) == file_of(Brought.fails) == __file__
    assert file_of(int) == file_of(len) == ""


def test_a_failure_is_blamed_on_the_line_of_the_class() -> None:
    with pytest.raises(UserError, match=rf"policy=Brought raised KeyError: 'size'; see {__file__}:\d+$"):
        with blamed("policy=Brought", file_of(Brought)):
            Brought().fails()
    # torch raises this one itself; the line that asked for the attribute is the one to correct.
    with pytest.raises(UserError, match=rf"no attribute 'weight'; see {__file__}:\d+$"):
        with blamed("policy=Brought", file_of(Brought)):
            _ = Brought().weight
