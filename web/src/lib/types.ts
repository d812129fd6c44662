/** The bodies of the HTTP API. The names and fields follow src/hooke/web/schemas.py; a test compares the two. */

export interface Histogram {
  edges: number[];
  counts: number[];
}

export interface DensityHistogram extends Histogram {
  dead: number;
}

export interface ModelCard {
  name: string;
  n_layers: number;
  d_model: number;
  n_vocab: number;
}

export interface DictionaryCard {
  name: string;
  reads: string | null;
  writes: string | null;
  activation: string;
  k: number | null;
  d_in: number;
  n_latents: number;
}

export interface Score {
  name: string;
  label: string;
  value: number | null;
  low: number | null;
  high: number | null;
  n: number;
  reason: string | null;
  controls: Record<string, number | null>;
  better: "lower" | "higher" | null;
}

export interface Overview {
  model: ModelCard;
  dictionary: DictionaryCard;
  scores: Score[];
  density_histogram: DensityHistogram;
  n_tokens: number;
  corpus: string;
  run: string | null;
  code: string;
}

export interface TokenText {
  id: number;
  text: string;
}

export interface LatentRow {
  index: number;
  density: number;
  max: number;
  top_token: TokenText | null;
  raised: string[];
}

export interface LatentPage {
  total: number;
  rows: LatentRow[];
}

export interface LogitToken extends TokenText {
  value: number;
}

export interface Logits {
  raised: LogitToken[];
  lowered: LogitToken[];
  histogram: Histogram | null;
  variant: "raw" | "centred";
  reason: string | null;
}

export interface ExampleToken extends TokenText {
  position: number;
  value: number;
}

export interface ExampleBody {
  doc: string;
  start: number;
  focus: number;
  tokens: ExampleToken[];
}

export interface Group {
  name: string;
  low: number;
  high: number;
  share: number;
  examples: ExampleBody[];
}

export interface SimilarLatent {
  index: number;
  cosine: number;
  density: number;
}

export interface Neighbours {
  prev: number | null;
  next: number | null;
}

export interface LatentDetail {
  index: number;
  density: number;
  n_firing: number;
  max: number;
  mean: number | null;
  dead: boolean;
  reason: string | null;
  activation_histogram: Histogram | null;
  logits: Logits;
  groups: Group[];
  similar: SimilarLatent[];
  neighbours: Neighbours;
  code: string;
}

export interface LatentValue {
  latent: number;
  value: number;
}

export interface TryRequest {
  text: string;
  latents: number[];
  top: number;
}

export interface TryToken extends TokenText {
  position: number;
  special: boolean;
  top: LatentValue[];
}

export interface TryReply {
  tokens: TryToken[];
  latents: Record<string, number[]>;
  code: string;
}

export interface SteerRequest {
  prompt: string;
  latent: number;
  scale: number;
  max_new_tokens: number;
  seed: number;
  temperature: number;
}

export interface Continuation {
  tokens: TokenText[];
}

export interface SteerReply {
  default: Continuation;
  steered: Continuation;
  random: Continuation;
  norm: number;
  residual_norm: number;
  code: string;
}

export interface TokenHit {
  index: number;
  mean: number;
  max: number;
  share: number;
  density: number;
}

export interface TokenSearch {
  token: TokenText;
  n_occurrences: number;
  hits: TokenHit[];
}

export interface TextHit {
  example: ExampleBody;
  latents: LatentValue[];
}

export interface TextSearch {
  query: string;
  hits: TextHit[];
  complete: boolean;
}

export interface SavedPage {
  overview: Overview;
  latent: LatentDetail;
}
