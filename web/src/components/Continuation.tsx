/** A written continuation after its prompt; where it leaves the baseline is marked. */

import type { TokenText } from "../lib/types";

interface Props {
  title: string;
  note: string;
  prompt: string;
  tokens: TokenText[];
  baseline: TokenText[] | null;
  strong?: boolean;
}

/** Tokens shared with the baseline from the start. */
function shared(tokens: TokenText[], baseline: TokenText[]): number {
  let at = 0;
  while (at < tokens.length && at < baseline.length && tokens[at]?.id === baseline[at]?.id) at += 1;
  return at;
}

function difference(same: number, tokens: TokenText[], baseline: TokenText[]): string {
  if (same === tokens.length && same === baseline.length) return "same as default";
  return same === 0 ? "differs from the first token" : `differs after ${same} ${same === 1 ? "token" : "tokens"}`;
}

export function Continuation({ title, note, prompt, tokens, baseline, strong = false }: Props) {
  const same = baseline ? shared(tokens, baseline) : tokens.length;
  const kept = tokens.slice(0, same).map((token) => token.text).join("");
  const changed = tokens.slice(same).map((token) => token.text).join("");
  return (
    <section class={strong ? "continuation strong" : "continuation"} aria-label={title} data-testid={`continuation-${title.toLowerCase().replace(/ .*/, "")}`}>
      <header>
        <h3>{title}</h3>
        <span>{note}</span>
      </header>
      <pre tabIndex={0}>
        <span class="prompt">{prompt}</span>
        {kept}
        {changed && <mark>{changed}</mark>}
      </pre>
      <footer>{baseline ? difference(same, tokens, baseline) : `${tokens.length} tokens`}</footer>
    </section>
  );
}
