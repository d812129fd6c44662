/** Search: latents by the token they fire on, or passages by text with the latents that fire there. */

import { Card } from "../components/Card";
import { Example } from "../components/Example";
import { Link } from "../components/Link";
import { Empty, Problem, sentence, Waiting } from "../components/Message";
import { Segmented } from "../components/Segmented";
import { TokenChip } from "../components/TokenLabel";
import { useGet } from "../lib/api";
import { count, fixed, percent } from "../lib/format";
import { latentHref, setParams, usePlace } from "../lib/place";
import { useTyped } from "../lib/typed";
import type { TextSearch, TokenSearch } from "../lib/types";

const KINDS = [
  { value: "token", label: "Token", title: "Latents that fire on one token" },
  { value: "text", label: "Text", title: "Passages that contain the text" },
];

function TokenHits({ query }: { query: string }) {
  const { data, error, loading } = useGet<TokenSearch>(`/api/search/token?text=${encodeURIComponent(query)}`);
  if (error?.startsWith("no token reads"))
    return (
      <div class="message">
        {sentence(error)}.{" "}
        <button type="button" class="link" onClick={() => setParams({ by: "text" })}>
          Search the text instead
        </button>
      </div>
    );
  if (error) return <Problem text={error} />;
  if (!data) return loading ? <Waiting text="Searching" /> : null;
  return (
    <>
      <p class="found">
        <TokenChip text={data.token.text} /> occurs {count(data.n_occurrences)} times in the index
      </p>
      {data.hits.length === 0 && <Empty text="No latent fires on it." />}
      {data.hits.length > 0 && (
        <table class="hits" data-testid="hits">
          <thead>
            <tr>
              <th scope="col">Latent</th>
              <th scope="col" class="right">Fires on</th>
              <th scope="col" class="right">Mean</th>
              <th scope="col" class="right">Max</th>
              <th scope="col" class="right">Density</th>
            </tr>
          </thead>
          <tbody>
            {data.hits.map((hit) => (
              <tr key={hit.index}>
                <td><Link href={latentHref(hit.index)}>{`#${hit.index}`}</Link></td>
                <td class="right">{percent(hit.share)}</td>
                <td class="right">{fixed(hit.mean, 2)}</td>
                <td class="right">{fixed(hit.max, 2)}</td>
                <td class="right">{percent(hit.density)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </>
  );
}

function TextHits({ query }: { query: string }) {
  const { data, error, loading } = useGet<TextSearch>(`/api/search/text?q=${encodeURIComponent(query)}`);
  if (error) return <Problem text={error} />;
  if (!data) return loading ? <Waiting text="Searching" /> : null;
  if (data.hits.length === 0) return <Empty text="The index has no such text." />;
  return (
    <>
      <p class="found">
        {count(data.hits.length)} passages{data.complete ? "" : ", more exist: the search stopped at its limit"}
      </p>
      {data.hits.map((hit, index) => (
        <div class="text-hit" key={index} data-testid="text-hit">
          <Example id={`s${index}`} example={hit.example} max={Math.max(1e-9, ...hit.example.tokens.map((token) => token.value))} breaks={false} />
          <p class="latent-links">
            {hit.latents.map((latent) => (
              <Link key={latent.latent} class="pill" href={latentHref(latent.latent)}>
                {`#${latent.latent}`} <span>{fixed(latent.value, 1)}</span>
              </Link>
            ))}
          </p>
        </div>
      ))}
    </>
  );
}

export function SearchView() {
  const { params } = usePlace();
  const query = params.get("q") ?? "";
  const by = params.get("by") === "text" ? "text" : "token";
  const [text, type] = useTyped(query, (typed) => setParams({ q: typed || null, lock: null }), 250);
  return (
    <main class="page narrow">
      <header class="page-head">
        <div>
          <p class="eyebrow">Index</p>
          <h1>Search</h1>
        </div>
      </header>
      <Card title={by === "token" ? "Latents by token" : "Passages by text"} hint={by === "token" ? "Which latents fire on a token. Write it as it stands, with its leading space." : "Where a text occurs, coloured by the latent that is strongest in the match."} testid="search">
        <div class="toolbar">
          <input type="search" class="field search wide" data-search aria-label="Search the index" placeholder={by === "token" ? "self" : "return self"} value={text} onInput={(event) => type(event.currentTarget.value)} />
          <Segmented label="Search by" choices={KINDS} value={by} onChange={(value) => setParams({ by: value === "token" ? null : value, lock: null })} />
        </div>
        {query === "" && <Empty text="Type to search." />}
        {query !== "" && (by === "token" ? <TokenHits query={query} /> : <TextHits query={query} />)}
      </Card>
    </main>
  );
}
