"""`hooke generate`: continue a prompt, plainly or under a steering latent, the two side by side with the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tyro
from pydantic import Field, model_validator

from hooke.base.errors import ConfigError
from hooke.cli.command import Command, OptionError
from hooke.cli.session import Session


class Generate(Command):
    """Continue a prompt. With --dictionary and --latent, also continue it steered: scale times the latent's decoder
    direction is added where the dictionary writes, at every position, with the same seed.
    """

    words: ClassVar[str] = "generate"

    prompt: tyro.conf.Positional[str] = Field(description="Text to continue.")
    model: str = Field("hooke/stdlib", description="Built-in name, Hugging Face name, or local folder.")
    max_new_tokens: int = Field(40, ge=1, description="Length of the continuation, in tokens.")
    temperature: float = Field(0.0, ge=0, description="0 takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the smallest set with this much probability.")
    seed: int = Field(0, description="Of the sampling; the same for the plain and the steered text.")
    dictionary: Path | None = Field(None, description="Dictionary or run folder that holds the steering latent.")
    latent: int | None = Field(None, ge=0, description="Number of the latent to steer with.")
    scale: float = Field(
        8.0, allow_inf_nan=False, description="Length of the added vector, in units of the decoder direction."
    )
    run: Path | None = Field(None, description="Run folder to make; by default below runs/.")

    @model_validator(mode="after")
    def _both_or_none(self) -> Generate:
        if (self.dictionary is None) != (self.latent is None):
            raise OptionError("steering needs both --dictionary and --latent")
        return self

    def execute(self, session: Session) -> None:
        """Generate once or twice, and print the texts."""
        import hooke

        model = hooke.load(self.model)
        edit = None if self.dictionary is None else self._edit()  # refused before any work, if it must be
        with session.run_folder(self.run) as folder:
            texts = {"plain": self._continue(session, model, ())}
            if edit is not None:
                texts["steered"] = self._continue(session, model, (edit,))
            with folder.artefact("continuations.json", "text") as path:
                from hooke.base.files import write_json

                write_json(path, {"prompt": self.prompt, **texts})
            session.results |= {"prompt": self.prompt, **texts}
        for name, text in texts.items():
            session.say(f"--- {name}" if len(texts) > 1 else "")
            session.say(self.prompt + text)
        if self.dictionary is None:
            session.next = "hooke generate PROMPT --dictionary RUN --latent N   (steer with a latent)"

    def _edit(self) -> object:
        import torch

        from hooke.cli.sources import find_dictionary
        from hooke.dictionaries.dictionary import Dictionary
        from hooke.model.edits import Add

        dictionary = Dictionary.load(find_dictionary(self.dictionary or Path()))
        latent = self.latent or 0
        if latent >= dictionary.n_latents:
            raise ConfigError(f"--latent {latent} does not exist; the dictionary has {dictionary.n_latents}")
        if dictionary.writes is None:
            raise ConfigError(f"{self.dictionary} does not say where it writes, so it cannot steer")
        return Add(dictionary.writes, torch.as_tensor(dictionary[latent].decoder), scale=self.scale)

    def _continue(self, session: Session, model: object, edits: tuple) -> str:
        name = "steered" if edits else "generate"
        out = model.generate(  # type: ignore[attr-defined]
            self.prompt,
            edits=edits,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            on_token=lambda step, _: session.sink.progress(name, step + 1, self.max_new_tokens, "tokens"),
        )
        return out.texts[0]
