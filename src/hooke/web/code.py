"""The few lines of Python behind each panel: they give the same numbers in a notebook."""

from __future__ import annotations

from hooke.web.session import Session


def opening(session: Session) -> str:
    """Load the model and the dictionary."""
    folder = session.dictionary_path or "path/to/dictionary"
    return (
        "import hooke\n"
        "from hooke.dictionaries.dictionary import Dictionary\n"
        f"model = hooke.load({session.model.name!r})\n"
        f"dictionary = Dictionary.load({str(folder)!r})\n"
    )


def overview(session: Session) -> str:
    """The scores and the densities."""
    return (
        opening(session) + "from hooke.evals.dictionary import evaluate\n"
        "from hooke.features.index import LatentIndex\n"
        f"index = LatentIndex.open({str(session.index.path)!r}, model)\n"
        "evaluate(dictionary, model), index.density"
    )


def latent(session: Session, number: int, groups: str, variant: str) -> str:
    """Examples, histogram, logit weights and relatives of one latent."""
    return (
        opening(session) + "from hooke.features.index import LatentIndex\n"
        "from hooke.features.logits import logit_weights\n"
        "from hooke.features.similar import similar\n"
        f"index = LatentIndex.open({str(session.index.path)!r}, model)\n"
        f"index.top({number}), index.{groups}({number}), index.histogram({number})\n"
        f"logit_weights(model, dictionary, {number}, variant={variant!r}), similar(dictionary.W_dec, {number})"
    )


def try_text(session: Session, text: str) -> str:
    """Codes of a text."""
    return (
        opening(session) + f"run = model.run({text!r}, capture=['{session.dictionary.reads}'])\n"
        f"codes = dictionary.encode(run['{session.dictionary.reads}'].flatten(2)[run.keep])"
    )


def steer(session: Session, prompt: str, number: int, strength: float, options: dict[str, float | int]) -> str:
    """The steered continuation."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return (
        opening(session) + f"vector = dictionary[{number}].decoder\n"
        f"edit = hooke.Add('{session.dictionary.writes}', vector, scale={strength!r})\n"
        f"model.generate({prompt!r}, edits=[edit], {arguments}).texts"
    )
