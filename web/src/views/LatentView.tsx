/** One latent: loads it, steps with the arrow keys, and shows its page. */

import { useEffect } from "preact/hooks";
import { LatentPage } from "../components/LatentPage";
import { Problem, Waiting } from "../components/Message";
import { get, useGet } from "../lib/api";
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
    // The browser's cache then has the neighbours when an arrow key asks for them.
    if (!latent || latent.index !== index) return;
    const controller = new AbortController();
    for (const neighbour of [latent.neighbours.next, latent.neighbours.prev]) {
      if (neighbour !== null) get(`/api/latents/${neighbour}`, controller.signal).catch(() => undefined);
    }
    return () => controller.abort();
  }, [latent, index]);

  if (error) {
    return (
      <main class="page">
        <Problem text={error} />
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
