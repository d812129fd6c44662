/** Which view an address shows, and the keys that work everywhere. */

import { useEffect } from "preact/hooks";
import { Link } from "./components/Link";
import { Problem, Waiting } from "./components/Message";
import { Shell } from "./components/Shell";
import { Tooltip } from "./components/Tooltip";
import { useGet } from "./lib/api";
import { useKeys } from "./lib/keys";
import { currentPlace, setParams, usePlace } from "./lib/place";
import type { Overview } from "./lib/types";
import { LatentView } from "./views/LatentView";
import { OverviewView } from "./views/OverviewView";
import { SearchView } from "./views/SearchView";
import { SteerView } from "./views/SteerView";
import { TryView } from "./views/TryView";

const TITLES: Record<string, string> = { "/": "Overview", "/try": "Try text", "/steer": "Steer", "/search": "Search" };

function View({ path, overview }: { path: string; overview: Overview }) {
  const latent = /^\/latent\/(\d+)\/?$/.exec(path);
  useEffect(() => {
    const title = TITLES[path];
    if (title) document.title = `${title} · ${overview.dictionary.name} · hooke`;
  }, [path, overview]);
  if (latent) return <LatentView index={Number(latent[1])} overview={overview} />;
  if (path === "/") return <OverviewView overview={overview} />;
  if (path === "/try") return <TryView overview={overview} />;
  if (path === "/steer") return <SteerView overview={overview} />;
  if (path === "/search") return <SearchView />;
  return (
    <main class="page">
      <Problem text={`There is no view at ${path}.`} /> <Link href="/">Go to the overview</Link>
    </main>
  );
}

export function useUnlock(): void {
  useKeys({
    Escape: () => {
      if (currentPlace().params.has("lock")) setParams({ lock: null });
      else (document.activeElement as HTMLElement | null)?.blur();
    },
  });
}

export function App() {
  const { path } = usePlace();
  const { data, error } = useGet<Overview>("/api/overview");
  useUnlock();
  useKeys({ "/": () => (document.querySelector<HTMLInputElement>("input[data-search]") ?? document.querySelector<HTMLInputElement>(".jump input"))?.focus() });
  return (
    <>
      <Shell overview={data} />
      {error && (
        <main class="page">
          <Problem text={error} />
        </main>
      )}
      {!error && !data && (
        <main class="page">
          <Waiting />
        </main>
      )}
      {data && <View path={path} overview={data} />}
      <Tooltip />
    </>
  );
}
