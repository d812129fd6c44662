/** The dictionary at a glance: what it reads, how well it does beside its controls, how often its latents fire, and all of them. */

import { Card } from "../components/Card";
import { Facts, type Fact } from "../components/Facts";
import { Histogram } from "../components/Histogram";
import { LatentTable } from "../components/LatentTable";
import { ScoresTable } from "../components/ScoresTable";
import { count, percent, powerOfTen } from "../lib/format";
import type { Overview } from "../lib/types";

function facts(overview: Overview): Fact[] {
  const { model, dictionary } = overview;
  return [
    { name: "Model", value: model.name, note: `${model.n_layers} layers, width ${count(model.d_model)}` },
    { name: "Reads", value: dictionary.reads ?? "—", note: dictionary.writes === dictionary.reads ? "writes the same site" : `writes ${dictionary.writes ?? "—"}` },
    { name: "Activation", value: dictionary.activation, note: dictionary.k === null ? undefined : `k = ${dictionary.k}` },
    { name: "Latents", value: count(dictionary.n_latents), note: `${fixedRatio(dictionary)}× the input width` },
    { name: "Indexed", value: `${count(overview.n_tokens)} tokens`, note: overview.corpus },
    { name: "Run", value: overview.run ? <span class="path">{overview.run}</span> : "—", note: overview.run ? "run folder" : "not from a run" },
  ];
}

function fixedRatio(dictionary: Overview["dictionary"]): string {
  const ratio = dictionary.n_latents / dictionary.d_in;
  return Number.isInteger(ratio) ? String(ratio) : ratio.toFixed(1);
}

export function OverviewView({ overview }: { overview: Overview }) {
  const { dictionary, model, density_histogram: density } = overview;
  return (
    <main class="page">
      <header class="page-head">
        <div>
          <p class="eyebrow">Dictionary</p>
          <h1>{dictionary.name}</h1>
          <p class="lead">
            {count(dictionary.n_latents)} latents that explain <b>{dictionary.reads ?? "activations"}</b> of <b>{model.name}</b>
          </p>
        </div>
      </header>
      <Facts facts={facts(overview)} testid="facts" />
      <div class="grid overview-grid">
        <Card title="Scores" hint="Each number beside the controls it must beat. Orange: a control does as well, or better." code={overview.code} testid="scores">
          <ScoresTable scores={overview.scores} />
        </Card>
        <Card
          title="Density"
          hint={`How often latents fire in the index; ${density.dead ? `${count(density.dead)} dead (${percent(density.dead / Math.max(1, dictionary.n_latents))}) not drawn` : "none is dead there"}.`}
          code={overview.code}
          testid="density"
          tall
        >
          <Histogram data={density} height={228} label="Latents by density, log scale" edge={(value) => percent(10 ** value)} tick={powerOfTen} whole fill />
          <p class="caption">share of tokens on which a latent fires</p>
        </Card>
      </div>
      <Card title="Latents" hint="Open one to see what it fires on. Click a column to sort." code={overview.code} testid="latents">
        <LatentTable />
      </Card>
    </main>
  );
}
