/** Steering by one latent: the same prompt and seed three times, untouched, steered, and with a random direction of equal norm. */

import { useEffect, useState } from "preact/hooks";
import { post, useLoad } from "../lib/api";
import { fixed } from "../lib/format";
import { numberParam, setParams, usePlace } from "../lib/place";
import type { SteerReply } from "../lib/types";
import { Card } from "./Card";
import { Continuation } from "./Continuation";
import { Empty, Problem, Waiting } from "./Message";
import { Slider } from "./Slider";

export const WORKED_PROMPT = "def area(self):\n    return self.";

interface NumberFieldProps {
  label: string;
  name: string;
  value: number;
  low: number;
  high: number;
  step?: number;
}

function NumberField({ label, name, value, low, high, step = 1 }: NumberFieldProps) {
  const [text, setText] = useState(String(value));
  useEffect(() => setText(String(value)), [value]);
  const type = (typed: string) => {
    setText(typed);
    const next = Number(typed);
    if (typed.trim() !== "" && Number.isFinite(next) && next >= low && next <= high) setParams({ [name]: next, lock: null });
  };
  return (
    <label class="labelled">
      <span>{label}</span>
      <input class="field" type="number" min={low} max={high} step={step} value={text} onInput={(event) => type(event.currentTarget.value)} onBlur={() => setText(String(value))} />
    </label>
  );
}

/** "2 x max activation adds a vector of length 23.5: 0.75 x the residual norm." */
function StrengthNote({ reply, scale }: { reply: SteerReply | null; scale: number }) {
  if (scale === 0) return <p class="quiet">At 0 nothing is added: the three texts are the same.</p>;
  if (!reply) return <p class="quiet">Multiples of the latent's largest activation.</p>;
  return (
    <p class="quiet" data-testid="strength">
      Adds a vector of length <b>{fixed(reply.norm, 2)}</b>, which is <b>{fixed(reply.norm / (reply.residual_norm || Number.NaN), 2)}×</b> the mean norm of the activations on this prompt.
    </p>
  );
}

interface Props {
  latent: number;
  /** Let the reader choose another latent (kept in the address). */
  choose?: boolean;
  /** Latents in the dictionary, to bound the field. */
  nLatents: number;
}

export function SteerPanel({ latent, choose = false, nLatents }: Props) {
  const { params } = usePlace();
  const prompt = params.get("prompt") ?? WORKED_PROMPT;
  const scale = numberParam(params, "scale", 2, -10, 10);
  const seed = numberParam(params, "seed", 0, 0, 2 ** 31 - 1);
  const tokens = numberParam(params, "tokens", 40, 1, 400);
  const temperature = numberParam(params, "temperature", 0, 0, 5);
  const body = { prompt, latent, scale, max_new_tokens: tokens, seed, temperature };
  const ready = prompt !== "";
  const { data, error, loading } = useLoad<SteerReply>(ready ? JSON.stringify(body) : null, (signal) => post<SteerReply>("/api/steer", body, signal), 250);
  return (
    <Card title={choose ? `Latent ${latent}` : "Steer"} hint="Add the latent's decoder direction at every position while the model writes. A random direction of the same length is the control." code={data?.code} testid="steer">
      <div class="steer">
        <textarea class="field text" rows={3} spellcheck={false} aria-label="Prompt" value={prompt} onInput={(event) => setParams({ prompt: event.currentTarget.value, lock: null })} />
        <div class="steer-controls">
          <Slider label="Strength" value={scale} low={-10} high={10} step={0.25} unit="× max" onChange={(value) => setParams({ scale: value, lock: null })} />
          <div class="steer-fields">
            {choose && <NumberField label="Latent" name="latent" value={latent} low={0} high={nLatents - 1} />}
            <NumberField label="Seed" name="seed" value={seed} low={0} high={2 ** 31 - 1} />
            <NumberField label="Tokens" name="tokens" value={tokens} low={1} high={400} />
            <NumberField label="Temperature" name="temperature" value={temperature} low={0} high={5} step={0.1} />
          </div>
        </div>
        <StrengthNote reply={data} scale={scale} />
        {error && <Problem text={error} />}
        {!ready && <Empty text="Write a prompt." />}
        {ready && !data && loading && <Waiting text="Writing three continuations" />}
        {data && (
          <div class="continuations" aria-busy={loading}>
            <Continuation title="Default" note="no edit" prompt={prompt} tokens={data.default.tokens} baseline={null} />
            <Continuation title="Steered" note={`latent ${latent}, ${fixed(scale, 2)}× max`} prompt={prompt} tokens={data.steered.tokens} baseline={data.default.tokens} strong />
            <Continuation title="Random direction" note="control, same length" prompt={prompt} tokens={data.random.tokens} baseline={data.default.tokens} />
          </div>
        )}
      </div>
    </Card>
  );
}
