"""Payloads for the page's tests: made from the server's own schemas, in the shape that a real dictionary gives.

Texts are lines of Python split by a regular expression; activations follow simple rules, so the examples read like
those of a real latent. A few tokens are hostile on purpose: markup, control characters, bidirectional overrides.
"""

from __future__ import annotations

import math
import re
import zlib

from hooke.web import schemas

HOSTILE = "<script>window.pwned=1</script>"
BIDI = "\u202eevil"
N_LATENTS = 4096
MAX = 11.73

SNIPPETS = [
    (
        "json/decoder.py",
        "        if end != len(s):\n            raise JSONDecodeError('Extra data', s, end)\n        return obj\n",
    ),
    (
        "argparse.py",
        "    def __init__(self, option_strings, dest, nargs=None):\n        self.dest = dest\n"
        "        self.nargs = nargs\n",
    ),
    ("asyncio/events.py", "        if self._loop.get_debug():\n            self._source_traceback = extract_stack()\n"),
    (
        "collections/__init__.py",
        "    def copy(self):\n        return self.__class__(self)\n\n    def update(self, other):\n",
    ),
    (
        "email/message.py",
        "        return self._headers[name.lower()]\n\n    def keys(self):\n"
        "        return [k for k, v in self._headers]\n",
    ),
    (
        "http/cookies.py",
        "        self._key = self._value = self._coded_value = None\n        for key in self._reserved:\n",
    ),
    (
        "a/very/long/path/to/a/module/that/nobody/would/write/by/hand/internals.py",
        f"    text = '{HOSTILE}' + '{BIDI}'\n\tself.{'x' * 48} = text\n",
    ),
]
VOCABULARY = [
    ".",
    " self",
    "def",
    " area",
    "(",
    "):",
    "\n",
    "    ",
    "return",
    HOSTILE,
    "\t",
    "\x00",
    BIDI,
    "é",
    "🙂",
    "x" * 40,
    " ",
    "_",
]


def tokenise(text: str) -> list[str]:
    """Split text so that the pieces joined are the text again; a space goes with the word after it."""
    return re.findall(r"<script>.*?</script>| ?[A-Za-z_]+| ?\d+| {2,}(?= )|\s| ?[^\sA-Za-z_\d]+", text)


def token_id(text: str) -> int:
    """A stable made-up id."""
    return zlib.crc32(text.encode()) % 8192


def example(which: int, strength: float) -> schemas.ExampleBody:
    """A window around `self` in one snippet, whose focus has activation `strength`."""
    doc, text = SNIPPETS[which % len(SNIPPETS)]
    pieces = tokenise(text)
    places = [i for i, piece in enumerate(pieces) if piece.strip() == "self" or piece == "."] or [len(pieces) // 2]
    focus = places[(which * 3) % len(places)]

    def value(index: int) -> float:
        if index == focus:
            return strength
        if index in places:
            return round(strength * (0.25 + 0.5 * ((index * 7 + which) % 5) / 5), 4)
        return round(strength * 0.12, 4) if index == focus + 1 else 0.0

    tokens = [
        schemas.ExampleToken(id=token_id(piece), text=piece, position=12 + which + index, value=value(index))
        for index, piece in enumerate(pieces)
    ]
    return schemas.ExampleBody(doc=doc, start=40 + 17 * which, focus=focus, tokens=tokens)


def bell(low: float, high: float, n: int, height: float, centre: float, width: float) -> schemas.Histogram:
    """A bell-shaped histogram."""
    edges = [low + (high - low) * i / n for i in range(n + 1)]
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    return schemas.Histogram(
        edges=edges, counts=[round(height * math.exp(-(((m - centre) / width) ** 2))) for m in middles]
    )


def score(
    name: str, label: str, value: float | None, half: float, better: str | None, **controls: float | None
) -> schemas.Score:
    """One score with a symmetric interval."""
    known = value is not None
    return schemas.Score(
        name=name,
        label=label,
        value=value,
        low=value - half if known else None,
        high=value + half if known else None,
        n=65536 if known else 0,
        reason=None if known else "the evaluation was run without the KL pass",
        controls=controls,
        better=better,
    )


def overview() -> schemas.Overview:
    """The overview of a dictionary of 4096 latents."""
    density = bell(-5.5, 0.0, 40, 200, -3.0, 0.75)
    return schemas.Overview(
        model=schemas.ModelCard(name="hooke/stdlib", n_layers=6, d_model=256, n_vocab=8192),
        dictionary=schemas.DictionaryCard(
            name="demo",
            reads="resid_post.2",
            writes="resid_post.2",
            activation="BatchTopK",
            k=32,
            d_in=256,
            n_latents=N_LATENTS,
        ),
        scores=[
            score("l0", "L0, active latents per token", 31.7, 0.4, None),
            score("fvu", "Fraction of variance unexplained", 0.182, 0.003, "lower", random=0.71, pca=0.34, mean=1.0),
            score("cosine", "Cosine to the original", 0.912, 0.002, "higher", random=0.55, pca=0.82, mean=0.31),
            score("loss_recovered", "Loss recovered", 0.947, 0.006, "higher", random=0.33, pca=0.81, mean=0.02),
            score("kl_score", "KL score", None, 0.0, "higher", random=None, pca=None, mean=None),
            score("dead_share", "Dead latents", 0.143, 0.01, "lower", random=0.0),
        ],
        density_histogram=schemas.DensityHistogram(edges=density.edges, counts=density.counts, dead=586),
        n_tokens=1_000_000,
        corpus="stdlib-heldout",
        run="runs/demo",
        code="import hooke\n\nmodel = hooke.load('hooke/stdlib')\n"
        "sae = hooke.Dictionary.load('runs/demo/dictionary')\nhooke.evaluate(sae, model)",
    )


def row(index: int) -> schemas.LatentRow:
    """The table's line of a latent."""
    pick = [VOCABULARY[(index * step + step) % len(VOCABULARY)] for step in (1, 3, 5, 7)]
    return schemas.LatentRow(
        index=index,
        density=10 ** (-1.2 - 4 * ((index * 37) % 101) / 101),
        max=3 + 9 * ((index * 53) % 97) / 97,
        top_token=schemas.TokenText(id=token_id(pick[0]), text=pick[0]),
        raised=pick[1:],
    )


def latents(total: int, offset: int, limit: int) -> schemas.LatentPage:
    """A window of the table, by number."""
    return schemas.LatentPage(total=total, rows=[row(i) for i in range(offset, min(offset + limit, total))])


def logits() -> schemas.Logits:
    """Ten raised and ten lowered tokens, the hostile ones among them."""
    raised = [
        schemas.LogitToken(id=i, text=text, value=2.41 - 0.17 * i)
        for i, text in enumerate(["_", "__", " self", HOSTILE, "name", ".", "_loop", "x" * 40, "\n", "args"])
    ]
    lowered = [
        schemas.LogitToken(id=50 + i, text=text, value=-1.62 + 0.09 * i)
        for i, text in enumerate([" and", " the", "    ", BIDI, "\t", " of", "é", "🙂", ":", " in"])
    ]
    return schemas.Logits(raised=raised, lowered=lowered, histogram=bell(-2, 2.5, 50, 900, 0.1, 0.6), variant="raw")


def groups(strongest: float) -> list[schemas.Group]:
    """The strongest examples and five quantiles."""
    result = [
        schemas.Group(
            name="top",
            low=0.93 * strongest,
            high=strongest,
            share=0.0094,
            examples=[example(i, strongest * (1 - 0.004 * i)) for i in range(20)],
        )
    ]
    for part in range(4):
        low, high = strongest * (3 - part) / 4, strongest * (4 - part) / 4
        items = [example(i + 3 * part + 1, low + (high - low) * (0.9 - 0.08 * i)) for i in range(8)]
        result.append(
            schemas.Group(
                name=f"quantile {4 - part} of 4",
                low=low,
                high=high,
                share=[0.03, 0.1, 0.27, 0.59][part],
                examples=items,
            )
        )
    return result


def detail(index: int) -> schemas.LatentDetail:
    """All of a latent's page; latent 9 is dead."""
    dead = index == 9
    strongest = 0.0 if dead else MAX
    histogram = schemas.Histogram(
        edges=[MAX * i / 50 for i in range(51)], counts=[round(260 * math.exp(-i / 7)) for i in range(50)]
    )
    return schemas.LatentDetail(
        index=index,
        density=0.0 if dead else 0.00213,
        n_firing=0 if dead else 2130,
        max=strongest,
        mean=None if dead else 2.37,
        dead=dead,
        reason="It fired on none of the 1,000,000 tokens of the index." if dead else None,
        activation_histogram=None if dead else histogram,
        logits=logits(),
        groups=[] if dead else groups(strongest),
        similar=[
            schemas.SimilarLatent(
                index=(index * 31 + 190 * i) % N_LATENTS, cosine=0.77 - 0.06 * i, density=10 ** (-2 - 0.2 * i)
            )
            for i in range(8)
        ],
        neighbours=schemas.Neighbours(
            prev=index - 1 if index else None, next=index + 1 if index + 1 < N_LATENTS else None
        ),
        code=f"index = hooke.LatentIndex.open('runs/demo/index')\nindex.top({index}, n=20)\nindex.histogram({index})",
    )


def try_reply(request: schemas.TryRequest) -> schemas.TryReply:
    """Latent 137 fires on `self` and dots; every token has a few latents of its own."""
    pieces = ["<|bos|>", *tokenise(request.text)]

    def fires(text: str, latent: int) -> float:
        if latent == 137:
            return 7.9 if text.strip() == "self" else 2.2 if text == "." else 0.0
        return round((token_id(text) * latent % 1000) / 200, 3)

    tokens = []
    for position, text in enumerate(pieces):
        own = sorted({137, *[(token_id(text) + 271 * i) % N_LATENTS for i in range(request.top - 1)]})
        top = sorted((schemas.LatentValue(latent=i, value=fires(text, i)) for i in own), key=lambda item: -item.value)
        top = [] if position == 0 else [item for item in top if item.value > 0]
        tokens.append(schemas.TryToken(id=token_id(text), text=text, position=position, special=position == 0, top=top))
    asked = {str(i): [0.0 if p == 0 else fires(t, i) for p, t in enumerate(pieces)] for i in request.latents}
    return schemas.TryReply(
        tokens=tokens,
        latents=asked,
        code="run = model.run(text, capture=['resid_post.2'])\nsae.encode(run['resid_post.2'])",
    )


def steer_reply(request: schemas.SteerRequest) -> schemas.SteerReply:
    """Three continuations that share a beginning; at scale 0 they are the same."""
    plain = "width * self.height\n\n    def scale(self, factor):\n        self.width *= factor\n"
    steered = f"self.self.self.area.self {HOSTILE} self.self\n"
    noise = "width * self.depth\n\n    def __repr__(self):\n        return 'Shape'\n"

    def written(text: str) -> schemas.Continuation:
        pieces = tokenise(text)[: request.max_new_tokens]
        return schemas.Continuation(tokens=[schemas.TokenText(id=token_id(piece), text=piece) for piece in pieces])

    edited = request.scale != 0
    return schemas.SteerReply(
        default=written(plain),
        steered=written(steered if edited else plain),
        random=written(noise if edited else plain),
        norm=abs(request.scale) * MAX,
        residual_norm=31.2,
        code=f"edit = hooke.Add('resid_post.2', sae[{request.latent}].decoder, scale={request.scale * MAX:.2f})\n"
        f"model.generate(prompt, edits=[edit], seed={request.seed})",
    )


def token_search(text: str) -> schemas.TokenSearch:
    """Ten latents that fire on a token."""
    hits = [
        schemas.TokenHit(
            index=137 + 41 * i, mean=5 - 0.4 * i, max=9 - 0.3 * i, share=0.93 - 0.07 * i, density=0.01 / (i + 1)
        )
        for i in range(10)
    ]
    return schemas.TokenSearch(token=schemas.TokenText(id=token_id(text), text=text), n_occurrences=18234, hits=hits)


def text_search(query: str) -> schemas.TextSearch:
    """Six passages with the latents that fire there."""
    hits = [
        schemas.TextHit(
            example=example(i, 8.0 - i),
            latents=[schemas.LatentValue(latent=137 + 13 * i + j, value=8.0 - j) for j in range(4)],
        )
        for i in range(7)
    ]
    return schemas.TextSearch(query=query, hits=hits, complete=False)
