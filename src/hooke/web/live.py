"""Bodies that run the model: latents on a text of the reader's own, and steering beside its control."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hooke.base.errors import ConfigError, DataError
from hooke.base.seeds import torch_generator
from hooke.features.identity import site_read
from hooke.model.edits import Add, Edit
from hooke.model.tokens import Tokens
from hooke.web import code, schemas
from hooke.web.latents import require_latent, short
from hooke.web.session import Session

MAX_TOKENS = 1024


def try_text(session: Session, request: schemas.TryRequest) -> schemas.TryReply:
    """POST /api/try.

    Raises:
        DataError: an empty or too long text, or a latent that does not exist.
    """
    model, dictionary = session.model, session.dictionary
    if not request.text:
        raise DataError("the text is empty; write at least one character")
    for latent in request.latents:
        require_latent(session, latent)
    site = site_read(dictionary)
    tokens = _tokens(session, "the text", request.text)
    run = model.run(tokens, capture=[site], until=site)
    keep = run.keep[0]
    n_pos = len(keep)
    rows: list[list[schemas.LatentValue]] = [[] for _ in range(n_pos)]
    values = {str(latent): [0.0] * n_pos for latent in request.latents}
    if bool(keep.any()):
        with torch.no_grad():
            codes = dictionary.encode(run[site].flatten(2)[0][keep].float())
        ranked = codes.values.sort(dim=-1, descending=True)
        indices = codes.indices.gather(-1, ranked.indices)
        for number, pos in enumerate(keep.nonzero()[:, 0].tolist()):
            pairs = zip(indices[number].tolist(), ranked.values[number].tolist(), strict=True)
            active = [schemas.LatentValue(latent=i, value=short(v)) for i, v in pairs if v != 0]
            rows[pos] = active[: request.top]
            for latent in request.latents:
                values[str(latent)][pos] = short(float(codes.of(latent)[number]))
    ids = run.tokens.ids[0].tolist()
    shown = zip(ids, model.token_strings(ids), keep.tolist(), rows, strict=True)
    return schemas.TryReply(
        tokens=[
            schemas.TryToken(id=i, text=text, position=pos, special=not kept, top=top)
            for pos, (i, text, kept, top) in enumerate(shown)
        ],
        latents=values,
        code=code.try_text(session, request.text),
    )


def _tokens(session: Session, what: str, text: str, new: int = 0) -> Tokens:
    """The tokens of a text that, with so many new ones, fits the model and the page.

    Raises:
        DataError: it does not; the message names what is too long.
    """
    try:
        tokens = session.model.tokens(text)
    except DataError as error:
        raise DataError(f"{what} is too long: {error}") from error
    n = tokens.shape[1]
    most = min(MAX_TOKENS, getattr(session.model.hf.config, "max_position_embeddings", None) or MAX_TOKENS)
    if n + new > most:
        and_new = f" and {new} new ones" if new else ""
        raise DataError(f"{what} is too long: {n} tokens{and_new}; at most {most} fit")
    return tokens


def steer(
    session: Session, request: schemas.SteerRequest, check: Callable[[], None] = lambda: None
) -> schemas.SteerReply:
    """POST /api/steer: the vector is the latent's decoder row times `scale` times its maximal activation in the index.

    The control has the same length and a random direction, fixed by the seed and the latent. `check` is called at every
    token and may raise, to end work that nobody waits for.

    Raises:
        ConfigError: a dead latent, or a dictionary that does not say where it writes.
        DataError: a latent that does not exist, or a prompt that leaves no room in the model's context.
    """
    model, dictionary, latent = session.model, session.dictionary, request.latent
    require_latent(session, latent)
    site = dictionary.writes
    if site is None:
        raise ConfigError("the dictionary does not say which site it writes, so it cannot steer")
    largest = float(session.index.max_activation[latent])
    if largest == 0:
        raise ConfigError(f"latent {latent} never fired in the index, so its strength has no unit; choose a living one")
    _tokens(session, "the prompt", request.prompt, new=request.max_new_tokens)
    row = dictionary[latent].decoder.float()
    strength = request.scale * largest
    draw = torch.randn(row.shape, generator=torch_generator(request.seed, "steer-control", latent)).to(row.device)
    control = draw / draw.norm() * row.norm()
    options = {
        "max_new_tokens": request.max_new_tokens,
        "seed": request.seed,
        "temperature": request.temperature,
    }

    def continued(*edits: Edit) -> schemas.Continuation:
        out = model.generate(request.prompt, edits=edits, on_token=lambda _step, _ids: check(), **options)
        ids = out.ids[0][out.mask[0]].tolist()
        texts = model.token_strings(ids)
        return schemas.Continuation(tokens=[schemas.TokenText(id=i, text=t) for i, t in zip(ids, texts, strict=True)])

    run = model.run(request.prompt, capture=[site], until=site)
    kept = run[site].flatten(2)[run.keep if bool(run.keep.any()) else run.tokens.mask]
    shape = run[site].shape[2:]
    return schemas.SteerReply(
        default=session.remembered(("default", request.prompt, *options.values()), continued),
        steered=continued(Add(site, row.reshape(shape), scale=strength)),
        random=continued(Add(site, control.reshape(shape), scale=strength)),
        norm=short(abs(strength) * float(row.norm())),
        residual_norm=short(float(kept.float().norm(dim=-1).mean())),
        code=code.steer(session, request.prompt, latent, strength, options),
    )
