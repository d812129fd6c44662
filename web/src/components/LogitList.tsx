/** The tokens whose logits a latent raises or lowers most, with bars on one common scale. */

import { fixed } from "../lib/format";
import type { Logits, LogitToken } from "../lib/types";
import { TokenChip } from "./TokenLabel";

function List({ tokens, sign, scale }: { tokens: LogitToken[]; sign: "raised" | "lowered"; scale: number }) {
  return (
    <div class={`logits ${sign}`}>
      <h3>{sign === "raised" ? "Raised" : "Lowered"}</h3>
      <ol>
        {tokens.map((token) => (
          <li key={token.id} title={`${JSON.stringify(token.text)}, token id ${token.id}: ${fixed(token.value, 3)}`}>
            <span class="bar" style={{ width: `calc((100% - var(--number)) * ${Math.min(1, Math.abs(token.value) / scale).toFixed(4)})` }} />
            <TokenChip text={token.text} />
            <span class="value">{fixed(token.value, 2)}</span>
          </li>
        ))}
      </ol>
    </div>
  );
}

export function LogitLists({ logits }: { logits: Logits }) {
  const scale = Math.max(1e-9, ...[...logits.raised, ...logits.lowered].map((token) => Math.abs(token.value)));
  return (
    <div class="logit-lists">
      <List tokens={logits.raised} sign="raised" scale={scale} />
      <List tokens={logits.lowered} sign="lowered" scale={scale} />
    </div>
  );
}
