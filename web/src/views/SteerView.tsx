/** Steering on a page of its own: the reader chooses the latent; without a choice the most interesting one is taken. */

import { Link } from "../components/Link";
import { Problem, Waiting } from "../components/Message";
import { SteerPanel } from "../components/SteerPanel";
import { useGet } from "../lib/api";
import { latentHref, numberParam, usePlace } from "../lib/place";
import type { LatentPage, Overview } from "../lib/types";

export function SteerView({ overview }: { overview: Overview }) {
  const { params } = usePlace();
  const chosen = numberParam(params, "latent", -1, 0, overview.dictionary.n_latents - 1);
  const first = useGet<LatentPage>(chosen < 0 ? "/api/latents?sort=interest&order=desc&offset=0&limit=1&alive=1" : null);
  const latent = chosen >= 0 ? chosen : (first.data?.rows[0]?.index ?? null);
  return (
    <main class="page narrow">
      <header class="page-head">
        <div>
          <p class="eyebrow">{overview.model.name}</p>
          <h1>Steer</h1>
        </div>
        {latent !== null && (
          <div class="page-actions">
            <Link class="button" href={latentHref(latent)}>{`Open latent ${latent}`}</Link>
          </div>
        )}
      </header>
      {chosen < 0 && params.has("latent") && <Problem text={`There is no latent ${params.get("latent")}; they go from 0 to ${overview.dictionary.n_latents - 1}.`} />}
      {first.error && <Problem text={first.error} />}
      {latent === null ? first.loading && <Waiting text="Choosing a latent" /> : <SteerPanel latent={latent} choose nLatents={overview.dictionary.n_latents} />}
    </main>
  );
}
