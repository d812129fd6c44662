"""What every command is: a frozen set of options with an `execute`, and how wrong options are reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hooke.base.errors import HookeError

if TYPE_CHECKING:
    from hooke.cli.session import Session


class OptionError(HookeError):
    """An option with a value that it cannot take."""


Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]  # no "(default: True)" beside --no-...: it says nothing


class Command(BaseModel, ABC):
    """Options of one command. Every field is a flag, so internal settings do not belong here.

    Subclasses hold at most 15 fields; their docstring is the help text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    not_config: ClassVar[tuple[str, ...]] = ()  # options that do not decide the results
    words: ClassVar[str]  # how the command is called, "models show"

    as_json: Annotated[bool, tyro.conf.arg(name="json", help_behavior_hint="")] = Field(
        False, description="End stdout with one JSON object that holds the numbers; text for people goes to stderr."
    )

    @abstractmethod
    def execute(self, session: Session) -> None:
        """Do the work: report to `session.sink`, leave numbers in `session.results`."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_line(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            raise OptionError("; ".join(_complaint(item) for item in error.errors())) from error


def check_k(k: float | int, n_latents: int) -> None:
    """Refuse more active latents than a dictionary has.

    Raises:
        OptionError: naming both flags.
    """
    if k > n_latents:
        raise OptionError(f"--k: {k:g} active latents a token, of only {n_latents}; lower --k or raise --n-latents")


def _complaint(item: Any) -> str:
    name = "--" + ".".join(str(part) for part in item["loc"]).replace("_", "-")
    message = item["msg"][:1].lower() + item["msg"][1:]
    return f"{name}: {message}, got {item['input']!r}" if item["loc"] else message.removeprefix("value error, ")
