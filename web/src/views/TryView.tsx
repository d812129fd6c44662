/** The reader's own text, on a page of its own. */

import { TryPanel } from "../components/TryPanel";
import { numberParam, setParams, usePlace } from "../lib/place";
import type { Overview } from "../lib/types";

export function TryView({ overview }: { overview: Overview }) {
  const { params } = usePlace();
  const latent = numberParam(params, "latent", -1, 0, overview.dictionary.n_latents - 1);
  return (
    <main class="page narrow">
      <header class="page-head">
        <div>
          <p class="eyebrow">{overview.model.name}</p>
          <h1>Try your own text</h1>
        </div>
        {latent >= 0 && (
          <div class="page-actions">
            <button type="button" class="button" onClick={() => setParams({ latent: null })}>
              Colour by strongest latent
            </button>
          </div>
        )}
      </header>
      <TryPanel latent={latent < 0 ? null : latent} fixedLatent={false} />
    </main>
  );
}
