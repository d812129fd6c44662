/** A feature page that was saved as one file: the same page from the data inside of the file, without a server. */

import { useEffect } from "preact/hooks";
import { useUnlock } from "./app";
import { LatentPage } from "./components/LatentPage";
import { Mark, ThemeButton } from "./components/Shell";
import { Tooltip } from "./components/Tooltip";
import type { SavedPage } from "./lib/types";

export function Saved({ payload }: { payload: SavedPage }) {
  const { overview, latent } = payload;
  useUnlock();
  useEffect(() => {
    document.title = `Latent ${latent.index} · ${overview.dictionary.name} · hooke`;
  }, [payload]);
  return (
    <>
      <header class="shell saved">
        <div class="shell-inner">
          <span class="brand">
            <Mark />
            hooke
          </span>
          <div class="shell-end">
            <span class="context">Saved page, works without a server</span>
            <ThemeButton />
          </div>
        </div>
      </header>
      <LatentPage latent={latent} overview={overview} live={false} />
      <Tooltip />
    </>
  );
}
