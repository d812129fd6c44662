/** One latent: loads it, steps with the arrow keys, and shows its page. */

import { useEffect } from "preact/hooks";
import { LatentPage } from "../components/LatentPage";
import { Link } from "../components/Link";
import { Problem, Waiting } from "../components/Message";
import { prefetch, useGet } from "../lib/api";
import { useKeys } from "../lib/keys";
import { go, latentHref, usePlace } from "../lib/place";
import type { LatentDetail, Overview } from "../lib/types";

export function LatentView({ index, overview }: { index: number; overview: Overview }) {
  const { params } = usePlace();
  const { data, error } = useGet<LatentDetail>(`/api/latents/${index}`);
  // While the next latent loads, the last one stays on screen: only its own neighbours may be stepped to.
  const latent = data;
  const step = (to: number | null | undefined) => {
    if (to !== null && to !== undefined) go(latentHref(to, params));
  };
  useKeys({
    ArrowLeft: () => latent?.index === index && step(latent.neighbours.prev),
    ArrowRight: () => latent?.index === index && step(latent.neighbours.next),
  });
  useEffect(() => {
    document.title = `Latent ${index} · ${overview.dictionary.name} · hooke`;
  }, [index, overview]);
  useEffect(() => {
    // The neighbours are there when an arrow key asks for them.
    if (!latent || latent.index !== index) return;
    for (const neighbour of [latent.neighbours.next, latent.neighbours.prev]) {
      if (neighbour !== null) prefetch(`/api/latents/${neighbour}`);
    }
  }, [latent, index]);

  if (error) {
    return (
      <main class="page">
        <header class="page-head">
          <h1>Latent {index}</h1>
        </header>
        <Problem text={error} />
        <p>
          <Link class="button" href="/">All latents</Link>
        </p>
      </main>
    );
  }
  if (!latent) {
    return (
      <main class="page">
        <Waiting text={`Loading latent ${index}`} />
      </main>
    );
  }
  return <LatentPage latent={latent} overview={overview} live />;
}
