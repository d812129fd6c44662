/** Latents whose decoder rows point the same way. */

import { fixed, percent } from "../lib/format";
import { latentHref, usePlace } from "../lib/place";
import type { SimilarLatent } from "../lib/types";
import { Link } from "./Link";
import { Empty } from "./Message";

export function Similar({ latents, linked }: { latents: SimilarLatent[]; linked: boolean }) {
  const { params } = usePlace();
  if (latents.length === 0) return <Empty text="No other latent points the same way." />;
  return (
    <ol class="similar">
      {latents.map((latent) => (
        <li key={latent.index}>
          {linked ? <Link href={latentHref(latent.index, params)}>{`#${latent.index}`}</Link> : <span>{`#${latent.index}`}</span>}
          <span class="track" aria-hidden="true">
            <span class={latent.cosine < 0 ? "fill lowered" : "fill"} style={{ width: `${Math.min(100, Math.abs(latent.cosine) * 100)}%` }} />
          </span>
          <span class="value" title="Cosine of the decoder rows">{fixed(latent.cosine, 2)}</span>
          <span class="density" title="Density">{percent(latent.density)}</span>
        </li>
      ))}
    </ol>
  );
}
