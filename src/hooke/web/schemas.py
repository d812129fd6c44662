"""The only schema between the server and the page: every body of the HTTP API, as pydantic models.

OpenAPI is generated from these models, and the page's types follow it. Token texts are plain strings (never HTML):
the page draws them as text nodes. A number that is undefined is `null` next to a `reason`, never 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Text = Annotated[str, Field(max_length=20_000)]
MIN_TEMPERATURE = 0.01  # logits divided by less leave the range of float32


class Body(BaseModel):
    """Base of all bodies: immutable, no unknown fields, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Problem(Body):
    """What a refused request answers: what was wrong and what to do."""

    error: str


class Histogram(Body):
    """Counts between `len(counts) + 1` edges."""

    edges: list[float]
    counts: list[int]


class DensityHistogram(Histogram):
    """How many living latents have which log10 density; the dead ones are counted apart."""

    dead: int


class ModelCard(Body):
    """The model under the microscope."""

    name: str
    n_layers: int
    d_model: int
    n_vocab: int


class DictionaryCard(Body):
    """The dictionary whose latents are shown."""

    name: str
    reads: str | None
    writes: str | None
    activation: str
    k: int | None
    d_in: int
    n_latents: int


class Score(Body):
    """One number with its interval, its controls, and the reason where it is undefined."""

    name: str
    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = None
    controls: dict[str, float | None] = {}
    better: Literal["lower", "higher"] | None = None


class Overview(Body):
    """GET /api/overview."""

    model: ModelCard
    dictionary: DictionaryCard
    scores: list[Score]
    density_histogram: DensityHistogram
    n_tokens: int
    corpus: str
    run: str | None
    code: str


class TokenText(Body):
    """A vocabulary entry as people read it."""

    id: int
    text: str


class LatentRow(Body):
    """One line of the latent table."""

    index: int
    density: float
    max: float
    top_token: TokenText | None
    raised: list[str]


class LatentPage(Body):
    """GET /api/latents: one window of the sorted and filtered table."""

    total: int
    rows: list[LatentRow]


class LogitToken(TokenText):
    """A vocabulary entry with the weight that the latent's decoder gives to it."""

    value: float


class Logits(Body):
    """What a latent writes, seen through the unembedding."""

    raised: list[LogitToken]
    lowered: list[LogitToken]
    histogram: Histogram | None
    variant: Literal["raw", "centred"]
    reason: str | None = None


class ExampleToken(TokenText):
    """A token of an example window: its position in the packed row and the latent's activation there."""

    position: int
    value: float


class ExampleBody(Body):
    """A window of one document; `tokens[focus]` is the position for which it was chosen."""

    doc: str
    start: int
    focus: int
    tokens: list[ExampleToken]


class Group(Body):
    """Examples whose activation at the focus lies in [low, high]; `share` is their part of all firing positions."""

    name: str
    low: float
    high: float
    share: float
    examples: list[ExampleBody]


class SimilarLatent(Body):
    """Another latent by the cosine of the decoder rows."""

    index: int
    cosine: float
    density: float


class Neighbours(Body):
    """The nearest living latents by index, for the arrow keys."""

    prev: int | None
    next: int | None


class LatentDetail(Body):
    """GET /api/latents/{index}: all that the feature page shows."""

    index: int
    density: float
    n_firing: int
    max: float
    mean: float | None
    dead: bool
    reason: str | None = None
    activation_histogram: Histogram | None
    logits: Logits
    groups: list[Group]
    similar: list[SimilarLatent]
    neighbours: Neighbours
    code: str


class TryRequest(Body):
    """POST /api/try: run the model on a text and show the strongest latents on every token."""

    text: Text
    latents: list[int] = Field(default_factory=list, max_length=64)
    top: int = Field(default=5, ge=0, le=50)


class LatentValue(Body):
    """A latent and its activation."""

    latent: int
    value: float


class TryToken(TokenText):
    """A token of the user's text; special ones (BOS) are outside the mask and carry no activations."""

    position: int
    special: bool
    top: list[LatentValue]


class TryReply(Body):
    """Every token with its strongest latents, and the whole row of each latent that was asked for."""

    tokens: list[TryToken]
    latents: dict[str, list[float]]
    code: str


class SteerRequest(Body):
    """POST /api/steer: `scale` is in multiples of the latent's maximal activation in the index."""

    prompt: Text
    latent: int
    scale: float = Field(default=1.0, ge=-100, le=100)
    max_new_tokens: int = Field(default=40, ge=1, le=400)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    temperature: float = Field(default=0.0, ge=0, le=5)

    @field_validator("temperature")
    @classmethod
    def _not_nearly_zero(cls, value: float) -> float:
        if 0 < value < MIN_TEMPERATURE:
            raise ValueError(f"a temperature is 0 (the most likely token) or at least {MIN_TEMPERATURE}")
        return value


class Continuation(Body):
    """Generated tokens, without the prompt."""

    tokens: list[TokenText]


class SteerReply(Body):
    """The same prompt and seed three times: untouched, steered, and with a random direction of the same norm.

    `norm` is the length of the added vector, `residual_norm` the mean length of the site's activations on the prompt.
    """

    default: Continuation
    steered: Continuation
    random: Continuation
    norm: float
    residual_norm: float
    code: str


class TokenHit(Body):
    """A latent found by the token it fires on; `mean` is over all occurrences of the token, silent ones included."""

    index: int
    mean: float
    max: float
    share: float
    density: float


class TokenSearch(Body):
    """GET /api/search/token."""

    token: TokenText
    n_occurrences: int
    hits: list[TokenHit]


class TextHit(Body):
    """A passage that matches, and the latents that are strongest in the match."""

    example: ExampleBody
    latents: list[LatentValue]


class TextSearch(Body):
    """GET /api/search/text: `complete` is false where the search stopped at its limit of hits."""

    query: str
    hits: list[TextHit]
    complete: bool


class SavedPage(Body):
    """The data inlined in a feature page that was saved as one HTML file."""

    overview: Overview
    latent: LatentDetail
