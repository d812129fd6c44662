/** The page of one latent, a pure function of its payload: the same in the app and in a saved file. */

import { count, fixed, number, oneIn, percent } from "../lib/format";
import { latentHref, setParams, usePlace } from "../lib/place";
import type { LatentDetail, Overview } from "../lib/types";
import { Card } from "./Card";
import { Examples } from "./Examples";
import { Facts, type Fact } from "./Facts";
import { Histogram } from "./Histogram";
import { Link } from "./Link";
import { LogitLists } from "./LogitList";
import { Empty } from "./Message";
import { Segmented } from "./Segmented";
import { Similar } from "./Similar";
import { SteerPanel } from "./SteerPanel";
import { TryPanel } from "./TryPanel";

interface Props {
  latent: LatentDetail;
  overview: Overview;
  /** False in a saved file, where no server can answer. */
  live: boolean;
}

const TABS = [
  { value: "examples", label: "Examples" },
  { value: "try", label: "Your text" },
  { value: "steer", label: "Steer" },
];

function facts(latent: LatentDetail): Fact[] {
  return [
    { name: "Density", value: percent(latent.density), note: latent.dead ? "dead" : oneIn(latent.density) },
    { name: "Largest activation", value: number(latent.max), note: "in the index" },
    { name: "Mean when active", value: number(latent.mean), note: latent.mean === null ? "never active" : `the largest is ${fixed(latent.max / latent.mean, 1)}× that` },
    { name: "Fires on", value: count(latent.n_firing), note: "tokens of the index" },
  ];
}

function Step({ to, sign, label }: { to: number | null; sign: string; label: string }) {
  const { params } = usePlace();
  if (to === null) return <span class="button step" aria-disabled="true">{sign}</span>;
  return (
    <Link class="button step" href={latentHref(to, params)} label={`${label}: latent ${to}`} title={`${label} latent (arrow key)`}>
      {sign}
    </Link>
  );
}

function Head({ latent, overview, live, tab }: Props & { tab: string }) {
  return (
    <header class="page-head">
      <div>
        <p class="eyebrow">
          {overview.dictionary.reads ?? "latent"} · {overview.dictionary.name} · {overview.model.name}
        </p>
        <h1>
          Latent <span class="number">{latent.index}</span>
        </h1>
      </div>
      {live && (
        <nav class="page-actions" aria-label="Latents">
          <Segmented label="Panel" choices={TABS} value={tab} onChange={(value) => setParams({ tab: value === "examples" ? null : value, lock: null })} />
          <a class="button" href={`/api/latents/${latent.index}/export`} download={`latent-${latent.index}.html`}>
            Save as HTML
          </a>
          <span class="joined">
            <Step to={latent.neighbours.prev} sign="←" label="Previous" />
            <Step to={latent.neighbours.next} sign="→" label="Next" />
          </span>
        </nav>
      )}
    </header>
  );
}

function Side({ latent, live }: { latent: LatentDetail; live: boolean }) {
  const { logits } = latent;
  const variant = logits.variant === "centred" ? "centred over the vocabulary" : "raw unembedding";
  return (
    <div class="stack">
      <Card title="What it writes" hint={`Tokens that its direction raises and lowers (${variant}).`} code={latent.code} testid="logits">
        {logits.reason ? <Empty text={logits.reason} /> : <LogitLists logits={logits} />}
        {logits.histogram && (
          <>
            <Histogram data={logits.histogram} height={112} label="Logit weights over the vocabulary" edge={(value) => number(value, 3)} signed />
            <p class="caption">logit weight over the vocabulary</p>
          </>
        )}
      </Card>
      <Card title="How strongly it fires" hint="Activations where it is not silent; counts on a log scale." code={latent.code} testid="activations">
        {latent.activation_histogram ? (
          <Histogram data={latent.activation_histogram} height={132} label="Activations of this latent" edge={(value) => number(value, 3)} logCounts />
        ) : (
          <Empty text={latent.reason ?? "No activations."} />
        )}
      </Card>
      <Card title="Similar latents" hint="Cosine of decoder directions, and density." code={latent.code} testid="similar">
        <Similar latents={latent.similar} linked={live} />
      </Card>
    </div>
  );
}

/** A text on which this latent fires, to begin with. */
function strongestText(latent: LatentDetail): string | undefined {
  return latent.groups[0]?.examples[0]?.tokens.map((token) => token.text).join("").trim() || undefined;
}

export function LatentPage({ latent, overview, live }: Props) {
  const { params } = usePlace();
  const wanted = params.get("tab");
  const tab = live && (wanted === "try" || wanted === "steer") ? wanted : "examples";
  return (
    <main class="page" data-testid="latent-page">
      <Head latent={latent} overview={overview} live={live} tab={tab} />
      <Facts facts={facts(latent)} testid="facts" />
      {latent.dead && tab !== "examples" && <Empty text={latent.reason ?? "This latent never fired."} />}
      <div class="grid latent-grid">
        <Side latent={latent} live={live} />
        <div class="stack main-column">
          {tab === "examples" && (
            <Card title="What it fires on" hint="Grouped by strength. More colour is a larger activation; the underlined token was chosen." code={latent.code} testid="examples">
              <Examples latent={latent} />
            </Card>
          )}
          {tab === "try" && <TryPanel latent={latent.index} max={latent.max > 0 ? latent.max : undefined} fixedLatent example={strongestText(latent)} />}
          {tab === "steer" && <SteerPanel latent={latent.index} nLatents={overview.dictionary.n_latents} />}
        </div>
      </div>
    </main>
  );
}
