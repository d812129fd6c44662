/** The reader's own text, run through the model while they type: coloured by one latent, with the strongest latents per token. */

import { useMemo, useState } from "preact/hooks";
import { post, useLoad } from "../lib/api";
import { fixed } from "../lib/format";
import { latentHref, setParams, usePlace } from "../lib/place";
import type { LatentValue, TryReply } from "../lib/types";
import { Card } from "./Card";
import { Link } from "./Link";
import { Empty, Problem, Waiting } from "./Message";
import { TokenLabel } from "./TokenLabel";
import { TokenStrip, type StripToken } from "./TokenStrip";

export const WORKED_EXAMPLE = "class Shape:\n    def area(self):\n        return self.width * self.height\n";

const TOP = 8;

/** The strongest latents anywhere in the text, each with its largest value. */
function strongest(reply: TryReply, limit: number): LatentValue[] {
  const best = new Map<number, number>();
  for (const token of reply.tokens) {
    for (const { latent, value } of token.top) best.set(latent, Math.max(best.get(latent) ?? 0, value));
  }
  return [...best].map(([latent, value]) => ({ latent, value })).sort((a, b) => b.value - a.value).slice(0, limit);
}

function stripTokens(reply: TryReply, latent: number | null): StripToken[] {
  const values = latent === null ? null : reply.latents[String(latent)];
  return reply.tokens.map((token, index) => {
    const best = token.top[0];
    const value = values ? (values[index] ?? null) : (best?.value ?? null);
    return {
      id: token.id,
      text: token.text,
      position: token.position,
      value: token.special ? null : value,
      special: token.special,
      note: token.special ? "special token, outside the mask" : !values && best ? `strongest latent #${best.latent}` : undefined,
    };
  });
}

interface ListProps {
  title: string;
  values: LatentValue[];
  chosen: number | null;
  max: number;
  onChoose: ((latent: number) => void) | null;
}

function LatentList({ title, values, chosen, max, onChoose }: ListProps) {
  const { params } = usePlace();
  return (
    <div class="try-latents" data-testid="try-latents">
      <h3>{title}</h3>
      {values.length === 0 && <p class="quiet">No latent fires here.</p>}
      <ol class="similar">
        {values.map(({ latent, value }) => (
          <li key={latent} class={latent === chosen ? "chosen" : undefined}>
            {onChoose ? (
              <button type="button" class="link" title={`Colour the text by latent ${latent}`} onClick={() => onChoose(latent)}>{`#${latent}`}</button>
            ) : (
              <Link href={latentHref(latent, params)}>{`#${latent}`}</Link>
            )}
            <span class="track" aria-hidden="true">
              <span class="fill" style={{ width: `${Math.min(100, (100 * value) / (max || 1))}%` }} />
            </span>
            <span class="value">{fixed(value, 2)}</span>
            {onChoose && (
              <Link class="open" href={latentHref(latent, params)} label={`Open latent ${latent}`}>
                open
              </Link>
            )}
          </li>
        ))}
      </ol>
    </div>
  );
}

interface Props {
  /** On a latent's own page the text is coloured by that latent, on its own scale. */
  latent: number | null;
  max?: number;
  fixedLatent: boolean;
  /** What is shown until the reader writes something. */
  example?: string;
}

export function TryPanel({ latent, max, fixedLatent, example = WORKED_EXAMPLE }: Props) {
  const { params } = usePlace();
  const text = params.get("text") ?? example;
  const [over, setOver] = useState<number | null>(null);
  const key = text.trim() === "" ? null : JSON.stringify([text, latent]);
  const { data, error, loading } = useLoad<TryReply>(
    key,
    (signal) => post<TryReply>("/api/try", { text, latents: latent === null ? [] : [latent], top: TOP }, signal),
    180,
  );
  const tokens = useMemo(() => (data ? stripTokens(data, latent) : []), [data, latent]);
  const scale = max ?? Math.max(1e-9, ...tokens.map((token) => token.value ?? 0));
  const locked = params.get("lock")?.startsWith("try.") ? Number(params.get("lock")!.slice(4)) : null;
  const at = over ?? locked;
  const token = at === null ? null : (data?.tokens[at] ?? null);
  const values = data ? (token ? token.top : strongest(data, TOP)) : [];
  const choose = fixedLatent ? null : (chosen: number) => setParams({ latent: chosen === latent ? null : chosen });
  return (
    <Card
      title={fixedLatent ? "Your own text" : latent === null ? "Strongest latents" : `Latent ${latent}`}
      hint={latent === null ? "Coloured by the strongest latent of each token. Point at a token, or choose a latent." : `Coloured by latent ${latent}. Point at a token to see its latents.`}
      code={data?.code}
      testid="try"
    >
      <div class="try">
        <textarea class="field text" rows={4} spellcheck={false} aria-label="Your text" placeholder="Type or paste text" value={text} onInput={(event) => setParams({ text: event.currentTarget.value, lock: null })} />
        {error && <Problem text={error} />}
        {key === null && <Empty text="Type some text to see which latents fire on it." />}
        {!data && loading && <Waiting text="Running the model" />}
        {data && (
          <div class="try-result" aria-busy={loading}>
            <div class="try-strip">
              {latent !== null && tokens.every((token) => !token.value) && <p class="quiet silent">Latent {latent} does not fire on this text.</p>}
              <TokenStrip id="try" tokens={tokens} max={scale} breaks soft={latent === null} onHover={setOver} />
            </div>
            <div>
              <LatentList title={token ? "Latents on this token" : "Strongest latents in this text"} values={values} chosen={latent} max={Math.max(...values.map((value) => value.value), 1e-9)} onChoose={choose} />
              {token && (
                <p class="quiet try-token">
                  token <span class="chip"><TokenLabel text={token.text} /></span>
                </p>
              )}
            </div>
          </div>
        )}
      </div>
    </Card>
  );
}
